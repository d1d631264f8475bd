"""Tick-Tock in `fit`: what trains when, what is scored, what is closed, resuming."""

import contextlib

import checker
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfprune
from tfprune import Budget
from tfprune.callbacks import PruneToBudget, Snapshots, TickTock
from tfprune.importances import Taylor

HALF = Budget(flops_reduction=0.5)
QUICK = {"share": 0.1, "cycle": (2, 1)}


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(24, 8, 8, 3)).astype("float32")
    return x, (np.arange(24) % 3).astype("int32")


def dataset(data, batch_size=4):
    return tf.data.Dataset.from_tensor_slices(data).batch(batch_size)


@pytest.fixture
def residual(make_residual):
    return compiled(tfprune.prune_wrap(checker.randomize(make_residual(8))))


@pytest.fixture
def model():
    """A network of few layers: most of the time of a test is that of two traces."""
    model = keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(9, 3, use_bias=False, name="a"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(8, 3, strides=2, activation="relu", name="b"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )
    return compiled(tfprune.prune_wrap(checker.randomize(model)))


def compiled(model, optimizer=None, **arguments):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = optimizer or keras.optimizers.SGD(1e-3, momentum=0.9)
    model.compile(optimizer, loss, metrics=["accuracy"], **arguments)
    return model


def train(model, data, *callbacks, epochs=5, **arguments):
    return model.fit(
        dataset(data), epochs=epochs, verbose=0, callbacks=list(callbacks), **arguments
    )


def reduction(model):
    graph = tfprune.Graph(model)
    masks = tfprune.read_masks(model)
    return 1 - tfprune.cost(graph, masks).macs / tfprune.cost(graph).macs


def values(variables):
    return [keras.ops.convert_to_numpy(v).copy() for v in variables]


class Watched(TickTock):
    """Records the variables, masks and logs around every Tick."""

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self.before, self.after, self.logs, self.kept = [], [], [], []
        run = self._ticks.run

        def watched_run(verbose):
            self.before.append(values(self.model.variables))
            logs = run(verbose)
            self.after.append(values(self.model.variables))
            return logs

        self._ticks.run = watched_run

    def on_tick_end(self, tick, logs):
        self.logs.append((tick, logs))
        self.kept.append(tfprune.read_masks(self.model))


# The budget --------------------------------------------------------------------------


def test_the_budget_is_met_and_masks_only_shrink(model, data):
    callback = Watched(dataset(data), HALF, **QUICK)
    history = train(model, data, callback).history
    assert 0.5 <= reduction(model) < 0.56
    assert history["flops_reduction"][-1] == pytest.approx(reduction(model))
    assert history["ticks"][-1] == len(callback.logs) == callback.logs[-1][0]
    for before, after in zip(callback.kept, callback.kept[1:], strict=False):
        assert all((after[name] <= before[name]).all() for name in before)
    small = tfprune.compact(model)
    assert tfprune.cost(small).macs <= 0.5 * tfprune.cost(model).macs


def test_the_last_tick_takes_no_more_than_needed(model, data):
    callback = TickTock(dataset(data), Budget(sparsity=0.25), share=0.6, cycle=(1, 1))
    train(model, data, callback, epochs=2)
    units = sum(len(mask) for mask in tfprune.read_masks(model).values())
    closed = sum((~mask).sum() for mask in tfprune.read_masks(model).values())
    # A unit may bring others that score the same, but no more.
    assert 0.25 * units <= closed <= 0.25 * units + 1


def test_floors_hold(residual, data):
    budget = Budget(flops_reduction=0.4, max_sparsity={"stem_conv": 0.0, "*": 0.6})
    train(residual, data, TickTock(dataset(data), budget, **QUICK))
    masks = tfprune.read_masks(residual)
    assert masks["stem_conv"].all() and reduction(residual) >= 0.4
    assert all(mask.mean() >= 0.4 for mask in masks.values())


@pytest.mark.parametrize("target", ["flops_reduction", "sparsity"])
def test_without_a_share_ticks_meet_the_budget_halfway_in_even_steps(
    model, data, target
):
    budget = Budget(**{target: 0.5})
    callback = Watched(dataset(data), budget, cycle=(3, 1))
    history = train(model, data, callback, epochs=4).history
    removed = [logs[target] for _, logs in callback.logs]
    goals = [1 - 0.5 ** (tick / 6) for tick in range(1, 7)]
    assert len(removed) == 6
    assert all(
        goal <= each < goal + 0.1 for goal, each in zip(goals, removed, strict=True)
    )
    assert history["ticks"] == [3, 6, 6, 6]


def test_training_stops_between_ticks(model, data):
    class Stopping(TickTock):
        def on_tick_end(self, tick, logs):
            self.model.stop_training = True

    callback = Stopping(dataset(data), HALF, share=0.02, cycle=(2, 1))
    assert train(model, data, callback, epochs=3).history["ticks"] == [1]


def test_a_budget_that_is_not_met_is_said(model, data):
    callback = TickTock(dataset(data), HALF, share=0.02, cycle=(1, 1))
    with pytest.warns(UserWarning, match="It ran 1 Ticks; a Tick closes 0.02"):
        train(model, data, callback, epochs=2)


def test_snapshots_on_the_way(residual, data, tmp_path):
    path = str(tmp_path / "small-{flops_reduction:.2f}.keras")
    snapshots = Snapshots(path, (0.2, 0.35))
    train(residual, data, snapshots, TickTock(dataset(data), HALF, **QUICK))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "small-0.20.keras",
        "small-0.35.keras",
    ]
    for point in (0.2, 0.35):
        small = keras.models.load_model(path.format(flops_reduction=point))
        share = 1 - tfprune.cost(small).macs / tfprune.cost(residual).macs
        assert point <= share < 0.5
    with pytest.raises(FileExistsError, match="0.20"):
        train(residual, data, snapshots)


