"""Scores trained inside `fit`: laws with closed forms, and what must not move."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfprune
from tfprune.callbacks import MaskTraining, Preflight
from tfprune.callbacks.score_updates import Scored, ScoreUpdates
from tfprune.layers import TrainableChannelMask, TrainableMask
from tfprune.straight_through import ESTIMATORS
from tfprune.surgery import set_masks


def half_square(target, output):
    return keras.ops.mean(keras.ops.square(output - target)) / 2


def toy(weights, rate=0.01, **settings):
    """Independent weights w, each at the optimum of (t - w)^2 / 2 where t = w * h(m)."""
    x = keras.Input((len(weights),))
    dense = layers.Dense(len(weights), use_bias=False, name="diagonal")
    model = tfprune.prune_wrap(
        keras.Model(x, dense(x)), TrainableMask, estimator="linear", **settings
    )
    gate = model.layers[-1]
    gate.layer.set_weights([np.diag(np.asarray(weights, "float32"))])
    model.compile(keras.optimizers.SGD(rate), half_square)
    return model, gate


def rows(weights, steps):
    """One weight a batch: the loss is a mean over the entries of the output."""
    n = len(weights)
    x = np.eye(n, dtype="float32") * np.sqrt(n * n)
    y = x @ np.diag(np.asarray(weights, "float32"))
    data = tf.data.Dataset.from_tensors((x, y))
    return data.repeat(steps)


def scores_of(model):
    return [s for layer in model.layers for s in getattr(layer, "scores", ())]


@pytest.mark.parametrize("weight", [0.5, 0.2, -0.12, 0.09])
def test_duty_cycle_is_one_less_mu_over_a(weight):
    """B.1: a weight at its optimum is open for 1 - mu / |a| of the time."""
    model, _ = toy([weight], initial=1e-6)
    # The guard would hold the only weight open.
    callback = MaskTraining(learning_rate=1.0, strength=0.1, min_density=0.0)
    history = model.fit(rows([weight], 1200), verbose=0, callbacks=[callback])
    expected = max(0.0, 1 - 0.1 / abs(weight))
    assert history.history["time_open"][0] == pytest.approx(expected, abs=5e-3)


def test_time_to_recover():
    """B.6: floor(|m0| / (eta (|a| - mu))) + 1 steps with the linear estimator."""
    model, gate = toy([0.5])
    gate.scores[0].assign([[-0.47]])
    callback = MaskTraining(learning_rate=0.1, strength=0.1, min_density=0.0)
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(
            float(gate.scores[0].numpy()[0, 0])
        )
    )
    model.fit(rows([0.5], 15), verbose=0, callbacks=[callback, watch])
    assert np.flatnonzero(np.array(seen) > 0)[0] + 1 == int(0.47 / (0.1 * 0.4)) + 1


def small_net(**settings):
    x = keras.Input((6,))
    hidden = layers.Dense(8, "relu", name="hidden", **settings)(x)
    return keras.Model(x, layers.Dense(3, name="logits", **settings)(hidden))


def data(seed=0, number=64, batch=8):
    random = np.random.default_rng(seed)
    x = random.normal(size=(number, 6)).astype("float32")
    y = (x[:, :3] > 0).argmax(1)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch)


def compiled(model, optimizer="adam", **settings):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, **settings)
    return model


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
        lambda: keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1),
    ],
)
@pytest.mark.parametrize("mask_data", [None, data(1)])
def test_closed_weights_do_not_move(optimizer, mask_data):
    model = compiled(tfprune.prune_wrap(small_net(), TrainableMask), optimizer())
    # With momentum in the optimizer before anything closes.
    model.fit(data(), verbose=0)
    graph = tfprune.Graph(model, unit="weight")
    random = np.random.default_rng(0)
    masks = {g.name: random.random(g.size) < 0.5 for g in graph.groups}
    set_masks(graph, masks)
    before = {n: k.variable.numpy() for n, k in graph.kernels.items()}
    callback = MaskTraining(mask_data, learning_rate=1e-9)
    model.fit(data().repeat(13), verbose=0, callbacks=[callback])
    assert tfprune.read_masks(model) == masks
    for name, kernel in graph.kernels.items():
        is_closed = ~graph.expanded(name, masks[name])
        after = kernel.variable.numpy()
        np.testing.assert_array_equal(after[is_closed], before[name][is_closed])
        assert (after[~is_closed] != before[name][~is_closed]).all()


def trained_scores(model, callback=None, optimizer=None, epochs=1, **settings):
    optimizer = optimizer or keras.optimizers.SGD(0.0)
    gated = compiled(tfprune.prune_wrap(model, TrainableMask), optimizer, **settings)
    callback = callback or MaskTraining(learning_rate=1.0, strength=0.1)
    gated.fit(data(), epochs=epochs, verbose=0, callbacks=[callback])
    return [s.numpy() for s in scores_of(gated)]


def twin_nets(*settings):
    """Nets with the same weights."""
    nets = [small_net(**each) for each in settings]
    for net in nets[1:]:
        net.set_weights(nets[0].get_weights())
    return nets


def test_weights_of_closed_channels_do_not_move():
    x = keras.Input((6,))
    hidden = layers.Dense(8, "relu", name="hidden")(x)
    hidden = layers.Reshape((1, 8))(layers.BatchNormalization(name="bn")(hidden))
    hidden = layers.Conv1D(8, 1)(layers.Conv1D(8, 1)(hidden))
    hidden = layers.DepthwiseConv1D(1)(hidden)
    net = keras.Model(x, layers.Dense(3)(layers.Flatten()(hidden)))
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.1)
    model = compiled(tfprune.prune_wrap(net, TrainableMask, unit="channel"), optimizer)
    model.fit(data(), verbose=0)
    graph = tfprune.Graph(model)
    masks = tfprune.select(graph, "random", tfprune.Budget(sparsity=0.5))
    set_masks(graph, masks)
    gates = [each for each in model.layers if getattr(each, "output_mask", None)]
    assert len(gates) == 3

    def weights():
        """`(output channels, values)` of what each mask multiplies."""
        for gate in gates:
            own = [gate.gate_variable, *gate.layer.trainable_variables]
            flat = [np.reshape(v, (-1, gate.num_channels)) for v in own if v.trainable]
            yield np.concatenate(flat).T

    before = list(weights())
    callback = MaskTraining(data(1), learning_rate=1e-9)
    model.fit(data().repeat(3), verbose=0, callbacks=[callback])
    assert tfprune.read_masks(model) == masks
    for gate, old, new in zip(gates, before, weights(), strict=True):
        is_open = gate.output_mask.mask.numpy()
        np.testing.assert_array_equal(new[~is_open], old[~is_open])
        assert (new[is_open] != old[is_open]).any(1).all() and 0 < is_open.sum() < 8


def test_regularizers_and_weight_decay_are_not_for_scores():
    plain, regularized = twin_nets({}, {"kernel_regularizer": "l2"})
    expected = trained_scores(plain)
    decayed = keras.optimizers.SGD(0.0, weight_decay=0.5)
    for found in (trained_scores(regularized), trained_scores(plain, None, decayed)):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "settings",
    [{"jit_compile": True}, {"steps_per_execution": 4}, {"run_eagerly": True}],
)
@pytest.mark.parametrize("mask_data", [None, data(1)])
def test_scores_move_the_same_however_steps_are_run(settings, mask_data):
    (net,) = twin_nets({})
    callback = MaskTraining(mask_data, learning_rate=1.0, strength=0.1)
    expected = trained_scores(net, callback, epochs=2)
    found = trained_scores(net, callback, epochs=2, **settings)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("mask_data", [None, data(1)])
def test_loss_scaling_does_not_scale_scores(mask_data):
    (net,) = twin_nets({})
    callback = MaskTraining(mask_data, learning_rate=1.0, strength=0.1)
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.0))
    found = trained_scores(net, callback, scaled)
    for one, other in zip(found, trained_scores(net, callback), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_without_a_push_nothing_closes_at_the_optimum():
    model, gate = toy([0.5, -0.3, 0.2], rate=0.0)
    kernel = gate.layer.kernel.numpy()
    set_masks(
        tfprune.Graph(model, unit="weight"), {"diagonal/kernel": kernel.ravel() != 0}
    )
    callback = MaskTraining(learning_rate=1.0, strength=0.0)
    model.fit(rows([0.5, -0.3, 0.2], 50), verbose=0, callbacks=[callback])
    assert np.array_equal(gate.mask(0).numpy(), kernel != 0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("rule", ["modified", "coarse"])
def test_scores_follow_the_formula_in_one_step(estimator, rule):
    net = small_net()
    gated = tfprune.prune_wrap(net, TrainableMask, estimator=estimator, rule=rule)
    compiled(gated, keras.optimizers.SGD(0.0))
    (x, y) = next(iter(data()))
    with tf.GradientTape() as tape:
        loss = gated.compute_loss(x, y, net(x))
    kernel = net.get_layer("hidden").kernel
    dt = tape.gradient(loss, kernel.value).numpy()
    callback = MaskTraining(learning_rate=0.3, strength=0.02)
    gated.fit(data().take(1), verbose=0, callbacks=[callback])
    gate = gated.get_layer("hidden")
    slope = gate.learning.sloped(tf.ones(()), tf.constant(0.5)).numpy()
    factor = np.sign(kernel.numpy()) if rule == "modified" else kernel.numpy()
    expected = 0.5 - 0.3 * slope * (factor * dt + 0.02)
    np.testing.assert_allclose(gate.scores[0].numpy(), expected, rtol=1e-4)
    # Afterwards gradients of scores are the estimator's again.
    with tf.GradientTape() as tape:
        tape.watch(gate.scores[0].value)
        loss = tf.reduce_sum(gate.gated(0, kernel.value))
    given = tape.gradient(loss, gate.scores[0].value).numpy()
    score = gate.scores[0].numpy()
    expected = gate.learning.sloped(tf.constant(factor), tf.constant(score))
    np.testing.assert_allclose(given, expected, rtol=1e-5)


# Resuming ----------------------------------------------------------------------------


def test_interrupted_and_resumed_is_bitwise_the_same(tmp_path):
    def run(epochs, initial_epoch=0, model=None, path=None):
        if model is None:
            model = compiled(tfprune.prune_wrap(net, TrainableMask))
        callbacks = [MaskTraining(data(1, 40), strength=0.02, learning_rate=1.0)]
        if path:
            callbacks.append(keras.callbacks.ModelCheckpoint(path))
        history = model.fit(
            data(),
            epochs=epochs,
            initial_epoch=initial_epoch,
            verbose=0,
            callbacks=callbacks,
        )
        return model, history.history

    net = small_net()
    whole, history = run(4)
    path = tmp_path / "half.keras"
    run(2, path=path)
    resumed, rest = run(4, 2, keras.models.load_model(path))
    for name, values in history.items():
        assert values[2:] == rest[name], name
    pairs = zip(whole.variables, resumed.variables, strict=True)
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in pairs)
    states = zip(whole.optimizer.variables, resumed.optimizer.variables, strict=True)
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in states)
    assert len(set(map(float, np.ravel(scores_of(whole)[0].numpy())))) > 2


@pytest.mark.parametrize("mask_data", [None, data(1, 40)])
@pytest.mark.parametrize("is_first", [True, False])
def test_killed_and_restored_is_bitwise_the_same(tmp_path, mask_data, is_first):
    class Killed(Exception):
        pass

    def kill(batch, logs):
        if killer.model.optimizer.iterations.numpy() == 8 * 2 + 3:
            raise Killed

    def run(*others):
        model = compiled(tfprune.prune_wrap(start, TrainableMask))
        own = MaskTraining(mask_data, strength=0.02, learning_rate=1.0)
        pair = [own, *others[:1]] if is_first else [*others[:1], own]
        model.fit(data(), epochs=4, verbose=0, callbacks=[*pair, *others[1:]])
        return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]

    start = small_net()
    expected = run()
    killer = keras.callbacks.LambdaCallback(on_train_batch_end=kill)
    with pytest.raises(Killed):
        run(keras.callbacks.BackupAndRestore(tmp_path), killer)
    found = run(keras.callbacks.BackupAndRestore(tmp_path))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_scores_are_no_business_of_the_optimizer_and_stand_still_without_us():
    model = compiled(tfprune.prune_wrap(small_net(), TrainableMask))
    model.fit(data(), verbose=0, callbacks=[MaskTraining(strength=0.02)])
    before = [s.numpy() for s in scores_of(model)]
    assert len(model.optimizer.variables) == 2 + 2 * 4
    assert len(model.trainable_variables) == 4
    model.fit(data(), epochs=2, verbose=0)
    for one, other in zip(before, scores_of(model), strict=True):
        np.testing.assert_array_equal(one, other.numpy())


@pytest.mark.parametrize("unit", ["weight", "channel"])
def test_scores_stand_still_after_their_layers_were_frozen(unit):
    model = compiled(tfprune.prune_wrap(small_net(), TrainableMask, unit=unit))
    model.trainable = False
    model.trainable = True
    assert not [v.path for v in model.trainable_variables if v.name == "score"]
    variables = [v for v in model.variables if v.name == "score"]
    assert variables and not any(v.trainable for v in variables)
    model.fit(data(), verbose=0, callbacks=[MaskTraining(strength=0.02)])
    assert any(np.ptp(v.numpy()) > 0 for v in variables)


def test_averages_of_weights_do_not_reach_scores():
    optimizer = keras.optimizers.SGD(0.1, use_ema=True)
    model = compiled(tfprune.prune_wrap(small_net(), TrainableMask), optimizer)
    with pytest.raises(ValueError, match="use_ema=True"):
        model.fit(data(), verbose=0, callbacks=[MaskTraining()])
    callback = MaskTraining(data(1), learning_rate=1e-9)
    model.fit(data(), verbose=0, callbacks=[callback])
    for scores in scores_of(model):
        np.testing.assert_allclose(scores.numpy(), 0.5, atol=1e-6)


@pytest.mark.parametrize("gathered", [None, 3])
def test_masks_see_all_of_their_data_in_turn(gathered):
    class Recording(MaskTraining):
        def on_train_begin(self, logs=None):
            super().on_train_begin(logs)
            self._mask_step = lambda x, *others: seen.append(x.numpy().tobytes())

    seen, mask_data = [], data(1, 80)
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=gathered)
    model = compiled(tfprune.prune_wrap(small_net(), TrainableMask), optimizer)
    model.fit(data(), epochs=2, verbose=0, callbacks=[Recording(mask_data)])
    expected = [x.numpy().tobytes() for x, _ in mask_data.repeat().take(16)]
    assert seen == expected


def test_no_retracing():
    traces = []

    class Counting(layers.Layer):
        def call(self, x):
            traces.append(1)
            return x

    x = keras.Input((6,))
    net = keras.Model(x, layers.Dense(3)(Counting()(x)))
    model = compiled(tfprune.prune_wrap(net, TrainableMask))
    traces.clear()
    model.fit(data(), epochs=3, verbose=0, callbacks=[MaskTraining(data(1))])
    # The weights' step, the scores' step, and what Keras builds with.
    assert len(traces) <= 4


# Holding on --------------------------------------------------------------------------


def updates(scores, **settings):
    gates = [TrainableChannelMask(len(each), estimator="linear") for each in scores]
    scored = [Scored(str(n), gate.scores, gate) for n, gate in enumerate(gates)]
    for each, values in zip(scored, scores, strict=True):
        each.scores.assign(values)
    settings = {
        "strength": 0.0,
        "hysteresis": 0.0,
        "least": [0] * len(scored),
        "target": None,
        **settings,
    }
    made = ScoreUpdates(scored, **settings)
    made.begin_epoch()
    return made, [each.scores for each in scored]


def test_hysteresis_by_eye():
    """A score that crosses lands beyond the threshold, one that does not, does not."""
    made, (scores,) = updates([[0.1, 0.1, -0.1]], hysteresis=0.5)
    made.step([tf.constant([0.2, 0.05, -0.2])], 1.0)
    np.testing.assert_allclose(scores.numpy(), [-0.6, 0.05, 0.6], atol=1e-6)
    assert made.logs(True) == pytest.approx(
        {"time_open": 2 / 3, "recoveries": 1, "density/0": 2 / 3}
    )


def test_the_last_open_scores_of_a_layer_stay():
    made, (scores, other) = updates(
        [[0.1, 0.2, -0.1], [0.1, 0.1]], strength=1.0, least=[2, 0]
    )
    made.step([tf.zeros(3), tf.zeros(2)], 1.0)
    np.testing.assert_allclose(scores.numpy(), [0.1, 0.2, -1.1], atol=1e-6)
    assert (other.numpy() < 0).all()
    # One may close when another opens.
    made.step([tf.constant([0.0, -1.0, -3.0]), None], 1.0)
    np.testing.assert_allclose(scores.numpy(), [-0.9, 0.2, 0.9], atol=1e-6)


def test_push_ends_at_the_target():
    made, (scores,) = updates([[0.3, 0.2, 0.1]], strength=0.15, target=2)
    for _ in range(3):
        made.step([tf.zeros(3)], 1.0)
    np.testing.assert_allclose(scores.numpy(), [0.15, 0.05, -0.05], atol=1e-6)


def test_steps_without_numbers_are_left_out():
    made, (scores,) = updates([[0.3, 0.2]])
    made.step([tf.constant([np.nan, 0.1])], 1.0)
    np.testing.assert_allclose(scores.numpy(), [0.3, 0.1], atol=1e-6)


# Channels ----------------------------------------------------------------------------


def residual():
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(8, 3, padding="same", name="stem", use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization(name="stem_bn")(y))
    z = layers.Conv2D(6, 3, padding="same", name="inner", activation="relu")(y)
    z = layers.Conv2D(8, 3, padding="same", name="out")(z)
    y = layers.Flatten()(layers.Add()([y, layers.BatchNormalization(name="bn")(z)]))
    return keras.Model(x, layers.Dense(3, name="logits")(y))


def images(number=48):
    random = np.random.default_rng(0)
    x = random.normal(size=(number, 8, 8, 3)).astype("float32")
    return x, random.integers(0, 3, number)


def test_channels_share_one_score_and_compact_removes_them():
    model = compiled(tfprune.prune_wrap(residual(), TrainableMask, unit="channel"))
    x, y = images()
    budget = tfprune.Budget(flops_reduction=0.4)
    callback = MaskTraining(strength=0.02, learning_rate=1.0, budget=budget)
    model.fit(x, y, epochs=30, verbose=0, callbacks=[callback, Preflight(verbose=0)])
    masks = {
        id(layer)
        for layer in model._flatten_layers()
        if isinstance(layer, TrainableChannelMask)
    }
    assert len(masks) == 2
    small = tfprune.compact(model)
    assert 1 - tfprune.cost(small).macs / tfprune.cost(model).macs >= 0.4
    np.testing.assert_allclose(small(x[:4]), model(x[:4]), atol=1e-5)
    # The budget is met: a push that would close everything at once does nothing.
    before = tfprune.read_masks(model)
    hard = MaskTraining(strength=1e3, learning_rate=1e-3, budget=budget)
    model.fit(x, y, epochs=2, verbose=0, callbacks=[hard])
    assert tfprune.read_masks(model) == before


def test_channel_rule_is_the_gradient_along_the_weights_over_their_norm():
    """dm = slope * <w, dL/dt> / ||w||, over all layers that share the score."""
    net = residual()
    for name in ("stem_bn", "bn"):
        values = np.random.default_rng(1).normal(size=(2, 8))
        net.get_layer(name).gamma.assign(values[0])
        net.get_layer(name).beta.assign(values[1])
    x, y = images()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # A rate of zero, and statistics that training would take anyway.
    gated = compiled(
        tfprune.prune_wrap(net, TrainableMask, unit="channel", estimator="linear"),
        keras.optimizers.SGD(0.0),
    )
    own = [net.get_layer(name) for name in ("stem_bn", "bn")]
    weights = [v for bn in own for v in (bn.gamma, bn.beta)]
    inner = net.get_layer("inner")
    with tf.GradientTape() as tape:
        value = loss(y, net(x, training=True))
    slopes = tape.gradient(
        value, [v.value for v in (*weights, inner.kernel, inner.bias)]
    )
    along = sum(v.numpy() * g.numpy() for v, g in zip(weights, slopes, strict=False))
    norm = np.sqrt(sum(v.numpy() ** 2 for v in weights))
    along_inner = (inner.kernel.numpy() * slopes[-2].numpy()).sum((0, 1, 2))
    along_inner += inner.bias.numpy() * slopes[-1].numpy()
    norm_inner = np.sqrt((inner.kernel.numpy() ** 2).sum((0, 1, 2)))
    gated.fit(
        x,
        y,
        batch_size=len(x),
        verbose=0,
        callbacks=[MaskTraining(learning_rate=1.0, strength=0.0)],
    )
    found = {
        layer.name: layer.output_mask.scores.numpy()
        for layer in gated.layers
        if getattr(layer, "output_mask", None) is not None
    }
    np.testing.assert_allclose(found["bn"], 0.5 - along / norm, rtol=1e-3)
    np.testing.assert_array_equal(found["bn"], found["stem_bn"])
    expected = 0.5 - along_inner / norm_inner
    np.testing.assert_allclose(found["inner"], expected, rtol=1e-3)
    assert np.ptp(found["bn"]) > 1e-3 and np.ptp(found["inner"]) > 1e-3


@pytest.mark.parametrize("unit", ["weight", "channel"])
def test_no_custom_gradient_is_left_in_a_file(tmp_path, unit):
    model = tfprune.prune_wrap(residual(), TrainableMask, unit=unit)
    model.export(tmp_path / "gated", verbose=False)
    tfprune.export(model, tmp_path / "plain")
    found = {
        name: b"CustomGradient" in (tmp_path / name / "saved_model.pb").read_bytes()
        for name in ("gated", "plain")
    }
    assert found == {"gated": True, "plain": False}


# Errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"strength": -1.0}, "`strength` must be at least 0"),
        ({"min_density": 2.0}, r"`min_density` must lie in \[0, 1\]"),
        ({"learning_rate": 0.0}, "`learning_rate` must be above 0"),
        ({"mask_data": [1, 2]}, "`mask_data` must be a batched"),
        ({"budget": 0.5}, "`budget` must be"),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        MaskTraining(**settings)


def test_models_without_scores_are_refused():
    model = compiled(tfprune.prune_wrap(small_net(), tfprune.layers.WeightMask))
    with pytest.raises(ValueError, match="TrainableMask"):
        model.fit(data(), verbose=0, callbacks=[MaskTraining()])
    with pytest.raises(ValueError, match="`unit` must be one of"):
        tfprune.prune_wrap(small_net(), TrainableMask, unit="filter")
    with pytest.raises(ValueError, match="`estimator` must be one of"):
        tfprune.prune_wrap(small_net(), TrainableMask, estimator="hard")


class Applies(keras.Model):
    """Trains as Keras's guide to training steps of one's own has it."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return {"loss": loss}


