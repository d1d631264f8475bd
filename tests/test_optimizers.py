"""GlobalSparseMomentum: closed forms, a NumPy reference, and its life in Keras."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfprune import Budget, Graph, apply_masks, optimizers, radix_select, select
from tfprune.optimizers import GlobalSparseMomentum

FORMS = pytest.mark.parametrize("nesterov", [False, True])


def variable(value, name="kernel", dtype="float32"):
    return keras.Variable(np.array(value, dtype), name=name, dtype=dtype)


def stepper(optimizer, variables, gradients):
    """Returns a function that takes steps and returns the weights."""
    optimizer.build(variables)

    @tf.function(autograph=False)
    def step():
        both = zip(gradients, variables, strict=True)
        optimizer.apply([tf.cast(g, v.dtype) for g, v in both], variables)

    def run(count=1):
        for _ in range(count):
            step()
        return [v.numpy() for v in variables]

    return run


def steps(optimizer, variables, gradients, count=1):
    return stepper(optimizer, variables, gradients)(count)


def passive(optimizer, momentum=0.0, dtype="float64"):
    """Returns `stepper` of a weight of 1, with a gradient, beside a heavier one."""
    own = [variable([1.0], "kernel", dtype), variable([100.0], "heavy_kernel", dtype)]
    optimizer.exclude_from_weight_decay(var_names=["heavy"])
    run = stepper(optimizer, own, [[1e-3], [1e-3]])
    optimizer.momentums[0].assign([momentum])
    return run


def momentum_of(optimizer, number):
    return optimizer.momentums[number].numpy()


class Reference:
    """The paper's rule in float64, step by step."""

    def __init__(self, weights, kernels, count, momentum, weight_decay, nesterov):
        self.weights = [np.array(w, float) for w in weights]
        self.buffers = [np.zeros(w.shape) for w in self.weights]
        self.kernels, self.count = kernels, count
        self.momentum, self.decay, self.nesterov = momentum, weight_decay, nesterov

    def step(self, gradients, rate):
        both = zip(gradients, self.weights, strict=True)
        importance = [np.abs(np.float32(g) * np.float32(w)) for g, w in both]
        ranked = np.sort(np.concatenate([importance[n].ravel() for n in self.kernels]))
        for n, gradient in enumerate(gradients):
            if n in self.kernels:
                active = importance[n] >= ranked[-self.count]
                gradient = active * gradient + self.decay * self.weights[n]
            buffer = self.momentum * self.buffers[n] + gradient
            ahead = gradient + self.momentum * buffer if self.nesterov else buffer
            self.buffers[n] = buffer
            self.weights[n] = self.weights[n] - rate * ahead


# The rule -----------------------------------------------------------------------------


def test_by_hand():
    optimizer = GlobalSparseMomentum(0.1, sparsity=0.5, momentum=0.9, weight_decay=0.1)
    kernel = variable([2, -1, 0.5, 0.1])
    (weights,) = steps(optimizer, [kernel], [[0.1, 0.5, -0.2, 3]])
    np.testing.assert_allclose(momentum_of(optimizer, 0), [0.2, 0.4, 0.05, 3.01], 1e-6)
    np.testing.assert_allclose(weights, [1.98, -1.04, 0.495, -0.201], 1e-6)


