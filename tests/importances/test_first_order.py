"""Importances from gradients: closed forms, identities, and what must not matter."""

import checker
import keras
import numpy as np
import pytest
from builders import head, image
from keras import layers, ops

import tfprune
from tfprune.importances import Fisher, Molchanov, Scale, Taylor, WeightFisher

DATA_DRIVEN = [Taylor, Molchanov, Fisher]


def data(batch=6, size=8, seed=0, classes=3):
    random = np.random.default_rng(seed)
    x = random.normal(size=(batch, size, size, 3)).astype("float32")
    return x, random.integers(classes, size=batch)


def plain(activation="relu"):
    inputs = image()
    x = layers.Conv2D(6, 3, use_bias=False, name="a")(inputs)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Activation(activation)(x)
    x = layers.Conv2D(5, 3, activation=activation, name="b")(x)
    model = keras.Model(inputs, head(x))
    checker.randomize(model)
    compile_(model)
    return model


def compile_(model, loss=None):
    logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss or logits)


def scores_of(importance, model, *batches, graph=None):
    for batch in batches:
        importance.update_state(model, *batch)
    return importance(graph or tfprune.Graph(model))


def gradients(model, x, y, variables):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = model.compute_loss(y=y, y_pred=model(x, training=False), training=False)
    return [g.numpy() for g in tape.gradient(loss, [v.value for v in variables])]


# Taylor ------------------------------------------------------------------------------