def test_training_step_of_ones_own():
    """It need not call `apply_gradients`."""

    def trained(kind):
        keras.utils.set_random_seed(0)
        wrapped = tfprune.prune_wrap(small_net(), TrainableMask)
        model = kind(wrapped.inputs, wrapped.outputs)
        model.compile(keras.optimizers.SGD(0.1), "mse")
        random = np.random.default_rng(0)
        x, y = (random.normal(size=(32, n)).astype("float32") for n in (6, 3))
        callback = MaskTraining(learning_rate=1.0, strength=0.1)
        model.fit(x, y, batch_size=8, verbose=0, shuffle=False, callbacks=[callback])
        return [score.numpy() for score in scores_of(model)]

    own, usual = trained(Applies), trained(keras.Model)
    assert np.mean(own[0] > 0) < 1
    for one, other in zip(own, usual, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_scores_take_as_many_steps_as_weights():
    """Five batches, three in a call: the second call has two of them left."""
    model = tfprune.prune_wrap(small_net(), TrainableMask)
    model.compile(keras.optimizers.SGD(0.1), "mse", steps_per_execution=3)
    random = np.random.default_rng(0)
    x, y = (random.normal(size=(40, n)).astype("float32") for n in (6, 3))
    held_out = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    callback = MaskTraining(held_out, learning_rate=1.0)
    steps = []
    move = callback._move
    callback._move = lambda *args: (
        tf.py_function(steps.append, [1], []) and None or move(*args)
    )
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[callback])
    assert len(steps) == 5


