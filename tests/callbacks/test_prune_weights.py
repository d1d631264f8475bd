"""Gradual pruning of single weights inside `fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfprune
from tfprune import Budget, schedules
from tfprune.callbacks import Preflight, PruneToBudget
from tfprune.layers import WeightMask

STEPS = 8


def net(dropout=0.2):
    x = keras.Input((8, 8, 4))
    y = layers.Conv2D(8, 3, padding="same", name="conv")(x)
    y = layers.ReLU()(layers.BatchNormalization(name="bn")(y))
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(y)
    y = layers.Dropout(dropout, seed=1)(layers.Flatten()(y))
    return keras.Model(x, layers.Dense(3, name="logits")(y))


def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(16 * STEPS, 8, 8, 4)).astype("float32")
    y = random.integers(0, 3, len(x))
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(16)


def compiled(model, optimizer=None):
    # Everything that moves a weight without a gradient.
    optimizer = optimizer or keras.optimizers.AdamW(0.01, weight_decay=0.1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    return model


def gated(optimizer=None):
    return compiled(tfprune.prune_wrap(net(), WeightMask), optimizer)


def prune(budget=None, **settings):
    settings.setdefault("schedule", schedules.Polynomial(end=0.8, frequency=3))
    budget = budget or Budget(sparsity=0.8)
    return PruneToBudget("magnitude", budget, **settings)


def zeros(model):
    """The share of exact zeros in all kernels, whatever masks say."""
    graph = tfprune.Graph(tfprune.strip(model), unit="weight")
    values = [kernel.variable.numpy().ravel() for kernel in graph.kernels.values()]
    return float(np.mean(np.concatenate(values) == 0))


def raw_zeros(model):
    """The same of what is in the variables, gates or not."""
    graph = tfprune.Graph(model, unit="weight")
    values = [kernel.variable.numpy().ravel() for kernel in graph.kernels.values()]
    return float(np.mean(np.concatenate(values) == 0))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scope": "uniform"},
        {"scope": "erk"},
        {"budget": Budget(n_of_m=(2, 4))},
        {"block": (2, 2)},
        {"schedule": schedules.Constant(frequency=2)},
    ],
    ids=str,
)
def test_budget_is_met_and_logged(settings):
    model = gated()
    history = model.fit(data(), epochs=3, verbose=0, callbacks=[prune(**settings)])
    if "block" not in settings:
        assert history.history["sparsity"][-1] == pytest.approx(raw_zeros(model))
    if "budget" not in settings:
        assert raw_zeros(model) >= 0.79
    x = next(iter(data()))[0]
    np.testing.assert_allclose(tfprune.strip(model)(x), model(x), atol=1e-6)


def test_n_of_m_grows_and_holds():
    model = gated()
    history = model.fit(
        data(), epochs=4, verbose=0, callbacks=[prune(Budget(n_of_m=(2, 4)))]
    )
    assert sorted(history.history["sparsity"]) == history.history["sparsity"]
    kernel = model.get_layer("conv").layer.kernel.numpy()
    assert ((kernel.reshape(3, 3, -1, 4, 8) != 0).sum(3) == 2).all()
    assert (model.get_layer("depthwise").layer.kernel.numpy() != 0).all()


def test_kernels_that_stay_whole_need_no_gates():
    model = compiled(tfprune.prune_wrap(net(), WeightMask, layers=["conv"]))
    budget = Budget(n_of_m=(2, 4), max_sparsity={"conv/kernel": 1.0, "*": 0.0})
    model.fit(data(), verbose=0, callbacks=[prune(budget)])
    kernel = tfprune.strip(model).get_layer("conv").kernel.numpy()
    assert ((kernel.reshape(3, 3, -1, 4, 8) != 0).sum(3) == 2).all()
    with pytest.raises(ValueError, match="keep them whole"):
        model.fit(data(), verbose=0, callbacks=[prune(Budget(n_of_m=(2, 4)))])


class _Watch(keras.callbacks.Callback):
    """Saves in the middle of an epoch, as any callback may, and looks at zeros."""

    def __init__(self, path):
        super().__init__()
        self.path, self.seen = path, []

    def on_train_batch_end(self, batch, logs=None):
        self.model.save(self.path)
        loaded = keras.models.load_model(self.path, compile=False)
        density = tfprune.read_masks(loaded).density()
        self.seen.append((1 - density, raw_zeros(loaded)))


@pytest.mark.parametrize("is_first", [True, False])
def test_every_file_is_exactly_sparse_whatever_the_order(tmp_path, is_first):
    model, watch = gated(), _Watch(tmp_path / "model.keras")
    callbacks = [watch, prune()] if is_first else [prune(), watch]
    model.fit(data().take(6), epochs=2, verbose=0, callbacks=callbacks)
    asked, found = zip(*watch.seen, strict=True)
    assert asked == pytest.approx(found, abs=1e-9)
    assert len({round(each, 6) for each in asked}) > 3


def test_early_stopping_brings_back_weights_as_sparse_as_their_masks():
    model = gated()
    stop = keras.callbacks.EarlyStopping("loss", mode="max", restore_best_weights=True)
    with pytest.warns(UserWarning, match="before the budget was met"):
        model.fit(data(), epochs=6, verbose=0, callbacks=[prune(), stop])
    density = tfprune.read_masks(model).density()
    assert raw_zeros(model) == pytest.approx(1 - density) and density > 0.2


def _values(model):
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]


@pytest.mark.parametrize("kill_at, is_first", [(1, True), (2, False), (3, True)])
def test_killed_anywhere_and_resumed_is_bitwise_the_same(tmp_path, kill_at, is_first):
    class Killed(Exception):
        pass

    def kill(batch, logs):
        if killed.model.optimizer.iterations.numpy() == kill_at * STEPS + 3:
            raise Killed

    # A backup of Keras's does not hold the seeds of dropout.
    start = net(dropout=0.0)
    whole = compiled(tfprune.prune_wrap(start, WeightMask))
    whole.fit(data(), epochs=4, verbose=0, callbacks=[prune()])

    def run(*others):
        model = compiled(tfprune.prune_wrap(start, WeightMask))
        backup = keras.callbacks.BackupAndRestore(tmp_path)
        own = [prune(), backup] if is_first else [backup, prune()]
        model.fit(data(), epochs=4, verbose=0, callbacks=[*own, *others])
        return model

    killed = keras.callbacks.LambdaCallback(on_train_batch_end=kill)
    with pytest.raises(Killed):
        run(killed)
    resumed = run()
    pairs = zip(_values(whole), _values(resumed), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    "policy, settings",
    [("mixed_float16", {"jit_compile": True}), ("mixed_bfloat16", {})],
)
def test_mixed_precision_and_jit(policy, settings):
    keras.config.set_dtype_policy(policy)
    model = net()
    keras.config.set_dtype_policy("float32")
    model = tfprune.prune_wrap(model, WeightMask)
    model.compile("adam", "sparse_categorical_crossentropy", **settings)
    model.fit(data(), epochs=2, verbose=0, callbacks=[prune()])
    assert raw_zeros(model) == pytest.approx(0.8, abs=1e-2)


def test_pruned_model_exports_without_gates(tmp_path):
    model = gated()
    model.fit(data(), epochs=2, verbose=0, callbacks=[prune()])
    tfprune.export(model, tmp_path / "sparse")
    served = tf.saved_model.load(str(tmp_path / "sparse"))
    x = next(iter(data()))[0]
    np.testing.assert_allclose(served.serve(x), model(x), atol=1e-5)
    assert len(served.variables) == len(net().variables)
    assert zeros(model) == raw_zeros(model)


def test_summary_says_how_often_masks_change(capsys):
    model = gated()
    model.fit(data(), epochs=1, verbose=0, callbacks=[prune(), Preflight()])
    text = capsys.readouterr().out
    assert "mask updates: 2, the first after step 3, the last after step 6" in text
    assert "kept whole: bn (it has no kernels (gamma, beta" in text


@pytest.mark.parametrize(
    "schedule, message",
    [
        (schedules.Polynomial(0, 100, frequency=100), "does not finish within the run"),
        (schedules.OneShot(9), "does not finish within the run"),
    ],
)
def test_a_schedule_that_would_prune_nothing_is_refused(schedule, message):
    with pytest.raises(ValueError, match=message):
        gated().fit(data(), verbose=0, callbacks=[prune(schedule=schedule)])


def test_channel_callbacks_refuse_masks_on_weights():
    tick_tock = tfprune.callbacks.TickTock(data(), Budget(flops_reduction=0.5))
    with pytest.raises(ValueError, match="masks on weights"):
        gated().fit(data(), verbose=0, callbacks=[tick_tock])
    with pytest.raises(ValueError, match="has a `sparsity`"):
        gated().fit(data(), verbose=0, callbacks=[prune(Budget(flops_reduction=0.5))])


@pytest.mark.parametrize("gate", [WeightMask, tfprune.layers.ChannelGate])
def test_sparsities_are_written_for_tensorboard(tmp_path, gate):
    pytest.importorskip("tensorboard")
    from tensorflow.python.summary.summary_iterator import summary_iterator

    model = compiled(tfprune.prune_wrap(net(), gate))
    summaries = tfprune.callbacks.MaskSummaries(tmp_path)
    budget = Budget(sparsity=0.5)
    history = model.fit(
        data(), epochs=2, verbose=0, callbacks=[prune(budget), summaries]
    )
    (path,) = tmp_path.glob("*")
    events = [value for e in summary_iterator(str(path)) for value in e.summary.value]
    found = {}
    for event in events:
        found.setdefault(event.tag, []).append(float(tf.make_ndarray(event.tensor)))
    np.testing.assert_allclose(
        found["sparsity"], history.history["sparsity"], rtol=1e-5
    )
    unit = "weight" if gate is WeightMask else "channel"
    names = [group.name for group in tfprune.Graph(model, unit=unit).groups]
    assert {f"sparsity/{name}" for name in names} == found.keys() - {"sparsity"}
