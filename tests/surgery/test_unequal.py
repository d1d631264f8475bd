"""normalization="prune": channels under LayerNormalization and its kin go too."""

import importlib

import checker
import keras
import numpy as np
import pytest
from invariants import check_all, check_costs, random_masks
from keras import layers

import tfprune


def transformer(norm, heads=2, **arguments):
    inputs = keras.Input((6, 5))
    x = layers.Dense(12, name="stream")(inputs)
    for number in range(2):
        y = norm(name=f"norm_a{number}", **arguments)(x)
        x = x + layers.MultiHeadAttention(heads, 3, name=f"attention{number}")(y, y)
        y = norm(name=f"norm_b{number}", **arguments)(x)
        y = layers.Dense(16, "gelu", name=f"up{number}")(y)
        x = x + layers.Dense(12, name=f"down{number}")(y)
    x = layers.GlobalAveragePooling1D()(norm(name="last", **arguments)(x))
    return checker.randomize(keras.Model(inputs, layers.Dense(3, name="logits")(x)))


NORMS = {
    "layer": (layers.LayerNormalization, {}),
    "layer_without_weights": (
        layers.LayerNormalization,
        {"scale": False, "center": False},
    ),
    "root_mean_square": (layers.RMSNormalization, {}),
    "unit": (layers.UnitNormalization, {}),
    "one_group": (layers.GroupNormalization, {"groups": 1}),
}


@pytest.mark.parametrize("case", NORMS)
def test_the_stream_narrows(case):
    norm, arguments = NORMS[case]
    model = transformer(norm, **arguments)
    stays = tfprune.Graph(model)
    assert "stream" in stays.locked and not stays.unequal
    graph = tfprune.Graph(model, normalization="prune")
    assert set(graph.unequal) == {
        "norm_a0", "norm_b0", "norm_a1", "norm_b1", "last"
    }  # fmt: skip
    assert "not equal norm_a0" in graph.summary()
    masks = random_masks(graph)
    small = tfprune.compact(graph, masks)
    assert small.get_layer("stream").units == 6
    check_costs(graph, small, masks)
    masked = tfprune.apply_masks(graph, masks)
    assert not np.any(masked.get_layer("down0").bias.numpy()[~masks["stream"]])


def test_statistics_are_those_of_the_channels_that_are_left():
    inputs = keras.Input((4,))
    x = layers.Dense(6, name="stream")(inputs)
    x = layers.LayerNormalization(name="norm")(x)
    model = keras.Model(inputs, layers.Dense(3, name="logits")(x))
    checker.randomize(model)
    graph = tfprune.Graph(model, normalization="prune")
    keep = np.array([1, 0, 1, 1, 0, 1], bool)
    small = tfprune.compact(graph, {"stream": keep})
    stream, norm, logits = (
        model.get_layer(name) for name in ("stream", "norm", "logits")
    )
    probe = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    y = (probe @ stream.kernel.numpy() + stream.bias.numpy())[:, keep]
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-3)
    y = y * norm.gamma.numpy()[keep] + norm.beta.numpy()[keep]
    expected = y @ logits.kernel.numpy()[keep] + logits.bias.numpy()
    assert np.allclose(small(probe), expected, rtol=1e-4, atol=1e-4)


def test_a_normalization_over_steps_is_no_case_for_it():
    inputs = keras.Input((6, 5))
    x = layers.Dense(8, name="stream")(inputs)
    x = layers.LayerNormalization(axis=1, name="norm")(x)
    model = checker.randomize(keras.Model(inputs, layers.Dense(3)(x)))
    graph = tfprune.Graph(model, normalization="prune")
    assert not graph.unequal and not graph.skipped
    assert [group.name for group in graph.groups] == ["stream"]
    check_all(model)


def test_the_certificate_still_sees_a_wrong_slice(monkeypatch):
    graph = tfprune.Graph(transformer(layers.LayerNormalization), normalization="prune")
    masks = random_masks(graph)
    module = importlib.import_module("tfprune.surgery.compact")
    right = module.compact_unverified

    def wrong(*args):
        small = right(*args)
        kernel = small.get_layer("up0").kernel
        kernel.assign(kernel.numpy()[::-1])
        return small

    monkeypatch.setattr(module, "compact_unverified", wrong)
    with pytest.raises(ValueError, match="does not compute"):
        tfprune.compact(graph, masks)


def test_zeros_under_a_normalization_are_not_dead():
    model = transformer(layers.LayerNormalization)
    for name in ("stream", "down0", "down1"):
        layer = model.get_layer(name)
        layer.kernel.assign(layer.kernel.numpy() * (np.arange(12) > 3))
        layer.bias.assign(layer.bias.numpy() * (np.arange(12) > 3))
    graph = tfprune.Graph(model, normalization="prune")
    for options in ({}, {"fold": True}):
        small = tfprune.compact(graph, **options)
        assert small.get_layer("stream").units == 12


def test_prune_in_one_call():
    model = transformer(layers.LayerNormalization)
    graph = tfprune.Graph(model, normalization="prune")
    small = tfprune.prune(graph, 0.5, scope="uniform")
    assert small.get_layer("stream").units < 12
    assert tfprune.cost(small).macs <= 0.5 * tfprune.cost(model).macs
    with pytest.raises(ValueError, match='`normalization` must be "keep" or "prune"'):
        tfprune.Graph(model, normalization="drop")


def test_masks_of_one_kind_of_graph_do_not_fit_the_other():
    model = transformer(layers.LayerNormalization)
    masks = random_masks(tfprune.Graph(model, normalization="prune"))
    with pytest.raises(ValueError, match="another model"):
        tfprune.compact(model, masks)


def test_gates_come_off_first():
    model = transformer(layers.LayerNormalization)
    graph = tfprune.Graph(tfprune.prune_wrap(model), normalization="prune")
    masks = random_masks(graph)
    plain = tfprune.compact(tfprune.Graph(model, normalization="prune"), masks)
    small = tfprune.compact(graph, masks)
    inputs = checker.make_inputs(model)
    outputs = [checker.outputs_of(each, inputs) for each in (plain, small)]
    assert checker.relative_error(*outputs) < 1e-5