def test_taylor_is_gate_times_gradient_on_any_normalized_model():
    model = plain()
    bn, x, y = model.get_layer("bn"), *data()
    gamma, beta = bn.gamma.numpy(), bn.beta.numpy()
    dgamma, dbeta = gradients(model, x, y, [bn.gamma, bn.beta])
    scores = scores_of(Taylor(), model, (x, y))
    expected = np.abs(gamma * dgamma + beta * dbeta)
    np.testing.assert_allclose(scores["a"], expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_taylor_is_weight_times_gradient_without_normalization(activation):
    model = plain(activation)
    layer, x, y = model.get_layer("b"), *data()
    dkernel, dbias = gradients(model, x, y, [layer.kernel, layer.bias])
    products = (layer.kernel.numpy() * dkernel).sum((0, 1, 2))
    expected = np.abs(products + layer.bias.numpy() * dbias)
    scores = scores_of(Taylor(), model, (x, y))
    np.testing.assert_allclose(scores["b"], expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("importance", DATA_DRIVEN)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_gates_do_not_matter(importance, activation):
    model = plain(activation)
    gated = tfprune.prune_wrap(model)
    compile_(gated)
    first = scores_of(importance(), model, data())
    second = scores_of(importance(), gated, data())
    for name, scores in first.items():
        np.testing.assert_allclose(scores, second[name], rtol=1e-4, atol=1e-7)
    # Scores of one model serve the graph of the other.
    third = scores_of(importance(), model, data(), graph=tfprune.Graph(gated))
    assert all(np.array_equal(first[name], third[name]) for name in first)


@pytest.mark.parametrize("scale", [True, False])
def test_taylor_is_exact_where_the_loss_is_linear_in_the_gate(scale):
    inputs = image()
    x = layers.Conv2D(5, 3, name="conv")(inputs)
    x = layers.BatchNormalization(name="bn", scale=scale)(x)
    x = layers.Dense(1, use_bias=False)(layers.GlobalAveragePooling2D()(x))
    model = tfprune.prune_wrap(checker.randomize(keras.Model(inputs, x)))
    compile_(model, lambda y, y_pred: 3 * ops.mean(y_pred, -1))
    x, y = data()
    scores = scores_of(Taylor(), model, (x, y))["conv"]
    gate = model.get_layer("bn").gate_variable
    values, loss = gate.numpy(), model.evaluate(x, y, verbose=0)
    for number in range(5):
        without = values.copy()
        without[number] = 0
        gate.assign(without)
        change = abs(model.evaluate(x, y, verbose=0) - loss)
        np.testing.assert_allclose(scores[number], change, rtol=2e-4, atol=1e-6)


def test_taylor_is_the_slope_of_the_loss():
    model = tfprune.prune_wrap(plain("tanh"))
    compile_(model)
    x, y = data()
    scores = scores_of(Taylor(), model, (x, y))["a"]
    gate = model.get_layer("bn").gate_variable
    values, step = gate.numpy(), 1e-2
    for number in range(6):
        losses = []
        for factor in (1 - step, 1 + step):
            moved = values.copy()
            moved[number] *= factor
            gate.assign(moved)
            losses.append(model.evaluate(x, y, verbose=0))
        slope = abs(losses[1] - losses[0]) / (2 * step)
        np.testing.assert_allclose(scores[number], slope, rtol=2e-2, atol=1e-4)
        gate.assign(values)


def test_taylor_takes_absolute_values_per_batch():
    model = plain()
    x, y = data(8)
    whole = scores_of(Taylor(), model, (x, y))
    halves = scores_of(Taylor(), model, (x[:4], y[:4]), (x[4:], y[4:]))
    singles = scores_of(
        Taylor(), model, *((x[i : i + 1], y[i : i + 1]) for i in range(8))
    )
    for name in whole:
        assert (halves[name] / 2 >= whole[name] - 1e-6).all()
        assert (singles[name] / 8 >= halves[name] / 2 - 1e-6).all()
        assert (singles[name] / 8 > whole[name] * 1.01).any()


def test_taylor_does_not_see_the_scale_of_kernels_before_a_normalization():
    model = plain()
    bn, kernel = model.get_layer("bn"), model.get_layer("a").kernel
    before = scores_of(Taylor(), model, data())
    kernel.assign(3 * kernel.numpy())
    bn.moving_mean.assign(3 * bn.moving_mean.numpy())
    variance = bn.moving_variance.numpy() + bn.epsilon
    bn.moving_variance.assign(9 * variance - bn.epsilon)
    after = scores_of(Taylor(), model, data())
    for name in before:
        np.testing.assert_allclose(before[name], after[name], rtol=1e-3, atol=1e-7)


# All of them -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("importance", "power"), [(Taylor, 1), (Molchanov, 0), (Fisher, 2)]
)
def test_a_loss_times_three(importance, power):
    model = plain()
    before = scores_of(importance(), model, data())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compile_(model, lambda y, y_pred: -3 * loss(y, y_pred))
    after = scores_of(importance(), model, data())
    for name in before:
        np.testing.assert_allclose(3**power * before[name], after[name], rtol=1e-3)


@pytest.mark.parametrize(
    ("importance", "factor"), [(Taylor, 2), (Molchanov, 1), (Fisher, 1)]
)
def test_the_same_data_twice_and_forgotten(importance, factor):
    model, scorer = plain(), importance()
    once = scores_of(scorer, model, data())
    twice = scores_of(scorer, model, data())
    scorer.reset_state()
    again = scores_of(scorer, model, data())
    for name in once:
        np.testing.assert_allclose(twice[name], factor * once[name], rtol=1e-5)
        assert np.array_equal(once[name], again[name])


@pytest.mark.parametrize("importance", DATA_DRIVEN)
def test_closed_gates_score_zero(importance):
    model = tfprune.prune_wrap(plain())
    compile_(model)
    mask = np.array([True, False, True, True, False, True])
    model.get_layer("bn").output_mask.mask.assign(mask)
    scores = scores_of(importance(), model, data())["a"]
    assert (scores[~mask] == 0).all() and (scores[mask] > 0).all()


@pytest.mark.parametrize("importance", DATA_DRIVEN)
def test_the_model_is_as_before(importance):
    model = plain()
    weights = [w.copy() for w in model.get_weights()]
    calls = [dict(vars(layer)) for layer in model.layers]
    scores_of(importance(), model, data())
    assert all(map(np.array_equal, weights, model.get_weights()))
    for layer, before in zip(model.layers, calls, strict=True):
        assert vars(layer).get("call") is before.get("call")
        assert vars(layer).get("activation") is before.get("activation")


@pytest.mark.parametrize("importance", DATA_DRIVEN)
def test_weight_regularizers_do_not_count(importance):
    model = plain()
    before = scores_of(importance(), model, data())
    model.get_layer("bn").gamma.regularizer = keras.regularizers.L1(10.0)
    model.get_layer("b").kernel.regularizer = keras.regularizers.L2(10.0)
    after = scores_of(importance(), model, data())
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_group_is_the_sum_or_the_mean_of_its_members(make_residual):
    model = checker.randomize(make_residual(8))
    compile_(model)
    inputs = np.random.default_rng(0).normal(size=(4, *model.input_shape[1:]))
    batch = inputs.astype("float32"), np.arange(4) % 2
    total = scores_of(Taylor(), model, batch)
    mean = scores_of(Taylor(reduction="mean"), model, batch)
    graph = tfprune.Graph(model)
    shared = [
        group.name
        for group in graph.groups
        if (total[group.name] > 1.5 * mean[group.name]).all()
    ]
    assert "stem_conv" in shared and "block1_a_conv" not in shared


def test_molchanov_by_hand():
    # A map of 2x2 that is the input times (1, -2), and a loss that is a product with
    # known factors, so output and gradient of every place are known.
    factors = np.arange(8.0).reshape(2, 2, 2) - 3
    inputs = keras.Input((2, 2, 1))
    x = layers.Conv2D(2, 1, use_bias=False, name="conv")(inputs)
    y = layers.Flatten()(x)
    outputs = layers.Dense(1, use_bias=False, name="head")(y)
    model = keras.Model(inputs, outputs)
    model.get_layer("conv").kernel.assign(np.reshape([1.0, -2.0], (1, 1, 1, 2)))
    model.get_layer("head").kernel.assign(factors.reshape(8, 1))
    compile_(model, lambda y, y_pred: ops.mean(y_pred, -1))
    x = np.array([[[1, 2], [3, 4]], [[0, 1], [-1, 2]]], "float32")[..., None]
    maps = x * np.array([1.0, -2.0])
    products = maps * factors
    raw = np.abs(products.mean((1, 2))).mean(0)
    scores = scores_of(Molchanov(normalize=False), model, (x, np.zeros((2, 1))))
    np.testing.assert_allclose(scores["conv"], raw, rtol=1e-6)
    scores = scores_of(Molchanov(), model, (x, np.zeros((2, 1))))
    np.testing.assert_allclose(scores["conv"], raw / np.linalg.norm(raw), rtol=1e-6)
    fisher = np.square(products.sum((1, 2))).mean(0) / 2
    scores = scores_of(Fisher(), model, (x, np.zeros((2, 1))))
    np.testing.assert_allclose(scores["conv"], fisher, rtol=1e-6)


@pytest.mark.parametrize("importance", DATA_DRIVEN)
def test_all_sorts_of_layers(importance):
    """Shared layers, recurrent cells, attention heads, nested models, two inputs."""
    inputs = [keras.Input((6,), name="tokens"), keras.Input((6, 8), name="rows")]
    x = layers.Embedding(11, 8, name="table")(inputs[0])
    shared = layers.Dense(5, activation="gelu", name="shared")
    x = layers.Concatenate()([shared(x), shared(inputs[1])])
    x = layers.LSTM(7, return_sequences=True, name="lstm")(x)
    x = layers.MultiHeadAttention(3, 4, name="heads")(x, x)
    x = keras.Sequential([layers.Dense(9, activation="gelu", name="d")], name="in")(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalMaxPooling1D()(x)))
    checker.randomize(model)
    compile_(model)
    random = np.random.default_rng(0)
    x = [random.integers(11, size=(4, 6)), random.normal(size=(4, 6, 8))]
    graph = tfprune.Graph(model)
    scores = scores_of(importance(), model, (x, np.arange(4) % 3))
    assert scores.keys() == {group.name for group in graph.groups}
    for name in ("shared", "lstm", "in/d"):
        assert (scores[name] > 0).all() and np.isfinite(scores[name]).all()
    # Nothing is known of what is within attention, so all of it stays.
    inner = [name for name in scores if np.isinf(scores[name]).any()]
    assert inner and all(name.startswith("heads") for name in inner)
    budget = tfprune.Budget(sparsity=0.3)
    scorer = importance()
    scorer.update_state(model, x, np.arange(4) % 3)
    masks = tfprune.select(graph, scorer, budget)
    assert all(masks[name].all() for name in inner)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    model = plain()
    expected = scores_of(Taylor(), model, data(64))
    keras.config.set_dtype_policy(policy)
    twin = plain()
    twin.set_weights(model.get_weights())
    scores = scores_of(Taylor(), twin, data(64))
    for name in expected:
        assert scores[name].dtype == np.float32
        assert np.corrcoef(scores[name], expected[name])[0, 1] > 0.95


