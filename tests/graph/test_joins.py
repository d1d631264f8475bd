"""residual="independent": branches lose channels of their own, sums none."""

import zipfile

import checker
import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import resnet56
from keras import layers, ops

import tfprune
from tfprune import Budget, Graph


def both(model, x):
    return np.asarray(model(x))


def check(model, graph, masks):
    """Masked and small agree, costs are exact, and the small model is narrower."""
    masked = tfprune.apply_masks(graph, masks)
    small = tfprune.compact(graph, masks)
    inputs = checker.make_inputs(model)
    outputs = (checker.outputs_of(each, inputs) for each in (masked, small))
    assert checker.relative_error(*outputs) < 1e-5
    assert tfprune.cost(small).macs == tfprune.cost(graph, masks).macs
    assert tfprune.cost(small).params == tfprune.cost(graph, masks).params
    return small


def half(graph, seed=0):
    random = tfprune.importances.Random(seed)
    return tfprune.select(graph, random, Budget(flops_reduction=0.5))


@pytest.fixture
def model(make_residual):
    return checker.randomize(make_residual(8))


def test_every_branch_is_a_group_of_its_own(model):
    coupled = {g.name: g.layers for g in Graph(model).groups}
    assert "block1_b_conv" in coupled["stem_conv"]
    graph = Graph(model, residual="independent")
    names = {group.name for group in graph.groups}
    assert {
        "stem_conv",
        "block1_b_conv",
        "block2_b_conv",
        "block2_shortcut_conv",
    } <= names
    assert graph.group("block1_b_conv").layers == ("block1_b_conv", "block1_b_bn")
    assert not graph.skipped
    assert "pruned on their own" in graph.locked["block1_add"]


@pytest.mark.parametrize("seed", range(3))
def test_masked_equals_small(model, seed):
    graph = Graph(model, residual="independent")
    masks = half(graph, seed)
    small = check(model, graph, masks)
    # Each branch has lost channels of its own.
    assert not np.array_equal(masks["stem_conv"], masks["block1_b_conv"])
    widths = {g.name: int(masks[g.name].sum()) for g in graph.groups}
    for name in ("stem_conv", "block1_b_conv", "block2_shortcut_conv"):
        assert small.get_layer(name).filters == widths[name]
    assert small.get_layer("block1_add").output.shape[-1] == 8


@pytest.mark.parametrize(
    "kept", [[0, 1, 2], [5, 6, 7], [2, 3, 4], [0, 2, 7], [3], range(8)]
)
def test_channels_come_to_their_old_places(model, kept):
    graph = Graph(model, residual="independent")
    masks = {"block1_b_conv": np.isin(np.arange(8), kept)}
    small = check(model, graph, masks)
    added = keras.Model(small.inputs, small.get_layer("block1_add").output)
    before = keras.Model(small.inputs, small.get_layer("stem_act").output)
    x = checker.make_inputs(model)
    part = both(added, x) - both(before, x)
    used = np.abs(part).reshape(-1, 8).max(0) > 0
    assert np.flatnonzero(used).tolist() == list(kept)


def test_what_scattering_writes_is_counted(model):
    graph = Graph(model, residual="independent")
    assert tfprune.cost(graph).scattered == 0
    masks = {
        "block1_b_conv": np.arange(8) < 5,
        "block2_shortcut_conv": np.arange(16) < 9,
    }
    assert tfprune.cost(graph, masks).scattered == 8 * 8 * 8 + 4 * 4 * 16
    assert tfprune.cost(Graph(model), None).scattered == 0


