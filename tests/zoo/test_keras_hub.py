"""Backbones of KerasHub, which are made of layers of its own; skipped without it.

Nothing in tfprune knows them: they stand for what users write. What is needed, as
`keras-hub` itself asks for more: pip install keras-hub.
"""

import checker
import keras
import pytest
from invariants import fingerprint, saved_and_loaded

import tfprune

pytestmark = pytest.mark.slow
hub = pytest.importorskip("keras_hub")

IMAGE = {"image_shape": (64, 64, 3)}
TEXT = {"vocabulary_size": 50, "num_layers": 2, "hidden_dim": 32}
TEXT |= {"intermediate_dim": 64, "num_heads": 4}
GROUPED = {k: v for k, v in TEXT.items() if k != "num_heads"}
GROUPED |= {"num_query_heads": 4, "num_key_value_heads": 2}
RESNET = {
    "input_conv_filters": [16],
    "input_conv_kernel_sizes": [7],
    "stackwise_num_filters": [64, 96, 128],
    "stackwise_num_blocks": [2, 2, 2],
    "stackwise_num_strides": [1, 2, 2],
    **IMAGE,
}


def _resnet(block_type, use_pre_activation=False):
    return hub.models.ResNetBackbone(
        block_type=block_type, use_pre_activation=use_pre_activation, **RESNET
    )


def _densenet():
    return hub.models.DenseNetBackbone([2, 3, 2], growth_rate=16, **IMAGE)


def _vgg():
    return hub.models.VGGBackbone([2, 2, 3], [16, 32, 64], **IMAGE)


def _xception():
    filters = [[32, 64], [64, 128], [128, 128]]
    return hub.models.XceptionBackbone(filters, [True, True, False], **IMAGE)


def _efficientnet():
    return hub.models.EfficientNetBackbone(
        stackwise_kernel_sizes=[3, 3, 5],
        stackwise_num_repeats=[1, 2, 2],
        stackwise_input_filters=[16, 16, 24],
        stackwise_output_filters=[16, 24, 32],
        stackwise_expansion_ratios=[1, 4, 4],
        stackwise_squeeze_and_excite_ratios=[0, 0.25, 0.25],
        stackwise_strides=[1, 2, 2],
        stackwise_block_types=["fused", "unfused", "unfused"],
        stackwise_force_input_filters=[0, 0, 0],
        stackwise_nores_option=[False] * 3,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        **IMAGE,
    )


def _hgnet():
    return hub.models.HGNetV2Backbone(
        depths=[1, 2],
        embedding_size=32,
        hidden_sizes=[64, 128],
        stem_channels=[3, 16, 32],
        hidden_act="relu",
        use_learnable_affine_block=True,
        stackwise_stage_filters=[(32, 16, 64, 1, 1, 3), (64, 32, 128, 2, 1, 3)],
        apply_downsample=[False, True],
        use_lightweight_conv_block=[False, True],
        **IMAGE,
    )


def _mit():
    return hub.models.MiTBackbone(
        layerwise_depths=[2, 2],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[8, 4],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        hidden_dims=[32, 64],
        **IMAGE,
    )


def _vit():
    return hub.models.ViTBackbone(
        patch_size=(16, 16),
        num_layers=2,
        num_heads=4,
        hidden_dim=32,
        mlp_dim=64,
        **IMAGE,
    )


def _whisper():
    lengths = {"max_encoder_sequence_length": 64, "max_decoder_sequence_length": 16}
    return hub.models.WhisperBackbone(**lengths, **TEXT)


BACKBONES = {
    "resnet": lambda: _resnet("bottleneck_block"),
    "resnet_v2": lambda: _resnet("bottleneck_block", use_pre_activation=True),
    "resnet_vd": lambda: _resnet("basic_block_vd"),
    "densenet": _densenet,
    "vgg": _vgg,
    "xception": _xception,
    "efficientnet": _efficientnet,
    "hgnet": _hgnet,
    "mit": _mit,
    "vit": _vit,
    "whisper": _whisper,
    "bert": lambda: hub.models.BertBackbone(**TEXT),
    "roberta": lambda: hub.models.RobertaBackbone(**TEXT),
    "bart": lambda: hub.models.BartBackbone(**TEXT),
    "albert": lambda: hub.models.AlbertBackbone(embedding_dim=16, **TEXT),
    "gpt2": lambda: hub.models.GPT2Backbone(**TEXT),
    "opt": lambda: hub.models.OPTBackbone(**TEXT),
    "mistral": lambda: hub.models.MistralBackbone(**GROUPED),
    "qwen": lambda: hub.models.QwenBackbone(**GROUPED),
}


def _tokens(x):
    """Segments and masks are 0 or 1, so tokens are, too; images stay what they are."""
    return keras.ops.convert_to_tensor(x % 2 if "int" in str(x.dtype) else x)


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone(name):
    model = checker.randomize(BACKBONES[name]())
    before, graph = fingerprint(model), tfprune.Graph(model)
    masks = tfprune.select(graph, "magnitude", tfprune.Budget(flops_reduction=0.35))
    inputs = keras.tree.map_structure(_tokens, checker.make_inputs(model))
    small, masked = tfprune.compact(graph, masks), tfprune.apply_masks(graph, masks)
    dense, expected, received = (
        checker.outputs_of(each, inputs) for each in (model, masked, small)
    )
    assert checker.relative_error(expected, received) <= 1e-5
    assert checker.relative_error(dense, received) > 1e-3, "blind"
    assert tfprune.cost(small).macs == tfprune.cost(graph, masks).macs
    loaded = checker.outputs_of(saved_and_loaded(small), inputs)
    assert checker.relative_error(received, loaded) == 0
    assert fingerprint(model) == before