@pytest.mark.parametrize(
    ("importance", "power"),
    [(Taylor, 1), (Molchanov, 0), (Fisher, 2), (WeightFisher, 2)],
)
@pytest.mark.parametrize("size", [2.0**-24, 2.0**22])
def test_gradients_in_float16_neither_vanish_nor_overflow(importance, power, size):
    unit = "weight" if importance is WeightFisher else "channel"
    model = plain()
    loss, (x, y) = model.loss, data(32)
    expected = scores_of(importance(), model, (x, y), graph=tfprune.Graph(model, unit))
    keras.config.set_dtype_policy("mixed_float16")
    twin = plain()
    twin.set_weights(model.get_weights())
    compile_(twin, lambda y, y_pred: size * loss(y, y_pred))
    scorer, graph = importance(), tfprune.Graph(twin, unit)
    scores = scores_of(scorer, twin, (x, y), graph=graph)
    for name in expected:
        found = scores[name].astype(float) / size**power
        assert found.all() and np.isfinite(found).all()
        assert np.corrcoef(found, expected[name])[0, 1] > 0.95
    with pytest.raises(ValueError, match="float16, are not finite"):
        scorer.update_state(twin, np.nan * x, y)
    assert np.array_equal(scorer(graph)[name], scores[name])


@pytest.mark.parametrize(("importance", "factor"), [(Taylor, 8), (WeightFisher, 64)])
def test_weights_of_losses_compiled_anew_count(importance, factor):
    model, scorer = plain(), importance()
    unit = "weight" if importance is WeightFisher else "channel"
    graph = tfprune.Graph(model, unit)
    once = scores_of(scorer, model, data(), graph=graph)
    model.compile("sgd", model.loss, loss_weights=[8.0])
    scorer.reset_state()
    again = scores_of(scorer, model, data(), graph=graph)
    for name in once:
        np.testing.assert_allclose(again[name], factor * once[name], rtol=1e-3)