@pytest.mark.parametrize(
    "add",
    [
        lambda a, b, c: layers.Add()([a, b, c]),
        lambda a, b, c: layers.Add()(inputs=[a, b, c]),
        lambda a, b, c: a + b + c,
        lambda a, b, c: ops.add(x2=a, x1=b) + c,
    ],
)
def test_all_ways_to_add(add):
    inputs = layers.Input((6, 6, 3))
    x, y, z = (layers.Conv2D(8, 3, name=n)(inputs) for n in "xyz")
    out = layers.Conv2D(4, 1)(layers.ReLU()(add(x, y, z)))
    model = checker.randomize(keras.Model(inputs, out))
    graph = Graph(model, residual="independent")
    assert {"x", "y", "z"} <= {group.name for group in graph.groups}
    check(model, graph, half(graph))


def test_other_sums_stay_coupled():
    inputs = layers.Input((6, 6, 3))
    x, y = (layers.Conv2D(8, 3, name=n)(inputs) for n in "xy")
    scaled = x * y + 1.0
    bias = layers.Reshape((1, 1, 8))(
        layers.Dense(8)(layers.GlobalMaxPooling2D()(scaled))
    )
    out = layers.Conv2D(4, 1)(layers.Subtract()([scaled, bias]))
    model = checker.randomize(keras.Model(inputs, out))
    graph = Graph(model, residual="independent")
    assert graph.groups[0].layers[:2] == Graph(model).groups[0].layers[:2]
    check(model, graph, half(graph))


BRANCHES = {
    "activated": (lambda x: layers.Dense(8, "sigmoid", name="own")(x), False),
    "activated_later": (
        lambda x: layers.Activation("sigmoid")(layers.Dense(8, name="own")(x)),
        False,
    ),
    "shifted": (
        lambda x: layers.Rescaling(1.0, 0.5)(layers.Dense(8, name="own")(x)),
        False,
    ),
    "shifted_back": (lambda x: layers.Dense(8, name="own")(x) + 0.5 - 0.5, True),
    "normalized": (
        lambda x: layers.BatchNormalization()(
            layers.Dense(8, "exponential", name="own")(x)
        ),
        True,
    ),
    "normalized_without_a_scale": (
        lambda x: layers.BatchNormalization(scale=False)(
            layers.Dense(8, "sigmoid", name="own")(x)
        ),
        False,
    ),
    "scaled": (
        lambda x: layers.Dense(8, name="own")(x) * layers.Dense(8, "sigmoid")(x),
        True,
    ),
    "joined": (
        lambda x: layers.Concatenate()(
            [layers.Dense(3, name="own")(x), layers.Dense(5, "sigmoid")(x)]
        ),
        True,
    ),
    "recurrent": (lambda x: layers.GRU(8, name="own")(x[:, None]), True),
    "recurrent_and_activated": (
        lambda x: layers.GRU(8, "sigmoid", name="own")(x[:, None]),
        False,
    ),
    "normalized_elsewhere": (
        lambda x: layers.Flatten()(
            layers.BatchNormalization(axis=1)(layers.Dense(8, name="own")(x)[:, None])
        ),
        False,
    ),
    "attended": (
        lambda x: layers.Flatten()(
            layers.AdditiveAttention()(
                [
                    layers.Dense(6)(x)[:, None],
                    layers.Dense(8, "sigmoid", name="own")(layers.RepeatVector(2)(x)),
                    layers.Dense(6)(layers.RepeatVector(2)(x)),
                ]
            )
        ),
        False,
    ),
    "wrapped_and_activated": (
        lambda x: layers.Flatten()(
            layers.TimeDistributed(layers.Dense(8, "sigmoid"), name="own")(x[:, None])
        ),
        False,
    ),
}


@pytest.mark.parametrize("case", BRANCHES)
def test_branches_lose_what_is_zero_when_masked(case):
    branch, loses = BRANCHES[case]
    inputs = layers.Input((6,))
    x = layers.Dense(12, "relu", name="stem")(inputs)
    x = layers.Add(name="sum")([layers.Dense(8, name="plain")(x), branch(x)])
    outputs = layers.Dense(3, name="logits")(layers.ReLU()(x))
    model = checker.randomize(keras.Model(inputs, outputs))
    graph = Graph(model, residual="independent")
    names = {group.name for group in graph.groups}
    assert {"stem", "plain"} <= names and ("own" in names) is loses
    check(model, graph, half(graph))
    if not loses:
        assert "'sum', where masking it may not leave 0" in graph.locked["own"]