@pytest.mark.parametrize("is_first", [False, True])
def test_snapshots_beside_a_budget_that_is_met_at_once(model, data, tmp_path, is_first):
    snapshots = Snapshots(tmp_path / "{flops_reduction}.keras", [0.3])
    prune = PruneToBudget("magnitude", HALF, tfprune.schedules.OneShot(0))
    callbacks = [prune, snapshots][:: -1 if is_first else 1]
    train(model, data, *callbacks, epochs=1)
    assert (tmp_path / "0.3.keras").is_file()
    with pytest.raises(FileExistsError, match="0.3"):
        train(model, data, *callbacks, epochs=1)


def test_snapshots_in_a_list_of_callbacks_that_is_used_twice(model, data, tmp_path):
    snapshots = Snapshots(tmp_path / "{flops_reduction}.keras", [0.3])
    prune = PruneToBudget("magnitude", HALF, tfprune.schedules.OneShot(0))
    each = keras.callbacks.CallbackList(
        [prune, snapshots], add_history=True, model=model, epochs=1, steps=6
    )
    model.fit(dataset(data), verbose=0, callbacks=each)
    with pytest.raises(FileExistsError, match="0.3"):
        model.fit(dataset(data), verbose=0, callbacks=each)


@pytest.mark.parametrize(
    ("path", "points"),
    [
        ("{flops_reduction}.h5", [0.5]),
        ("a.keras", [0.1, 0.2]),
        ("a.keras", [0.5]),
        ("{sparsity}.keras", [0.5]),
        ("{flops_reduction}.keras", [1.5]),
        ("{flops_reduction}.keras", ["half"]),
        ("{flops_reduction}.keras", []),
    ],
)
def test_bad_snapshots(path, points):
    with pytest.raises(ValueError, match="must"):
        Snapshots(path, points)


def test_snapshots_are_refused_before_training(model, data, tmp_path):
    snapshots = Snapshots(tmp_path / "none" / "{flops_reduction}.keras", 0.3)
    with pytest.raises(FileNotFoundError, match="existing directory"):
        train(model, data, snapshots)
    masked = tfprune.prune_wrap(tfprune.strip(model), tfprune.layers.WeightMask)
    snapshots = Snapshots(tmp_path / "{flops_reduction}.keras", 0.3)
    with pytest.raises(ValueError, match="make none smaller"):
        train(compiled(masked), data, snapshots)


def test_patterns_of_weights_are_no_budget_for_channels(model, data):
    callback = TickTock(dataset(data), Budget(n_of_m=(2, 4)), **QUICK)
    with pytest.raises(ValueError, match="`n_of_m` is for masks on weights"):
        train(model, data, callback)


# What trains -------------------------------------------------------------------------


