"""Importances: scores by eye, and the contract that every importance keeps."""

import checker
import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tfprune import importances
from tfprune.importances import (
    Fisher,
    GeometricMedian,
    Magnitude,
    Molchanov,
    Random,
    Scale,
    Taylor,
)

IMPORTANCES = {
    "magnitude": Magnitude(),
    "magnitude_l1": Magnitude(p=1),
    "magnitude_raw": Magnitude(normalize=False),
    "geometric_median": GeometricMedian(),
    "random": Random(),
    "random_seed": Random(seed=3),
    "scale": Scale(),
    "scale_sum": Scale(reduction="sum"),
    "taylor": Taylor(),
    "molchanov": Molchanov(),
    "molchanov_mean": Molchanov(reduction="mean"),
    "fisher": Fisher(),
}


def dense_net(kernels, names="ab"):
    model = keras.Sequential([layers.Input((len(kernels[0]),))])
    for kernel, name in zip(kernels, names, strict=False):
        model.add(layers.Dense(len(kernel[0]), name=name))
        model.layers[-1].kernel.assign(kernel)
    model.add(layers.Dense(1, name="out"))
    return tfprune.Graph(model)


@pytest.mark.parametrize("name", sorted(IMPORTANCES))
def test_contract(name, make_residual):
    importance = IMPORTANCES[name]
    model = checker.randomize(make_residual(8))
    graph = tfprune.Graph(model)
    if importances.needs_data(importance):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss)
        x = np.random.default_rng(0).normal(size=(6, 8, 8, 3))
        importance.update_state(model, x.astype("float32"), np.arange(6) % 3)
    scores = importance(graph)
    assert scores.keys() == {group.name for group in graph.groups}
    for group in graph.groups:
        assert scores[group.name].shape == (group.size,)
        assert scores[group.name].dtype == np.float32
        assert np.isfinite(scores[group.name]).all()
        assert (scores[group.name] >= 0).all()
        assert np.unique(scores[group.name]).size > 1
    again = importance(tfprune.Graph(model))
    wrapped = importance(tfprune.Graph(tfprune.prune_wrap(model)))
    for key in scores:
        assert np.array_equal(scores[key], again[key])
        assert np.array_equal(scores[key], wrapped[key])


def test_norms_by_eye():
    graph = dense_net([[[3.0, 0.0], [4.0, -1.0]]])
    assert Magnitude(normalize=False)(graph)["a"].tolist() == [5.0, 1.0]
    assert Magnitude(p=1, normalize=False)(graph)["a"].tolist() == [7.0, 1.0]
    np.testing.assert_allclose(Magnitude()(graph)["a"], [5 / 3, 1 / 3])


def test_the_filter_in_the_middle_can_be_replaced():
    graph = dense_net([[[0.0, 1.0, 2.0, 3.0, 10.0]]])
    sums = GeometricMedian(normalize=False)(graph)["a"]
    np.testing.assert_allclose(sums, [16, 13, 12, 13, 34], rtol=1e-6)
    (gone,) = np.flatnonzero(
        ~tfprune.select(graph, "geometric_median", tfprune.Budget(sparsity=0.2))["a"]
    )
    assert gone == 2
    (gone,) = np.flatnonzero(
        ~tfprune.select(graph, "magnitude", tfprune.Budget(sparsity=0.2))["a"]
    )
    assert gone == 0


def test_distances_between_filters():
    random = np.random.default_rng(0)
    # Far from zero and close together, where few digits differ.
    kernel = 1000 + 1e-3 * random.normal(size=(7, 6)).astype("float32")
    filters = np.float64(np.float32(kernel)).T
    pairs = np.linalg.norm(filters[:, None] - filters, axis=-1).sum(axis=1)
    scores = GeometricMedian(normalize=False)(dense_net([kernel]))["a"]
    np.testing.assert_allclose(scores, pairs, rtol=1e-6)
    relative = GeometricMedian()(dense_net([kernel]))["a"]
    np.testing.assert_allclose(relative, pairs / pairs.mean(), rtol=1e-5)


def test_a_layer_of_another_scale_scores_alike():
    one = dense_net([[[3.0, 0.5], [4.0, -1.0]]])
    other = dense_net([[[300.0, 50.0], [400.0, -100.0]]])
    np.testing.assert_allclose(
        Magnitude()(one)["a"], Magnitude()(other)["a"], rtol=1e-6
    )


def test_coupled_kernels_are_averaged():
    inputs = layers.Input((1,))
    a, b = layers.Dense(2, name="a"), layers.Dense(2, name="b")
    x = layers.Add()([a(inputs), b(inputs)])
    model = keras.Model(inputs, layers.Dense(1)(x))
    a.kernel.assign([[1.0, 3.0]])
    b.kernel.assign([[5.0, 1.0]])
    (scores,) = Magnitude(normalize=False)(tfprune.Graph(model)).values()
    assert scores.tolist() == [3.0, 2.0]


def test_what_reads_the_units_does_not_count():
    graph = dense_net([[[1.0, 2.0]], [[100.0], [0.0]]])
    assert Magnitude(normalize=False)(graph)["a"].tolist() == [1.0, 2.0]


def test_zero_layer_scores_zero():
    graph = dense_net([[[0.0, 0.0]]])
    assert Magnitude()(graph)["a"].tolist() == [0.0, 0.0]


def test_padding_scores_zero():
    inputs = layers.Input((4, 4, 3))
    x = keras.ops.pad(layers.Conv2D(4, 1, name="a")(inputs), ((0, 0),) * 3 + ((0, 2),))
    model = keras.Model(inputs, layers.Conv2D(2, 1)(x))
    graph = tfprune.Graph(model)
    scores = Magnitude()(graph)
    made_up = [g.name for g in graph.groups if g.size == 2]
    assert scores[made_up[0]].tolist() == [0.0, 0.0]


def test_random_differs_by_seed_only(make_vgg):
    graph = tfprune.Graph(make_vgg())
    one, other = Random(seed=1)(graph), Random(seed=2)(graph)
    assert not np.array_equal(one["conv1"], other["conv1"])
    assert not np.array_equal(one["conv1"], one["conv2"][:8])


def test_get():
    assert isinstance(importances.get("magnitude"), Magnitude)
    assert isinstance(importances.get("random"), Random)
    assert importances.get(len) is len


@pytest.mark.parametrize("value", ["magnitud", None, 3, Magnitude])
def test_get_refuses_what_is_no_importance(value):
    with pytest.raises(ValueError, match="`importance` must be one of"):
        importances.get(value)


def test_other_norms_are_refused():
    with pytest.raises(ValueError, match="`p` must be 1 or 2"):
        Magnitude(p=3)