@FORMS
@pytest.mark.parametrize("start", [0.0, 0.3])
@pytest.mark.parametrize(
    "rate, momentum, decay", [(1e-2, 0.99, 5e-4), (5e-3, 0.98, 1e-4), (0.1, 0.99, 5e-4)]
)
def test_a_passive_weight_in_closed_form(rate, momentum, decay, start, nesterov):
    optimizer = GlobalSparseMomentum(
        rate, sparsity=0.5, momentum=momentum, weight_decay=decay, nesterov=nesterov
    )
    (weight,), _ = passive(optimizer, start)(1000)

    rate = float(np.float32(rate))
    shrink = rate * decay * (1 + momentum if nesterov else 1)
    trace, product = 1 + momentum - shrink, momentum
    product *= 1 - rate * decay if nesterov else 1
    buffer = momentum * start + decay
    first = 1 - rate * (decay + momentum * buffer if nesterov else buffer)
    root = np.emath.sqrt(trace**2 - 4 * product)
    high, low = (trace + root) / 2, (trace - root) / 2
    share = (first - low) / (high - low)
    expected = (share * high**1000 + (1 - share) * low**1000).real
    assert weight == pytest.approx(expected, abs=1e-9)
    published = {(1e-2, 0.99): (0.6243977, 0.6242133), (5e-3, 0.98): (0.9764788, None)}
    value = published.get((round(rate, 6), momentum), (None, None))[nesterov]
    if not start and value is not None:
        assert expected == pytest.approx(value, abs=1e-7)


def test_above_the_bound_a_passive_weight_rings():
    optimizer = GlobalSparseMomentum(
        0.1, sparsity=0.5, momentum=0.99, weight_decay=5e-4
    )
    run = passive(optimizer)
    lowest = min(run()[0][0] for _ in range(1000))
    assert lowest == pytest.approx(-0.0425, abs=1e-3)


def test_what_was_passive_travels_on():
    kernel = variable([1.0, 100.0], dtype="float64")
    optimizer = GlobalSparseMomentum(0.25, sparsity=0.5, momentum=0.9, weight_decay=0.0)
    optimizer.build([kernel])
    optimizer.momentums[0].assign([0.02, 0.0])
    weight = steps(optimizer, [kernel], [[0, 1e-3]], 400)[0][0]
    assert weight == pytest.approx(1 - 0.25 * 0.9 * 0.02 / 0.1, abs=1e-12)


@FORMS
@pytest.mark.parametrize("share", [0.0, 0.9])
def test_same_as_the_reference_when_the_learning_rate_drops(share, nesterov):
    random = np.random.default_rng(0)
    shapes = {"kernel": (30, 20), "bias": (20,), "conv_kernel": (3, 3, 4, 5), "g": (5,)}
    start = [random.normal(size=shape) for shape in shapes.values()]
    own = [variable(w, name, "float64") for w, name in zip(start, shapes, strict=True)]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [10, 20], [0.05, 0.005, 0.02]
    )
    optimizer = GlobalSparseMomentum(
        schedule, sparsity=share, momentum=0.95, weight_decay=1e-2, nesterov=nesterov
    )
    count = round((1 - share) * 780)
    reference = Reference(start, (0, 2), count, 0.95, 1e-2, nesterov)
    gradients = [tf.Variable(np.zeros(shape)) for shape in shapes.values()]
    run = stepper(optimizer, own, gradients)
    for number in range(30):
        for gradient in gradients:
            gradient.assign(random.normal(size=gradient.shape))
        rate = float(np.float32([0.05, 0.005, 0.02][(number > 10) + (number > 20)]))
        reference.step([gradient.numpy() for gradient in gradients], rate)
        for ours, expected in zip(run(), reference.weights, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)


