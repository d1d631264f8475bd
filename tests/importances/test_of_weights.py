"""LOBS and per-sample Fisher: closed forms on models small enough to have them."""

import keras
import numpy as np
import pytest
from keras import layers

from tfprune import Budget, Graph, apply_masks, prune_wrap, select
from tfprune.importances import LOBS, WeightFisher
from tfprune.layers import WeightMask

RANDOM = np.random.default_rng(0)
MIXING = np.eye(6) + 0.3 * RANDOM.normal(size=(6, 6))
X = (RANDOM.normal(size=(200, 6)) @ MIXING).astype("float32")


def linear(outputs=3, **settings):
    dense = layers.Dense(outputs, use_bias=False, name="dense", **settings)
    return keras.Sequential([keras.Input((6,)), dense])


def graph_of(model):
    return Graph(model, unit="weight")


# LOBS ---------------------------------------------------------------------------------


def test_removing_one_weight_is_constrained_least_squares():
    model = linear(1)
    lobs = LOBS(damping=0)
    for part in np.array_split(X, 4):
        lobs.update_state(model, part)
    graph = graph_of(model)
    scores = lobs(graph)["dense/kernel"]
    weights = model.layers[0].kernel.numpy()
    target = X.astype(float) @ weights
    for gone in range(6):
        mask = np.arange(6) != gone
        kernel = lobs.compensated(graph, {"dense/kernel": mask})["dense/kernel"]
        best = np.linalg.lstsq(X[:, mask].astype(float), target, rcond=None)[0]
        np.testing.assert_allclose(kernel[mask], best, rtol=1e-4)
        assert kernel[gone] == 0
        # The score is what the error comes to.
        error = np.sum((X.astype(float) @ kernel - target) ** 2) / (2 * len(X))
        assert scores[gone] == pytest.approx(error, rel=1e-3)


def test_several_weights_of_several_units_at_once():
    model = linear(3)
    lobs = LOBS(damping=0)
    lobs.update_state(model, X)
    graph = graph_of(model)
    masks = select(graph, lobs, Budget(sparsity=0.5), scope="uniform")
    kernel = lobs.compensated(graph, masks)["dense/kernel"]
    mask = masks["dense/kernel"].reshape(6, 3)
    assert mask.sum() == 9 and not kernel[~mask].any()
    for unit in range(3):
        keep = mask[:, unit]
        target = X @ model.layers[0].kernel.numpy()[:, unit]
        best = np.linalg.lstsq(X[:, keep], target, rcond=None)[0]
        np.testing.assert_allclose(kernel[keep, unit], best, rtol=1e-3)

    sparse = apply_masks(graph, masks, kernels=lobs.compensated(graph, masks))
    plain = apply_masks(graph, masks)
    errors = [
        np.sum((m.predict(X, verbose=0) - model(X)) ** 2) for m in (sparse, plain)
    ]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("padding, strides", [("valid", 1), ("same", 2)])
def test_convolutions_are_seen_by_their_patches(padding, strides):
    conv = layers.Conv2D(4, 3, strides, padding, name="conv", use_bias=False)
    model = keras.Sequential([keras.Input((7, 7, 2)), conv])
    x = RANDOM.normal(size=(30, 7, 7, 2)).astype("float32")
    lobs = LOBS(damping=0)
    lobs.update_state(model, x)
    graph = graph_of(model)
    mask = np.ones((3, 3, 2, 4), bool)
    mask[1, 2, 0, 3] = mask[0, 0, 1, 3] = False
    kernel = lobs.compensated(graph, {"conv/kernel": mask.reshape(-1)})["conv/kernel"]
    before = model.predict(x, verbose=0)

    def error(kernel):
        model.layers[0].kernel.assign(kernel)
        return np.sum((model.predict(x, verbose=0) - before) ** 2)

    least = error(kernel)
    # No step from there, along what may move, is better.
    for _ in range(10):
        step = 1e-2 * RANDOM.normal(size=kernel.shape) * mask
        assert error(kernel + step) > least


def test_what_it_cannot_see_stays_whole():
    inputs = keras.Input((7, 7, 4))
    x = layers.DepthwiseConv2D(3, name="depthwise")(inputs)
    x = layers.Conv2D(4, 3, groups=2, name="grouped")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(3, name="logits")(x))
    lobs = LOBS()
    lobs.update_state(model, RANDOM.normal(size=(9, 7, 7, 4)).astype("float32"))
    scores = lobs(graph_of(model))
    assert np.isinf(scores["grouped/kernel"]).all()
    assert np.isinf(scores["depthwise/kernel"]).all()
    assert np.isfinite(scores["logits/kernel"]).all()


def test_damping_and_dead_inputs():
    x = X.copy()
    x[:, 2] = 0
    model = linear(kernel_initializer="ones")
    lobs = LOBS(damping=0)
    lobs.update_state(model, x)
    few = LOBS(damping=0)
    few.update_state(model, X[: X.shape[1] - 1])
    with pytest.raises(ValueError, match="linearly dependent.*damping=0"):
        few(graph_of(model))
    dead = LOBS()
    dead.update_state(model, np.zeros_like(X))
    assert max(scores.max() for scores in dead(graph_of(model)).values()) < 1e-3
    broken = LOBS()
    broken.update_state(model, np.full_like(X, np.nan))
    with pytest.raises(ValueError, match="not finite on the data seen"):
        broken(graph_of(model))
    with pytest.raises(ValueError, match="linearly dependent.*damping=0"):
        lobs(graph_of(model))
    lobs = LOBS()
    lobs.update_state(model, x)
    scores = lobs(graph_of(model))["dense/kernel"].reshape(6, 3)
    # What nothing goes through goes first.
    assert scores[2].max() < 1e-2 * np.delete(scores, 2, axis=0).min()
    with pytest.raises(ValueError, match="`damping` must be at least 0"):
        LOBS(damping=-1)