def test_nothing_is_dead_that_is_added(model):
    graph = Graph(model, residual="independent")
    small = tfprune.compact(graph)
    assert tfprune.cost(small).macs == tfprune.cost(model).macs
    bn = model.get_layer("block1_b_bn")
    bn.gamma.assign(np.where(np.arange(8) < 3, 0, bn.gamma))
    bn.beta.assign(np.where(np.arange(8) < 3, 0, bn.beta))
    small = tfprune.compact(Graph(model, residual="independent"))
    assert small.get_layer("block1_b_conv").filters == 5
    assert small.get_layer("stem_conv").filters == 8


@pytest.mark.parametrize("fold", [False, True])
def test_folding_leaves_sums_alone(model, fold):
    graph = Graph(model, residual="independent")
    masks = half(graph)
    small = tfprune.compact(graph, masks, fold=fold)
    assert tfprune.cost(small).macs < 0.7 * tfprune.cost(model).macs


def test_optimized(model):
    graph = Graph(model, residual="independent")
    masks = half(graph)
    masked = tfprune.apply_masks(graph, masks)
    small = tfprune.compact(graph, masks, optimize=True)
    inputs = checker.make_inputs(model)
    outputs = (checker.outputs_of(each, inputs) for each in (masked, small))
    assert checker.relative_error(*outputs) < 1e-4


def test_saved_loaded_exported_without_tfprune(model, tmp_path):
    """That nothing of it is needed, tests of plain results show in a process."""
    graph = Graph(model, residual="independent")
    small = tfprune.compact(graph, half(graph))
    small.save(tmp_path / "small.keras")
    config = zipfile.ZipFile(tmp_path / "small.keras").read("config.json")
    assert b"tfprune" not in config
    tfprune.export(small, tmp_path / "small")
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    exported = tf.saved_model.load(tmp_path / "small")
    for run in (loaded, exported.serve):
        np.testing.assert_allclose(run(x), small(x), atol=1e-5)


def test_the_small_model_can_be_pruned_again(model):
    graph = Graph(model, residual="independent")
    small = tfprune.compact(graph, half(graph))
    again = tfprune.prune(small, flops_reduction=0.2)
    assert tfprune.cost(again).macs <= 0.8 * tfprune.cost(small).macs
    assert not Graph(small).skipped


def test_published_networks():
    build = keras.applications.MobileNetV2
    model = checker.randomize(build((64, 64, 3), weights=None, classes=10, alpha=0.35))
    graph = Graph(model, residual="independent")
    masks = half(graph)
    check(model, graph, masks)
    # Projections of one stage have masks of their own.
    kept = {
        n: m for n, m in masks.items() if n in ("block_4_project", "block_5_project")
    }
    assert len(kept) == 2


def test_resnet56_by_blocks():
    """As wide as it was between blocks, each block with a mask of its own."""
    model = checker.randomize(resnet56("padding"))
    graph = Graph(model, residual="independent")
    blocks = [f"stage{stage}_block{block}" for stage in range(3) for block in range(9)]
    names = {f"{each}_{place}_conv" for each in blocks for place in ("first", "second")}
    assert {group.name for group in graph.groups} == names | {"stem_conv"}
    masks = half(graph)
    small = check(model, graph, masks)
    assert len({masks[f"{each}_second_conv"].tobytes() for each in blocks[:9]}) == 9
    for each in blocks:
        kept = masks[f"{each}_second_conv"]
        assert small.get_layer(f"{each}_second_conv").filters == kept.sum()
        assert small.get_layer(f"{each}_add").output.shape[-1] == len(kept)


def test_bad_residual(model):
    with pytest.raises(
        ValueError, match='`residual` must be "coupled" or "independent"'
    ):
        Graph(model, residual="none")