@pytest.mark.parametrize("biased", [False, True])
def test_a_tick_trains_gates_shifts_and_the_last_layer_only(
    make_residual, make_vgg, data, biased
):
    model = make_vgg((8, 8)) if biased else make_residual(8)
    optimizer = keras.optimizers.SGD(1e-3, momentum=0.9, weight_decay=0.01)
    model = compiled(tfprune.prune_wrap(checker.randomize(model)), optimizer)
    callback = Watched(dataset(data), HALF, **QUICK)
    train(model, data, callback)
    gates = [
        each for each in model.layers if isinstance(each, tfprune.layers.ChannelGate)
    ]
    trained = {id(gate.gate_variable) for gate in gates}
    trained |= {id(g.layer.beta) for g in gates if hasattr(g.layer, "beta")}
    trained |= {id(v) for v in model.layers[-1].trainable_variables}
    statistics = ("moving_mean", "moving_variance")
    for before, after in zip(callback.before, callback.after, strict=True):
        for variable, old, new in zip(model.variables, before, after, strict=True):
            moves = id(variable) in trained or variable.name in statistics
            assert np.array_equal(old, new) != moves, variable.path


def test_all_trains_in_a_tock_and_flags_stay_as_they_were(residual, data):
    residual.get_layer("block1_a_conv").trainable = False
    compiled(residual)
    flags = [v.trainable for v in residual.variables]
    before = values(residual.variables)
    train(residual, data, TickTock(dataset(data), HALF, **QUICK))
    assert flags == [v.trainable for v in residual.variables]
    for variable, old in zip(residual.variables, before, strict=True):
        same = np.array_equal(old, variable.numpy())
        if variable.trainable:
            assert not same, variable.path
        elif "block1_a_conv" in variable.path:
            assert same