@FORMS
def test_nothing_pruned_is_sgd_with_an_l2_penalty(nesterov):
    def trained(optimizer, penalty):
        keras.utils.set_random_seed(1)
        dense = layers.Dense(8, "relu", kernel_regularizer=penalty)
        model = keras.Sequential([keras.Input((5,)), dense])
        model.compile(optimizer, "mse")
        random = np.random.default_rng(0)
        x, y = random.normal(size=(64, 5)), random.normal(size=(64, 8))
        model.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0)
        return model.get_weights()

    plain = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=nesterov)
    own = GlobalSparseMomentum(
        0.1, sparsity=0.0, momentum=0.9, weight_decay=2e-2, nesterov=nesterov
    )
    expected = trained(plain, keras.regularizers.L2(1e-2))
    for ours, theirs in zip(trained(own, None), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("most_kept", [0, optimizers._MOST_KEPT])
def test_exactly_q_weights_are_active_in_every_step(most_kept, monkeypatch):
    monkeypatch.setattr(optimizers, "_MOST_KEPT", most_kept)
    monkeypatch.setattr(radix_select, "_FEW", most_kept)
    random = np.random.default_rng(0)
    small = variable(random.normal(size=(40, 30)) * 1e-3)
    large = variable(random.normal(size=(300,)) + 9.0)
    bias = variable(random.normal(size=30), "bias")
    own = [small, bias, large]
    optimizer = GlobalSparseMomentum(
        1e-6, compression=10, momentum=0.0, weight_decay=0.0
    )
    gradients = [tf.Variable(tf.zeros(v.shape)) for v in own]
    run = stepper(optimizer, own, gradients)
    for _ in range(4):
        before = [v.numpy() for v in own]
        for gradient in gradients:
            gradient.assign(random.normal(size=gradient.shape))
        run()
        moved = [np.count_nonzero(momentum_of(optimizer, n)) for n in range(3)]
        # All active ones in the kernel of the larger weights: the ranking is global.
        assert moved == [0, 30, 150]
        importance = np.abs(before[2] * gradients[2].numpy())
        active = momentum_of(optimizer, 2) != 0
        assert importance[active].min() > importance[~active].max()


def test_importance_does_not_change_with_the_scale_of_a_layer():
    random = np.random.default_rng(0)
    weights, slopes = random.normal(size=(2, 500))
    active = []
    for factor in (1.0, 8.0):
        own = [variable(factor * weights[:250]), variable(weights[250:])]
        optimizer = GlobalSparseMomentum(0.1, sparsity=0.8, weight_decay=0.0)
        steps(optimizer, own, [slopes[:250] / factor, slopes[250:]])
        moved = [momentum_of(optimizer, n) != 0 for n in range(2)]
        active.append(np.concatenate(moved))
    assert active[0].sum() == 100
    np.testing.assert_array_equal(*active)


def test_a_weight_comes_back():
    kernel = variable([1.0, 1.0])
    optimizer = GlobalSparseMomentum(0.1, sparsity=0.5, momentum=0.0, weight_decay=0.1)
    for slopes, moved in (([1, 2], 1), ([2, 1], 0)):
        before = kernel.numpy()
        after = steps(optimizer, [kernel], [slopes])[0]
        assert abs(after - before)[moved] > 5 * abs(after - before)[1 - moved]


def test_ties_and_nothing_to_rank():
    kernel = variable([1.0, 1.0, 1.0, 0.5])
    optimizer = GlobalSparseMomentum(0.1, sparsity=0.75, weight_decay=0.0)
    steps(optimizer, [kernel], [[2.0, 2.0, 0.0, 0.0]])
    assert np.count_nonzero(momentum_of(optimizer, 0)) == 2


def test_nothing_to_rank_moves_nothing():
    own = [variable(np.zeros(4)), variable([1.0, 1.0, 1.0, 0.5])]
    optimizer = GlobalSparseMomentum(0.1, sparsity=0.75, weight_decay=0.0)
    before = [v.numpy() for v in own]
    after = steps(optimizer, own, [np.zeros(4)] * 2)
    np.testing.assert_array_equal(after, before)


# What is pruned -----------------------------------------------------------------------


def test_kernels_by_name():
    inputs = keras.Input((6, 8))
    x = layers.MultiHeadAttention(2, 4, name="mha")(inputs, inputs)
    x = layers.PReLU(name="prelu")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.GRU(5, name="gru")(x)
    model = keras.Model(inputs, layers.Dense(3, name="logits")(x))
    optimizer = GlobalSparseMomentum(sparsity=0.5)
    optimizer.build(model.trainable_variables)
    own = {each.path for each in optimizer.pruned_of(model.weights)}
    assert own == {v.path for v in model.trainable_variables if "kernel" in v.path}
    assert len(own) == 7
    ((kernels, count),) = optimizer.active_counts()
    assert count == round(0.5 * sum(int(np.prod(k.shape)) for k in kernels))

    optimizer = GlobalSparseMomentum(
        sparsity=0.5, include="prelu/alpha", exclude=["logits/*", "gru_cell/kernel"]
    )
    optimizer.build(model.trainable_variables)
    left = {each.path for each in optimizer.pruned_of(model.weights)}
    assert left - own == {"prelu/alpha"}
    assert {path.split("/")[0] for path in own - left} == {"gru", "logits"}
    assert len(own - left) == 2


def test_a_ranking_for_every_kernel():
    random = np.random.default_rng(0)
    own = [variable(random.normal(size=n) * n) for n in (40, 80, 200)]
    slopes = [random.normal(size=each.shape) for each in own]
    uniform = GlobalSparseMomentum(sparsity=0.9, scope="uniform", weight_decay=0.0)
    steps(uniform, own, slopes)
    assert [np.count_nonzero(m.numpy()) for m in uniform.momentums] == [4, 8, 20]
    assert [count for _, count in uniform.active_counts()] == [4, 8, 20]

    inputs = keras.Input((4,))
    x = layers.Dense(10, name="fc1")(inputs)
    x = layers.Dense(10, name="fc2")(x)
    model = keras.Model(inputs, layers.Dense(10, name="fc3")(x))
    some = GlobalSparseMomentum(scope={"fc1/*": 0.75, "fc3/kernel": 0.5})
    some.build(model.trainable_variables)
    assert [count for _, count in some.active_counts()] == [10, 50]
    steps(some, model.trainable_variables, [tf.ones_like(v) for v in model.weights])
    # What is not named follows its gradient alone.
    np.testing.assert_array_equal(momentum_of(some, 2), np.ones((10, 10)))


def test_at_least_one_weight_is_active():
    optimizer = GlobalSparseMomentum(0.1, compression=1e6, weight_decay=0.0)
    steps(optimizer, [variable([1.0, 2.0, 3.0])], [[1, 1, 1]])
    assert np.flatnonzero(momentum_of(optimizer, 0)).tolist() == [2]


def test_decay_leaves_out_what_the_user_names():
    optimizer = GlobalSparseMomentum(0.1, sparsity=0.5, weight_decay=0.5)
    own = [variable([1.0, 2.0]), variable([1.0, 2.0], "other_kernel")]
    optimizer.exclude_from_weight_decay(var_names=["other"])
    steps(optimizer, own, [[0, 0], [0, 0]])
    assert own[0].numpy()[0] < 1
    np.testing.assert_array_equal(own[1].numpy(), [1, 2])


def test_regularized_kernels_are_told():
    kernel = variable([1.0, 2.0])
    kernel.regularizer = keras.regularizers.L2(1e-4)
    with pytest.warns(UserWarning, match="1 kernels have a regularizer"):
        GlobalSparseMomentum(sparsity=0.5).build([kernel])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GlobalSparseMomentum(sparsity=0.5).build([variable([1.0])])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "Exactly one of"),
        ({"compression": 2, "sparsity": 0.5}, "Exactly one of"),
        ({"compression": 0.5}, "`compression` must be at least 1"),
        ({"sparsity": 1.0}, r"`sparsity` must lie in \[0, 1\)"),
        ({"sparsity": 0.5, "momentum": 1.0}, r"`momentum` must lie in"),
        ({"sparsity": 0.5, "weight_decay": -1}, "`weight_decay` must be at least 0"),
        ({"sparsity": 0.5, "weight_decay": None}, "`weight_decay` must be at least 0"),
        ({"sparsity": 0.5, "scope": "erk"}, "`scope` must be"),
        ({"sparsity": 0.5, "scope": {"fc*": 0.5}}, "neither `compression` nor"),
        ({"scope": {"fc*": 1.5}}, r"`scope\['fc\*'\]` must lie in"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        GlobalSparseMomentum(**arguments)


def test_nothing_to_prune():
    optimizer = GlobalSparseMomentum(sparsity=0.5)
    for _ in range(2):
        with pytest.raises(ValueError, match="no kernel to prune"):
            optimizer.build([variable([1.0], "bias")])


@pytest.mark.parametrize("name", ["include", "exclude", "scope"])
def test_patterns_that_match_nothing(name):
    settings = {"scope": {"*": 0.5, "fc9": 0.5}} if name == "scope" else {name: "fc9"}
    amount = {} if name == "scope" else {"compression": 2}
    optimizer = GlobalSparseMomentum(**amount, **settings)
    with pytest.warns(
        UserWarning, match=f"`{name}`: the path pattern 'fc9' matches no"
    ):
        optimizer.build(network().trainable_variables)


@pytest.mark.filterwarnings("ignore:.*matches no trainable")
def test_layers_named_by_patterns_may_be_frozen(tmp_path):
    model = compiled(exclude=["conv/*"])
    fit(model, 1)
    model.get_layer("conv").trainable = False
    model.save(tmp_path / "frozen.keras")
    again = keras.models.load_model(tmp_path / "frozen.keras")
    before = again.get_layer("conv").kernel.numpy()
    fit(again, 1)
    np.testing.assert_array_equal(again.get_layer("conv").kernel, before)


def test_gradients_that_are_no_numbers_are_not_hidden():
    kernel = variable(np.ones(10), "kernel")
    optimizer = GlobalSparseMomentum(0.1, sparsity=0.5, momentum=0.0, weight_decay=0.0)
    gradient = np.r_[[np.nan] * 2, np.arange(3.0, 11.0)]
    optimizer.apply([tf.constant(gradient, kernel.dtype)], [kernel])
    found = kernel.numpy()
    assert np.isnan(found[:2]).all()
    np.testing.assert_array_equal(found[2:7], 1.0)
    assert (found[7:] < 1).all()


# In Keras -----------------------------------------------------------------------------


def network():
    keras.utils.set_random_seed(2)
    return keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            layers.Embedding(12, 8, name="embedding"),
            layers.Conv1D(8, 3, activation="relu", name="conv"),
            layers.BatchNormalization(name="bn"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(3, name="logits"),
        ]
    )


