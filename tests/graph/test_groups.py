"""Groups, slices, layer masks and reasons: what a graph says about a model."""

import checker
import keras
import numpy as np
import pytest
from invariants import random_masks
from keras import layers

import tfprune


@pytest.fixture
def graph(make_residual):
    return tfprune.Graph(checker.randomize(make_residual(8)))


def groups(graph) -> dict:
    return {group.name: (group.size, set(group.layers)) for group in graph.groups}


def test_groups_of_a_residual_network(graph):
    found = groups(graph)
    assert list(found) == [
        "stem_conv",
        "block1_a_conv",
        "block2_a_conv",
        "block2_b_conv",
    ]
    assert found["stem_conv"] == (
        8,
        {"stem_conv", "stem_bn", "block1_b_conv", "block1_b_bn"},
    )
    assert found["block1_a_conv"] == (8, {"block1_a_conv", "block1_a_bn"})
    size, members = found["block2_b_conv"]
    assert size == 16 and {"block2_shortcut_conv", "block2_b_conv"} <= members


def test_names_are_the_same_after_files_copies_and_rebuilding(graph, tmp_path):
    model = graph.model
    model.save(tmp_path / "model.keras")
    masks = random_masks(graph)
    twins = {
        "loaded": keras.models.load_model(tmp_path / "model.keras"),
        "clone": keras.models.clone_model(model),
        "masked": tfprune.apply_masks(model, masks),
        "stripped": tfprune.strip(tfprune.prune_wrap(model)),
    }
    for name, twin in twins.items():
        assert groups(tfprune.Graph(twin)) == groups(graph), name
    small = tfprune.Graph(tfprune.compact(model, masks))
    assert [g.name for g in small.groups] == [g.name for g in graph.groups]


def test_slices_by_eye():
    model = keras.Sequential(
        [layers.Input((2, 2, 1)), layers.Conv2D(3, 1, name="conv")]
    )
    model.add(layers.BatchNormalization(name="bn"))
    model.add(layers.Flatten())
    model.add(layers.Dense(2, name="dense"))
    (group,) = tfprune.Graph(model).groups
    assert (group.name, group.size, group.layers) == ("conv", 3, ("conv", "bn"))
    parts = {(s.path, s.variable.name): s for s in group.slices}
    assert parts["conv", "kernel"].axis == 3 and not parts["conv", "kernel"].read
    assert parts["conv", "bias"].indices.tolist() == [[0], [1], [2]]
    assert {name for path, name in parts if path == "bn"} == {
        "gamma",
        "beta",
        "moving_mean",
        "moving_variance",
    }
    read = parts["dense", "kernel"]
    assert read.read and read.axis == 0
    assert read.indices.tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    assert read.values().shape == (3, 8)
    kernel = read.variable.numpy()
    assert np.array_equal(read.values()[1], kernel[[1, 4, 7, 10]].ravel())


def test_slices_cover_every_entry_once_per_axis(graph):
    seen = {}
    for group in graph.groups:
        for part in group.slices:
            key = (id(part.variable), part.axis)
            assert len(part.indices) == group.size
            seen.setdefault(key, []).extend(part.indices.ravel().tolist())
    for indices in seen.values():
        assert len(indices) == len(set(indices))


def test_concatenation_makes_a_group_per_branch():
    inputs = layers.Input((4, 4, 2))
    parts = [layers.Conv2D(w, 1, name=n)(inputs) for n, w in (("a", 3), ("b", 5))]
    x = layers.BatchNormalization(name="bn")(layers.Concatenate()(parts))
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="out")(x))
    graph = tfprune.Graph(model)
    assert {g.name: g.size for g in graph.groups} == {"a": 3, "b": 5}
    masks = {"b": np.array([True, False, True, True, False])}
    expected = [True] * 3 + [True, False, True, True, False]
    assert graph.layer_masks(masks)["bn"].tolist() == expected
    assert graph.layer_masks(masks)["concatenate"].tolist() == expected
    assert "a" not in graph.layer_masks(masks)


def test_slicing_splits_a_layer_into_groups():
    inputs = layers.Input((6,))
    x = layers.Dense(6, name="a")(inputs)
    y = layers.Dense(2, name="b")(x[:, :2])
    x = layers.Concatenate()([y, layers.Dense(3, name="c")(x[:, 2:])])
    model = keras.Model(inputs, layers.Dense(1, name="out")(x))
    names = {g.name: g.size for g in tfprune.Graph(model).groups}
    assert names == {"a": 2, "a:1": 4, "b": 2, "c": 3}