def test_two_traces_in_all(model, data):
    traces = []

    class Counted(keras.Model):
        def train_step(self, *args, **kwargs):
            traces.append(1)
            return super().train_step(*args, **kwargs)

    counted = Counted(model.inputs, model.outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Keras traces once more where metrics make their variables in the first trace.
    counted.compile(keras.optimizers.SGD(1e-3, momentum=0.9), loss)
    callback = Watched(dataset(data), HALF, share=0.05, cycle=(2, 1))
    train(counted, data, callback, epochs=8)
    assert len(callback.logs) > 4
    assert len(traces) == 2


def test_the_learning_rate_rises_and_falls_once_per_tock(model, data):
    rates = {}

    class Rates(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_end(self, batch, logs=None):
            rate = float(self.model.optimizer.learning_rate)
            rates.setdefault(self.epoch, []).append(rate)

    tick_rates = []
    callback = Watched(
        dataset(data), HALF, share=0.1, cycle=(3, 2), learning_rates=(0.01, 0.1)
    )
    callback.on_tick_end = lambda tick, logs: tick_rates.append(
        float(callback.model.optimizer.learning_rate)
    )
    train(model, data, callback, Rates(), epochs=7)
    assert set(np.float32(tick_rates)) == {np.float32(0.01)}
    first = rates[0] + rates[1]
    assert first[0] == pytest.approx(0.01) and first[-1] == pytest.approx(0.01)
    assert max(first) == pytest.approx(0.1, rel=0.1) and np.argmax(first) in (5, 6)
    np.testing.assert_allclose(first, first[::-1], rtol=1e-5)
    # Met in the first or second round; the epochs left are one fine-tuning.
    met = 2 if len(tick_rates) <= 3 else 4
    last = sum((rates[epoch] for epoch in range(met, 7)), [])
    np.testing.assert_allclose(last, last[::-1], rtol=1e-5)
    assert np.argmax(last) in (len(last) // 2 - 1, len(last) // 2)


def test_the_l1_term_acts_in_tocks_until_the_budget_is_met(model, data):
    terms = []

    class Terms(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            gates = [
                each for each in self.model.layers if hasattr(each, "gate_variable")
            ]
            norm = sum(float(abs(g.gate_variable.numpy()).sum()) for g in gates)
            terms.append(float(sum(self.model.losses)) / norm if norm else 0)

    callback = TickTock(dataset(data), HALF, share=0.3, cycle=(4, 1), gate_l1=0.25)
    train(model, data, Terms(), callback, epochs=3)
    assert terms[:6] == pytest.approx([0.25] * 6, rel=1e-4)
    assert terms[6:] == pytest.approx([0] * len(terms[6:]))
    assert model.losses == []


def test_a_user_s_regularizer_counts_in_tocks_only_and_stays(make_residual, data):
    model = checker.randomize(make_residual(8))
    gate = model.get_layer("block1_a_bn").gamma
    gate.regularizer = keras.regularizers.L2(0.1)
    gated = tfprune.prune_wrap(model)
    own = keras.regularizers.L2(0.1)
    gated.get_layer("block1_a_bn").layer.gamma.regularizer = own
    train(compiled(gated), data, TickTock(dataset(data), HALF, **QUICK))
    assert gated.get_layer("block1_a_bn").layer.gamma.regularizer is own


# Scores ------------------------------------------------------------------------------


@contextlib.contextmanager
def scored(callback):
    """Keeps the scores of the first Tick."""
    found = {}
    close = callback._close

    def kept():
        found.setdefault(
            "scores", callback._ticks.scores.by_group(callback.graph, "sum")
        )
        close()

    callback._close = kept
    yield found


@pytest.mark.parametrize(
    "policy, arguments",
    [("float32", {}), ("mixed_float16", {"steps_per_execution": 3})],
)
def test_scores_are_gate_times_gradient_of_each_batch(
    make_residual, data, policy, arguments
):
    keras.config.set_dtype_policy(policy)
    model = tfprune.prune_wrap(checker.randomize(make_residual(8)))
    compiled(model, keras.optimizers.SGD(0.0), **arguments)
    callback = TickTock(
        dataset(data), HALF, share=0.1, cycle=(1, 1), learning_rates=None, gate_l1=0.5
    )
    with scored(callback) as found:
        train(model, data, callback, epochs=2)
    expected = _gradients_in_training(model, data)
    for name, scores in found["scores"].items():
        tolerance = 0.05 if policy == "mixed_float16" else 1e-3
        np.testing.assert_allclose(
            scores, expected[name], rtol=tolerance, atol=tolerance * scores.max()
        )


def _gradients_in_training(model, data):
    """Sums |gate * gradient| with a tape, for gates that are all open."""
    graph = tfprune.Graph(model)
    gates = [
        call
        for call in graph.calls
        if isinstance(call.operation, tfprune.layers.ChannelGate)
    ]
    for call in gates:
        mask = call.operation.output_mask.mask
        mask.assign(np.ones(mask.shape, bool))
    variables = [call.operation.gate_variable for call in gates]
    total = np.zeros(graph.num_units + 1)
    for x, y in dataset(data):
        with tf.GradientTape() as tape:
            predictions = tf.cast(model(x, training=True), tf.float32)
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(y, predictions)
            )
            scaled = loss * 1024.0
        for call, variable, gradient in zip(
            gates,
            variables,
            tape.gradient(scaled, [v.value for v in variables]),
            strict=True,
        ):
            labels = call.outputs[0].labels[call.outputs[0].channel_axis]
            product = np.abs(variable.numpy() * gradient.numpy()) / 1024
            np.add.at(total, graph.units(labels), product)
    return graph.masks_of(total)


def test_scores_agree_with_the_importance(make_vgg, data):
    """Without normalization a training step sees what inference sees."""
    model = compiled(
        tfprune.prune_wrap(checker.randomize(make_vgg((6, 7)))),
        keras.optimizers.SGD(0.0),
    )
    callback = TickTock(
        dataset(data), HALF, share=0.1, cycle=(1, 1), learning_rates=None
    )
    with scored(callback) as found:
        train(model, data, callback, epochs=2)
    for gate in model.layers:
        if isinstance(gate, tfprune.layers.ChannelGate):
            gate.output_mask.mask.assign(np.ones(gate.num_channels, bool))
    importance = Taylor()
    for x, y in dataset(data):
        importance.update_state(model, x, y)
    for name, scores in importance(tfprune.Graph(model)).items():
        np.testing.assert_allclose(scores, found["scores"][name], rtol=1e-3)


# Resuming ----------------------------------------------------------------------------


class Stop(Exception):
    pass


def _assert_same(first, second):
    for a, b in zip(
        values(first.variables + first.optimizer.variables),
        values(second.variables + second.optimizer.variables),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


SLOW = {"share": 0.06, "cycle": (3, 2)}


def test_resumed_after_any_tick_or_epoch(model, data, tmp_path):
    """Wherever a run was saved, the one that goes on from there ends as it did."""

    class Saving(TickTock):
        def on_tick_end(self, tick, logs):
            if tick in (3, 5):
                self.model.save(tmp_path / f"tick-{tick}.keras")

        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            if epoch + 1 in (2, 7):
                self.model.save(tmp_path / f"epoch-{epoch + 1}.keras")

    train(model, data, Saving(dataset(data), HALF, **SLOW), epochs=9)
    for name, epoch in (("tick-3", 2), ("tick-5", 4), ("epoch-2", 2), ("epoch-7", 7)):
        resumed = keras.models.load_model(tmp_path / f"{name}.keras")
        rest = TickTock(dataset(data), HALF, **SLOW)
        train(resumed, data, rest, epochs=9, initial_epoch=epoch)
        _assert_same(model, resumed)


def test_backup_and_restore(model, data, tmp_path):
    model.save(tmp_path / "start.keras")
    whole = keras.models.load_model(tmp_path / "start.keras")
    train(whole, data, TickTock(dataset(data), HALF, **SLOW), epochs=7)
    folder = tmp_path / "backup"

    def backup():
        return keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)

    class Fail(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 4:
                raise Stop

    callbacks = TickTock(dataset(data), HALF, **SLOW), backup(), Fail()
    with pytest.raises(Stop):
        train(model, data, *callbacks, epochs=7)
    resumed = keras.models.load_model(tmp_path / "start.keras")
    train(resumed, data, TickTock(dataset(data), HALF, **SLOW), backup(), epochs=7)
    _assert_same(whole, resumed)


@pytest.mark.parametrize(
    ("is_scaled", "steps", "strayed"),
    [
        pytest.param(True, 8, -1, id="steps that loss scaling left out"),
        pytest.param(False, 8, 5, id="a backup within an epoch"),
        pytest.param(False, 5, 0, id="repeated data read beyond an epoch"),
        pytest.param(False, 6, 0, id="repeated data read on by a whole Tick"),
    ],
)
def test_steps_that_stray_from_batches_are_no_ticks(
    model, data, recwarn, is_scaled, steps, strayed
):
    optimizer = keras.optimizers.SGD(1e-3)
    if is_scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model = compiled(model, optimizer, steps_per_execution=4)
    ran = []

    class Counting(TickTock):
        def on_tick_end(self, tick, logs):
            ran.append(tick)

    class Fail(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise Stop

    def fit(*callbacks, **arguments):
        few = dataset(data).take(2)
        callbacks = [Counting(few, HALF, share=0.03, cycle=(3, 1)), *callbacks]
        arguments.update(steps_per_epoch=steps, verbose=0, callbacks=callbacks)
        return model.fit(dataset(data).repeat(), **arguments)

    with pytest.raises(Stop):
        fit(Fail(), epochs=3)
    model.optimizer.iterations.assign(model.optimizer.iterations + strayed)
    assert fit(epochs=2, initial_epoch=1).history["ticks"] == [3]
    assert ran == [1, 2, 3]
    assert not [w for w in recwarn if "do not tell" in str(w.message)]


@pytest.mark.parametrize("left_out", [0, 5])
def test_ticks_that_a_stop_cut_off_are_made_up_for_under_loss_scaling(
    model, data, left_out
):
    ran = []

    class Counting(TickTock):
        def on_tick_end(self, tick, logs):
            ran.append(tick)

    compiled(model, keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-3)))
    for epochs, first in ((2, 0), (3, 2)):
        callback = Counting(dataset(data), HALF, share=0.03, cycle=(3, 1))
        log = train(model, data, callback, epochs=epochs, initial_epoch=first)
        model.optimizer.iterations.assign_sub(left_out)
    assert ran == [1, 2, 3, 4, 5, 6] and log.history["ticks"] == [6]


@pytest.mark.parametrize(("tick_batches", "is_clear"), [(6, True), (2, False)])
def test_finite_data_do_not_reach_beyond_an_epoch(
    model, data, recwarn, tick_batches, is_clear
):
    """As repeated data would, which Ticks that were not run can look like."""
    compiled(model, steps_per_execution=4)
    ran = []

    class Counting(TickTock):
        def on_tick_end(self, tick, logs):
            ran.append(tick)

    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if len(ran) == 8:
                raise Stop

    def fit(*callbacks, **arguments):
        few = dataset(data).take(tick_batches)
        callback = Counting(few, HALF, share=0.01, cycle=(2, 1))
        return train(model, data, callback, *callbacks, **arguments)

    with pytest.raises(Stop):
        fit(Interrupt(), epochs=6)
    assert fit(epochs=5, initial_epoch=4).history["ticks"] == [8]
    assert ran == [1, 2, 3, 4, 5, 6, 7, 8]
    said = [w for w in recwarn if "do not tell" in str(w.message)]
    assert bool(said) is not is_clear


def test_a_resumed_run_of_a_new_optimizer_is_said(model, data):
    callback = TickTock(dataset(data), HALF, share=0.3, cycle=(1, 1))
    with pytest.warns(UserWarning, match="do not tell how many Ticks"):
        train(model, data, callback, epochs=9, initial_epoch=5)


# Around it ---------------------------------------------------------------------------


def test_the_model_is_left_as_plain_as_it_was(model, data, tmp_path):
    train(model, data, TickTock(dataset(data), HALF, **QUICK))
    assert model.train_function is None
    assert "update_step" not in vars(model.optimizer)
    assert not model.losses
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(data[0]), model.predict(data[0]))
    before = values(model.trainable_variables)
    train(model, data, epochs=1)
    assert all(
        not np.array_equal(a, b)
        for a, b in zip(before, values(model.trainable_variables), strict=True)
    )


def test_a_second_run_after_one_that_failed(model, data):
    class Fail(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise Stop

    with pytest.raises(Stop):
        train(model, data, TickTock(dataset(data), HALF, **QUICK), Fail())
    compiled(model)
    train(model, data, TickTock(dataset(data), HALF, **QUICK))
    assert reduction(model) >= 0.5 and not model.losses


def test_validation_history_and_early_stopping(model, data):
    stop = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=100)
    callback = Watched(dataset(data), HALF, share=0.05, cycle=(1, 1))
    with pytest.warns(UserWarning, match="before the budget was met"):
        history = train(
            model, data, callback, stop, epochs=9, validation_data=dataset(data)
        )
    assert len(history.history["val_loss"]) == 2
    assert history is model.history


@pytest.mark.parametrize("verbose", [1, 2])
def test_what_is_printed(model, data, capsys, verbose):
    callback = TickTock(dataset(data), HALF, share=0.3, cycle=(1, 1))
    model.fit(dataset(data), epochs=3, verbose=verbose, callbacks=[callback])
    printed = capsys.readouterr().out
    assert "Tick 1" in printed and "flops_reduction=" in printed
    assert printed.count("accuracy") >= 4


def test_preflight_tells_the_plan(model, data, capsys):
    preflight = tfprune.callbacks.Preflight()
    callback = TickTock(dataset(data), HALF, **QUICK)
    train(model, data, callback, preflight)
    printed = capsys.readouterr().out
    assert "4 times 2 Ticks of 6 steps" in printed and "flops_reduction=0.5" in printed


def test_jit_compile(model, data):
    compiled(model, jit_compile=True)
    train(model, data, TickTock(dataset(data), HALF, **QUICK))
    assert reduction(model) >= 0.5


@pytest.mark.slow
def test_mobilenet_v2(data):
    base = keras.applications.MobileNetV2(
        input_shape=(32, 32, 3),
        alpha=0.35,
        weights=None,
        classes=3,
        classifier_activation=None,
    )
    model = compiled(tfprune.prune_wrap(checker.randomize(base, size=32)))
    x = np.repeat(np.repeat(data[0], 4, 1), 4, 2)[:8]
    few = (x, data[1][:8])
    callback = TickTock(dataset(few), HALF, share=0.2, cycle=(9, 1))
    train(model, few, callback, epochs=2)
    small = tfprune.compact(model)
    assert tfprune.cost(small).macs <= 0.5 * tfprune.cost(base).macs


# Bad input ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 0}, "`share` must lie"),
        ({"share": 1.5}, "`share` must lie"),
        ({"cycle": (0, 1)}, "`cycle` must be"),
        ({"cycle": (1,)}, "`cycle` must be"),
        ({"learning_rates": (0.1, 0.01)}, "`learning_rates` must be"),
        ({"gate_l1": -1}, "`gate_l1` must be"),
        ({"reduction": "max"}, "`reduction` must be"),
        ({"budget": 0.5}, "`budget` must be"),
        ({"budget": Budget()}, "`budget` must be"),
        ({"budget": Budget(flops_reduction=0.5, multiple_of=8)}, "cannot round"),
        ({"tick_data": (np.zeros(3), np.zeros(3))}, "`tick_data` must be"),
        ({"tick_data": "repeat"}, "`tick_data` must be"),
    ],
)
def test_bad_arguments(data, arguments, message):
    given = {"tick_data": dataset(data), "budget": HALF, **arguments}
    if given["tick_data"] == "repeat":
        given["tick_data"] = dataset(data).repeat()
    with pytest.raises(ValueError, match=message):
        TickTock(**given)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"clipnorm": 1.0},
        {"global_clipnorm": 1.0},
        {"clipvalue": 1.0},
        {"use_ema": True},
        {"gradient_accumulation_steps": 2},
        {"learning_rate": keras.optimizers.schedules.CosineDecay(0.1, 100)},
    ],
)
def test_optimizers_that_are_refused(model, data, optimizer):
    compiled(model, keras.optimizers.SGD(**optimizer))
    before = values(model.variables)
    with pytest.raises(ValueError, match=next(iter(optimizer))):
        train(model, data, TickTock(dataset(data), HALF, **QUICK))
    assert all(map(np.array_equal, before, values(model.variables)))