# Fisher -------------------------------------------------------------------------------


def compiled(model, loss="mse"):
    model.compile("sgd", loss)
    return model


def logistic(penalty=None):
    model = linear(2, kernel_regularizer=penalty)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return compiled(model, loss)


def expected(model, x, y):
    """Half the squared weight times the mean squared gradient of one sample."""
    weights = model.layers[0].kernel.numpy().astype(float)
    scores = np.exp(x @ weights)
    error = scores / scores.sum(1, keepdims=True) - np.eye(2)[y]
    gradients = x[:, :, None] * error[:, None]
    return weights**2 * (gradients**2).mean(0) / 2


@pytest.mark.parametrize("penalty", [None, "l2"])
def test_fisher_of_logistic_regression(penalty):
    model, y = logistic(penalty), RANDOM.integers(0, 2, 200)
    fisher = WeightFisher()
    for part in (slice(0, 50), slice(50, 57), slice(57, 200)):
        fisher.update_state(model, X[part], y[part])
    scores = fisher(graph_of(model))["dense/kernel"].reshape(6, 2)
    np.testing.assert_allclose(scores, expected(model, X, y), rtol=1e-4)


def test_fisher_of_one_sample_is_half_the_square_of_taylor():
    import tensorflow as tf

    model, y = logistic(), np.array([1])
    fisher = WeightFisher()
    fisher.update_state(model, X[:1], y)
    kernel = model.layers[0].kernel
    with tf.GradientTape() as tape:
        loss = model.compute_loss(y=y, y_pred=model(X[:1]))
    taylor = abs(tape.gradient(loss, kernel.value) * kernel.numpy())
    scores = fisher(graph_of(model))["dense/kernel"].reshape(6, 2)
    np.testing.assert_allclose(scores, taylor**2 / 2, rtol=1e-5)


def test_fisher_tells_the_cost_of_removal_near_a_minimum():
    keras.utils.set_random_seed(0)
    model = logistic()
    x = RANDOM.normal(size=(4000, 6)).astype("float32")
    truth = np.array([[1.0, -0.5, 0.3, 0.15, 0, 0.7]]).T
    y = (RANDOM.random(4000) < 1 / (1 + np.exp(-2 * x @ truth[:, 0]))).astype(int)
    model.compile(keras.optimizers.Adam(0.05), model.loss)
    model.fit(x, y, batch_size=4000, epochs=100, verbose=0)
    fisher = WeightFisher()
    fisher.update_state(model, x, y)
    scores = fisher(graph_of(model))["dense/kernel"]
    kernel = model.layers[0].kernel
    weights, before = kernel.numpy(), model.evaluate(x, y, verbose=0, batch_size=4000)
    # The leading order: for weights that matter little.
    for place in np.argsort(scores)[4:8]:
        kernel.assign(np.where(np.arange(12).reshape(6, 2) == place, 0, weights))
        cost = model.evaluate(x, y, verbose=0, batch_size=4000) - before
        assert cost == pytest.approx(scores[place], rel=0.5, abs=2e-4)
    kernel.assign(weights)


def test_fisher_of_an_embedding_is_that_of_the_dense_layer_of_its_one_hot_rows():
    tokens, y = RANDOM.integers(5, size=(8, 6)), RANDOM.integers(2, size=8)
    rows = np.eye(5, dtype="float32")[tokens]

    def scores(first, x):
        parts = [first, layers.GlobalAveragePooling1D(), layers.Dense(2)]
        model = keras.Sequential([keras.Input(x.shape[1:]), *parts])
        model.set_weights(weights)
        fisher = WeightFisher()
        fisher.update_state(compiled(model, logistic().loss), x, y)
        return fisher(graph_of(model))["first/" + first.weights[0].name]

    sizes = (5, 4), (4, 2), (2,)
    weights = [RANDOM.normal(size=size) for size in sizes]
    expected = scores(layers.Dense(4, use_bias=False, name="first"), rows)
    found = scores(layers.Embedding(5, 4, name="first"), tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


# Both ---------------------------------------------------------------------------------


@pytest.mark.parametrize("importance", [LOBS, WeightFisher])
def test_as_all_importances_of_weights(importance, make_residual, images):
    model = compiled(make_residual(), "sparse_categorical_crossentropy")
    score = importance()
    graph = graph_of(model)
    with pytest.raises(ValueError, match="has seen none"):
        score(graph)
    score.update_state(model, *images)
    masks = select(graph, score, Budget(sparsity=0.5), scope="uniform")
    assert all(abs(mask.mean() - 0.5) < 0.02 for mask in masks.values())
    gated = compiled(prune_wrap(model, WeightMask), model.loss)
    again = importance()
    again.update_state(gated, *images)
    for name, own in score(graph).items():
        np.testing.assert_allclose(again(graph_of(gated))[name], own, rtol=1e-3)
    with pytest.raises(ValueError, match="unit='channel'"):
        score(Graph(model))
    score.reset_state()
    with pytest.raises(ValueError, match="has seen none"):
        score(graph)


def test_kernels_for_masks_are_checked(make_vgg):
    graph = graph_of(make_vgg())
    masks = select(graph, "magnitude", Budget(sparsity=0.5))
    with pytest.raises(ValueError, match="No group is named 'none'"):
        apply_masks(graph, masks, kernels={"none": 0})
    with pytest.raises(ValueError, match=r"shapes of the model's.*\(3,\)"):
        apply_masks(graph, masks, kernels={"conv1/kernel": np.zeros(3)})
    with pytest.raises(ValueError, match="go with masks of single weights"):
        apply_masks(graph.model, {}, kernels={})
