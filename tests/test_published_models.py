"""Networks that papers published, rebuilt from their widths: sizes and costs."""

import numpy as np
from architectures import resnet56
from keras import layers

import tfprune

# You et al., 2019: the released ResNet-56 with 70 % fewer FLOPs. Widths of the first
# convolution of every block; all else is as wide as before.
GATE_DECORATOR = (
    (12, 1, 1, 1, 1, 6, 4, 8, 11),
    (25, 8, 6, 3, 3, 3, 3, 5, 3),
    (60, 23, 25, 23, 23, 9, 22, 22, 13),
)


def thop(model):
    """FLOPs as the authors' tool counts them, which is not how `tfprune.cost` does."""
    total = 0
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            total += int(np.prod(layer.output.shape[1:])) * (
                layer.kernel_size[0] * layer.kernel_size[1] * layer.input.shape[-1]
            )
        elif isinstance(layer, layers.BatchNormalization):
            total += 4 * int(np.prod(layer.output.shape[1:]))
        elif isinstance(layer, layers.Dense):
            total += layer.units * (2 * layer.input.shape[-1] - 1)
        elif isinstance(layer, layers.GlobalAveragePooling2D):
            places = int(np.prod(layer.input.shape[1:3]))
            total += (places + 1) * layer.output.shape[-1]
    return total


def test_the_gate_decorators_resnet56():
    model = resnet56()
    assert tfprune.cost(model).macs == 125_747_840
    assert round(thop(model) / 1e6, 3) == 127.932
    masks = {
        f"stage{stage}_block{block}_first_conv": np.arange(16 * 2**stage) < width
        for stage, widths in enumerate(GATE_DECORATOR)
        for block, width in enumerate(widths)
    }
    small = tfprune.compact(model, masks)
    assert sum(int(np.prod(v.shape)) for v in small.trainable_variables) == 286_034
    assert tfprune.cost(small).macs == tfprune.cost(model, masks).macs == 36_868_736
    assert round(thop(small) / 1e6, 3) == 38.321


def test_streams_are_groups_of_all_their_normalizations():
    graph = tfprune.Graph(resnet56())
    streams = {g.name: g for g in graph.groups if len(g.layers) > 2}
    sizes = [(name, group.size) for name, group in streams.items()]
    assert [size for _, size in sizes] == [16, 32, 64]
    for (_, group), convs in zip(streams.items(), (10, 10, 10), strict=True):
        assert sum(path.endswith("_bn") for path in group.layers) == convs
    # 27 first convolutions of blocks are groups of their own.
    assert len(graph.groups) == 30