@pytest.mark.parametrize(("importance", "factor"), [(Taylor, 8), (WeightFisher, 64)])
def test_a_loss_that_a_model_keeps_itself_counts_when_compiled_anew(importance, factor):
    class Own(keras.Model):
        def compile(self, optimizer, loss):
            super().compile(optimizer)
            self.loss = loss

        def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
            return self.loss(y, y_pred)

    like, scorer = plain(), importance()
    model = Own(like.inputs, like.outputs)
    unit = "weight" if importance is WeightFisher else "channel"
    found = []
    for times in (1, 8):
        model.compile("sgd", lambda y, p, times=times: times * like.loss(y, p))
        scorer.reset_state()
        scorer.update_state(model, *data())
        found.append(scorer(tfprune.Graph(model, unit)))
    for name, once in found[0].items():
        np.testing.assert_allclose(found[1][name], factor * once, rtol=1e-3)


def test_sample_weights_count():
    model, (x, y) = plain(), data()
    weights = np.array([1, 1, 1, 0, 0, 0], "float32")
    scorer = Fisher()
    scorer.update_state(model, x, y, weights)
    some = scorer(tfprune.Graph(model))
    half = scores_of(Fisher(), model, (x[:3], y[:3]))
    for name in some:
        # Keras divides the weighted sum by the sum of the weights: factors of 2.
        ratio = some[name] / half[name]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("importance", [Taylor, WeightFisher])