def test_layer_masks_are_what_compact_does(graph):
    masks = random_masks(graph)
    small = tfprune.compact(graph.model, masks)
    found = graph.layer_masks(masks)
    assert "logits" not in found and "stem_act" in found
    for path, mask in found.items():
        assert small.get_layer(path).output.shape[-1] == mask.sum()
    for layer in graph.model.layers:
        if layer.name not in found:
            assert small.get_layer(layer.name).output.shape == layer.output.shape


def test_layer_masks_of_a_layer_with_states():
    inputs = layers.Input((5, 6))
    _, h, c = layers.LSTM(8, return_state=True, name="a")(inputs)
    x = layers.Dense(2)(layers.Concatenate()([h, c]))
    masks = {"a": np.arange(8) < 3}
    found = tfprune.Graph(keras.Model(inputs, x)).layer_masks(masks)
    assert found["a"].tolist() == masks["a"].tolist()


def test_layer_masks_of_no_masks_are_empty(graph):
    assert graph.layer_masks({}) == {}


def test_locked_says_why(graph):
    assert graph.locked == {"logits": "an output of the model"}
    inputs = layers.Input((4, 4, 2))
    x = layers.Conv2D(4, 1, name="a")(inputs)
    x = layers.LayerNormalization(name="norm")(x)
    other = tfprune.Graph(keras.Model(inputs, layers.Conv2D(2, 1, name="b")(x)))
    assert "normalizes across" in other.locked["a"]
    assert other.skipped.keys() == {"norm"}
    assert other.locked["b"] == "an output of the model"


def test_group_by_name_and_by_pattern(graph):
    assert graph.group("stem_conv") is graph.groups[0]
    assert [g.name for g in graph.match("block1_*")] == ["stem_conv", "block1_a_conv"]
    assert [g.name for g in graph.match("block1_b_bn")] == ["stem_conv"]
    with pytest.raises(ValueError, match="Its groups are: stem_conv"):
        graph.group("stem")
    with pytest.raises(ValueError, match="no such layer"):
        graph.match("nothing*")
    with pytest.raises(ValueError, match="has no channels that can go"):
        graph.match("logits")


def test_summary_names_every_group_and_what_is_skipped():
    inputs = layers.Input((4, 4, 2))
    x = layers.LayerNormalization(name="norm")(layers.Conv2D(4, 1, name="a")(inputs))
    x = layers.Conv2D(5, 1, name="b")(x)
    text = tfprune.Graph(keras.Model(inputs, layers.Conv2D(2, 1)(x))).summary()
    assert "b: 5" in text and "skipped norm" in text


def test_layers_are_in_call_order(graph):
    names = [x.name for x in graph.model.layers if x.name != "image"]
    assert sorted(graph.layers) == sorted(names)
    assert graph.layers[0] == "stem_conv" and graph.layers[-1] == "logits"


def test_a_rule_of_ones_own():
    class Doubled(layers.Layer):
        def __init__(self, units, **kwargs):
            super().__init__(**kwargs)
            self.units = units

        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")

        def call(self, x):
            return 2 * keras.ops.matmul(x, self.kernel)

        def get_config(self):
            return {**super().get_config(), "units": self.units}

    keras.saving.register_keras_serializable("tfprune_tests")(Doubled)

    @tfprune.register_rule(Doubled, sizes={"units": ("kernel", -1)})
    def doubled(call, x):
        kernel = call.operation.kernel
        call.read(kernel, 0, x, -1)
        return call.outputs[0].with_labels({-1: call.make(kernel, 1)})

    inputs = layers.Input((4,))
    x = layers.Dense(8, "relu", name="a")(inputs)
    x = Doubled(6, name="b")(x)
    model = checker.randomize(keras.Model(inputs, layers.Dense(2)(x)))
    graph = tfprune.Graph(model)
    assert {g.name: g.size for g in graph.groups} == {"a": 8, "b": 6}
    small = tfprune.compact(model, random_masks(graph))
    checker.check_slices(model, small)
    assert small.get_layer("b").units == 3