@pytest.mark.parametrize("unit", ["weight", "channel"])
def test_floors_of_the_budget_hold(unit):
    """The push is far too strong, and would close all but one."""
    model = tfprune.prune_wrap(small_net(), TrainableMask, unit=unit)
    model.compile(keras.optimizers.SGD(0.01), "mse")
    random = np.random.default_rng(0)
    x, y = (random.normal(size=(64, n)).astype("float32") for n in (6, 3))
    budget = tfprune.Budget(sparsity=0.3, max_sparsity={"hidden*": 0.4, "*": 0.3})
    callback = MaskTraining(learning_rate=1.0, strength=1.0, budget=budget)
    model.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[callback])
    for name, mask in tfprune.read_masks(model).items():
        assert (0.6 if name.startswith("hidden") else 0.7) <= mask.mean() < 0.75


def test_a_budget_out_of_reach_is_refused_before_the_first_step():
    model = compiled(tfprune.prune_wrap(small_net(), TrainableMask))
    budget = tfprune.Budget(sparsity=0.9, max_sparsity=0.4)
    with pytest.raises(ValueError, match="`budget` cannot be met: at most 0.388889"):
        model.fit(data(), verbose=0, callbacks=[MaskTraining(budget=budget)])
    some = compiled(tfprune.prune_wrap(small_net(), TrainableMask, layers=["hidden"]))
    budget = tfprune.Budget(sparsity=0.5)
    with pytest.raises(ValueError, match="have none"):
        some.fit(data(), verbose=0, callbacks=[MaskTraining(budget=budget)])
    budget = tfprune.Budget(sparsity=0.3, max_sparsity={"logits*": 0.0})
    callback = MaskTraining(learning_rate=1.0, strength=0.05, budget=budget)
    some.fit(data(), epochs=10, verbose=0, callbacks=[callback])
    # Of all 72 weights, though 24 have no scores.
    assert callback._updates._target == 48 - 22
    assert tfprune.read_masks(callback.graph).density() <= 0.7


def test_the_budget_is_looked_at_however_many_batches_pass_at_once():
    model = tfprune.prune_wrap(residual(), TrainableMask, unit="channel")
    compiled(model, steps_per_execution=8)
    callback = MaskTraining(budget=tfprune.Budget(sparsity=0.5), strength=0.0)
    looks = []
    callback.meets = lambda *args: looks.append(args) or True
    x, y = images()
    data = tf.data.Dataset.from_tensors((x, y)).repeat(64)
    model.fit(data, steps_per_epoch=64, verbose=0, callbacks=[callback])
    # One as the epoch begins, one in the end.
    assert len(looks) == 64 // 8 + 2