def test_sample_weights_of_outputs_are_as_weights_of_losses(importance, as_dict):
    def model(loss_weights=None):
        keras.utils.set_random_seed(1)
        x = keras.Input((6,))
        hidden = layers.Dense(8, name="hidden")(x)
        outputs = [layers.Dense(n, name=f"d{n}")(hidden) for n in (3, 2)]
        outputs = dict(zip(("a", "b"), outputs, strict=True)) if as_dict else outputs
        model = keras.Model(x, outputs)
        losses = {"a": "mse", "b": "mse"} if as_dict else ["mse", "mse"]
        model.compile("sgd", losses, loss_weights=loss_weights)
        return model

    def scores(model, weights=None):
        scorer = importance()
        scorer.update_state(model, x, y, weights)
        is_weights = importance is WeightFisher
        graph = tfprune.Graph(model, unit="weight" if is_weights else "channel")
        return next(iter(scorer(graph).values()))

    random = np.random.default_rng(0)
    x, *y = (random.normal(size=(2, n)).astype("float32") for n in (6, 3, 2))
    one, none = np.ones(2, "float32"), np.zeros(2, "float32")
    names = ("a", "b") if as_dict else (0, 1)
    y = dict(zip(names, y, strict=True)) if as_dict else y
    for first, second in ((1, 0), (0, 1)):
        own = [one if first else none, one if second else none]
        of_losses = [first, second]
        if as_dict:
            own, of_losses = ({"a": v[0], "b": v[1]} for v in (own, of_losses))
        expected = scores(model(of_losses))
        np.testing.assert_allclose(scores(model(), own), expected, rtol=1e-4)
    np.testing.assert_allclose(scores(model(), one), scores(model()), rtol=1e-4)


@pytest.mark.parametrize("importance", DATA_DRIVEN)
def test_without_data_or_loss(importance):
    model = plain()
    with pytest.raises(ValueError, match="update_state"):
        tfprune.select(tfprune.Graph(model), importance(), tfprune.Budget(sparsity=0.5))
    bare = keras.Model(model.inputs, model.outputs)
    with pytest.raises(ValueError, match="compile"):
        importance().update_state(bare, *data())


@pytest.mark.parametrize("importance", [*DATA_DRIVEN, Scale])
def test_an_unknown_reduction(importance):
    with pytest.raises(ValueError, match="`reduction` must be"):
        importance(reduction="max")


# Scale -------------------------------------------------------------------------------


def test_scale_is_gamma():
    model = plain()
    gamma = np.abs(model.get_layer("bn").gamma.numpy())
    scores = Scale()(tfprune.Graph(model))
    np.testing.assert_allclose(scores["a"], gamma, rtol=1e-6)
    assert np.isinf(scores["b"]).all()
    gated = tfprune.prune_wrap(model)
    scores = Scale()(tfprune.Graph(gated))
    np.testing.assert_allclose(scores["a"], gamma, rtol=1e-6)
    np.testing.assert_allclose(scores["b"], 1)
    mask = np.arange(6) > 1
    gated.get_layer("bn").output_mask.mask.assign(mask)
    scores = Scale()(tfprune.Graph(gated))
    np.testing.assert_allclose(scores["a"], gamma * mask, rtol=1e-6)


def test_scale_is_gamma_also_where_a_gate_leaves_it_in_place():
    model = plain()
    bn = model.get_layer("bn")
    bn.gamma.assign([0.01, 0.02, 0.0, 1.0, 2.0, 3.0])
    bn.beta.assign([5.0] * 6)
    scores = Scale()(tfprune.Graph(tfprune.prune_wrap(model)))
    np.testing.assert_allclose(scores["a"], bn.gamma.numpy(), rtol=1e-6)


def test_scale_keeps_what_has_no_scale():
    model = plain()
    budget = tfprune.Budget(sparsity=0.3)
    masks = tfprune.select(tfprune.Graph(model), "scale", budget)
    assert masks["b"].all() and not masks["a"].all()
    with pytest.raises(ValueError, match="at most"):
        tfprune.select(tfprune.Graph(model), "scale", tfprune.Budget(sparsity=0.6))