def test_models_and_runs_that_are_refused(model, data, make_residual):
    callback = TickTock(dataset(data), HALF, **QUICK)
    with pytest.raises(ValueError, match="has none"):
        train(compiled(make_residual(8)), data, callback)
    steps = dataset(data).filter(lambda x, y: True)
    with pytest.raises(ValueError, match="how many steps"):
        model.fit(steps, epochs=2, verbose=0, callbacks=[callback])
    with pytest.raises(ValueError, match="more than 10 epochs"):
        train(model, data, TickTock(dataset(data), HALF), epochs=10)
    budget = Budget(flops_reduction=0.5, max_sparsity=0.1)
    with pytest.raises(ValueError, match="at most"):
        train(model, data, TickTock(dataset(data), budget, **QUICK))


def test_a_frozen_gate_is_refused_before_training(residual, data):
    residual.get_layer("block1_a_bn").trainable = False
    compiled(residual)
    before = values(residual.variables)
    with pytest.raises(ValueError, match="frozen gate on 'block1_a_bn'"):
        train(residual, data, TickTock(dataset(data), HALF, **QUICK))
    assert all(map(np.array_equal, before, values(residual.variables)))


def test_a_loss_that_is_not_finite_is_said(model, data):
    broken = np.where(np.arange(24)[:, None, None, None] == 5, np.nan, data[0])
    callback = TickTock(dataset((broken, data[1])), HALF, **QUICK)
    with pytest.raises(ValueError, match="not finite"):
        train(model, data, callback)