DATA = np.random.default_rng(0)
X, Y = DATA.integers(0, 12, (48, 6)), DATA.integers(0, 3, 48)


def compiled(model=None, **settings):
    arguments = {"learning_rate": 0.1, "sparsity": 0.7, "weight_decay": 1e-2}
    of_compile = {"jit_compile", "steps_per_execution"} & settings.keys()
    run = {key: settings.pop(key) for key in of_compile}
    optimizer = GlobalSparseMomentum(**{**arguments, **settings})
    model = network() if model is None else model
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, **{"jit_compile": False, **run})
    return model


def fit(model, epochs=2, initial_epoch=0, batch_size=16, x=X, y=Y):
    settings = {"epochs": epochs, "initial_epoch": initial_epoch, "shuffle": False}
    model.fit(x, y, batch_size=batch_size, verbose=0, **settings)
    return [np.asarray(w) for w in model.get_weights()]


def close(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance)


def test_every_way_to_run_it_gives_the_same():
    expected = fit(compiled())
    close(fit(compiled(jit_compile=True)), expected, 1e-5)
    doubled = [np.repeat(a.reshape(3, 16, -1), 2, 0).reshape(96, -1) for a in (X, Y)]
    twice = compiled(gradient_accumulation_steps=2)
    twice = fit(twice, x=doubled[0], y=doubled[1][:, 0])
    trained = [n for n, w in enumerate(compiled().weights) if "moving" not in w.path]
    close([twice[n] for n in trained], [expected[n] for n in trained], 1e-6)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([99], [0.1, 0.0])
    close(fit(compiled(learning_rate=schedule)), expected, 1e-7)
    close(fit(compiled(steps_per_execution=3)), expected, 0)


def test_what_keras_adds():
    clipped = compiled(global_clipnorm=0.1)
    expected = fit(clipped)
    assert max(np.abs(a - b).max() for a, b in zip(expected, fit(compiled()))) > 1e-3
    close(fit(compiled(global_clipnorm=0.1, jit_compile=True)), expected, 1e-5)
    fit(compiled(use_ema=True, ema_overwrite_frequency=2))
    keras.config.set_dtype_policy("mixed_float16")
    model = compiled(sparsity=0.0)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    before = model.get_weights()
    model.optimizer.initial_scale = 2.0**10
    after = fit(model, 1)
    assert max(np.abs(a - b).max() for a, b in zip(after, before)) > 0.1
    keras.config.set_dtype_policy("float32")
    close(after, fit(compiled(sparsity=0.0), 1), 3e-3)


def test_saved_loaded_and_trained_on_bitwise(tmp_path):
    expected = fit(compiled(nesterov=True), 4)
    half = compiled(nesterov=True)
    fit(half, 2)
    half.save(tmp_path / "half.keras")
    loaded = keras.models.load_model(tmp_path / "half.keras")
    assert loaded.optimizer.get_config() == half.optimizer.get_config()
    close(fit(loaded, 4, initial_epoch=2), expected, 0)


def test_masked_weights_stay_at_zero():
    graph = Graph(network(), unit="weight")
    masks = select(graph, "magnitude", Budget(sparsity=0.5))
    model = compiled(apply_masks(graph, masks))
    fit(model)
    for name, kernel in Graph(model, unit="weight").kernels.items():
        assert not kernel.variable.numpy().reshape(-1)[~masks[name]].any()