# Several devices ---------------------------------------------------------------------


def test_on_several_devices_scores_are_those_of_one(two_replicas):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(24, 6)).astype("float32"), np.arange(24) % 3
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)

    def make():
        hidden = [keras.layers.Dense(16, "relu", name=name) for name in "ab"]
        return keras.Sequential([keras.Input((6,)), *hidden, keras.layers.Dense(3)])

    def train(weights):
        model = make()
        model.set_weights(weights)
        model = tfprune.prune_wrap(model)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
        scores = []

        class Scored(TickTock):
            def _close(self):
                scores.append(self._ticks.scores.by_group(self.graph, "sum"))
                super()._close()

        budget = tfprune.Budget(flops_reduction=0.5)
        scored = Scored(data, budget, 0.1, (2, 1))
        model.fit(data, epochs=4, verbose=0, callbacks=[scored])
        return model, scores

    weights = make().get_weights()
    alone, expected = train(weights)
    with two_replicas.scope():
        mirrored, scores = train(weights)
    assert len(expected) == len(scores) > 1
    for first, second in zip(expected, scores, strict=True):
        for name in first:
            np.testing.assert_allclose(first[name], second[name], rtol=1e-3, atol=1e-6)
    assert tfprune.read_masks(alone) == tfprune.read_masks(mirrored)