def test_frozen_layers_are_left_alone():
    model = network()
    model.get_layer("conv").trainable = False
    frozen = [w.numpy() for w in model.get_layer("conv").weights]
    fit(compiled(model))
    for now, before in zip(model.get_layer("conv").weights, frozen, strict=True):
        np.testing.assert_array_equal(now.numpy(), before)
    assert "conv" not in " ".join(k.path for k in model.optimizer.active_counts()[0][0])


def test_on_two_replicas(two_replicas):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(64, 10)), random.normal(size=(64, 4))

    def trained(strategy):
        with strategy.scope():
            keras.utils.set_random_seed(0)
            parts = [keras.Input((10,)), layers.Dense(30, "relu"), layers.Dense(4)]
            model = keras.Sequential(parts)
            optimizer = GlobalSparseMomentum(0.05, compression=5)
            model.compile(optimizer, "mse", jit_compile=False)
        model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
        return model.get_weights()

    one, two = trained(tf.distribute.get_strategy()), trained(two_replicas)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


# Planning -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rate, momentum, decay, steps_", [(1e-2, 0.9, 1e-3, 5000), (2e-3, 0.98, 1e-3, 9000)]
)
def test_the_decay_budget_tells_what_is_left(rate, momentum, decay, steps_):
    optimizer = GlobalSparseMomentum(
        rate, sparsity=0.5, momentum=momentum, weight_decay=decay
    )
    budget = optimizer.decay_budget(steps_)
    assert budget == pytest.approx(steps_ * rate * decay / (1 - momentum), rel=1e-5)
    weight, buffer = 1.0, 0.0
    for _ in range(steps_):
        buffer = momentum * buffer + decay * weight
        weight -= rate * buffer
    assert weight == pytest.approx(np.exp(-budget), rel=0.02)


def test_the_decay_budget_of_a_schedule():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([499], [0.02, 0.002])
    optimizer = GlobalSparseMomentum(schedule, compression=60, weight_decay=2e-3)
    expected = (500 * 0.02 + 500 * 0.002) * 2e-3 / 0.02
    assert optimizer.decay_budget(1000) == pytest.approx(expected, rel=0.01)
