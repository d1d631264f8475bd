"""PolicyTraining: agents learn between epochs, and `fit` trains the rest."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from gated import gates_in, small_network

import tfprune
from tfprune.callbacks import PolicyTraining, Preflight
from tfprune.layers import RuntimeGate
from tfprune.layers.runtime_policy import WarmUp
from tfprune.runtime.learning import Learner, _losses_of_samples
from tfprune.runtime.work import seeing_masks
from tfprune.surgery.runtime import without_runtime_gates

KINDS = {
    "both": {"runtime_ratio": 0.5, "block": 5},
    "static": {"runtime_ratio": 0.0},
    "groups": {"agent": "groups", "selection": "prefix"},
    "network": {"agent": "groups", "selection": "prefix", "per_network": True},
}


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    y = random.integers(0, 5, 96)
    x = random.normal(0, 0.3, (96, 12, 12, 3)) + (y / 5)[:, None, None, None]
    batches = tf.data.Dataset.from_tensor_slices((x.astype("float32"), y))
    return batches.batch(32)


def wrapped(gates=2, **arguments):
    base = small_network()
    convolutions = [x for x in base.layers if isinstance(x, keras.layers.Conv2D)]
    arguments["layers"] = [layer.name for layer in convolutions[:gates]]
    if arguments.get("agent") != "groups":
        arguments["keep_ratio"] = 0.5
    model = tfprune.prune_wrap(base, RuntimeGate, **arguments)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    return model


def values_of(layers_or_models):
    return [w.numpy() for each in layers_or_models for w in each.variables]


@pytest.mark.parametrize("kind", KINDS)
def test_everything_learns_and_is_settled(kind, data):
    model = wrapped(**KINDS[kind])
    gate = gates_in(model)[0]
    agents = gate.policy.agents
    before = values_of(agents)
    training = PolicyTraining(data, learning_rate=1e-3)
    logs = model.fit(data, epochs=4, verbose=0, callbacks=[training]).history
    changed = [
        np.any(old != new) for old, new in zip(before, values_of(agents), strict=True)
    ]
    assert sum(changed) > len(changed) / 2
    # A phase after every epoch but the last.
    assert len(logs["agent_loss"]) == 3 and gate.policy.memory.numpy()[0] == 3
    assert 0 < logs["kept_macs"][0] <= 1
    assert ("static_reward" in logs) == (kind in ("both", "static"))
    assert bool(gate.policy.settled.numpy()) == gate.has_static_part
    small = tfprune.compact(model)
    if gate.has_static_part:
        assert small.count_params() < model.count_params()
    x = np.concatenate([x for x, _ in data])
    np.testing.assert_allclose(small(x), model(x), atol=1e-4)
    assert tfprune.cost(small).params == small.count_params()


def test_static_parts_are_told_of_filters_once(data):
    model, seen = wrapped(1, runtime_ratio=0.0), []
    (gate,) = gates_in(model)

    def note(epoch, logs):
        seen.append(gate.features.numpy())

    callbacks = [PolicyTraining(data), keras.callbacks.LambdaCallback(None, note)]
    model.fit(data, epochs=2, verbose=0, callbacks=callbacks)
    assert seen[0].any(axis=0).all()
    np.testing.assert_array_equal(*seen)


def test_static_parts_are_told_of_gradients_that_float16_cannot_hold(data):
    keras.config.set_dtype_policy("mixed_float16")
    model = wrapped(1, runtime_ratio=0.0)
    loss = model.loss
    model.compile("sgd", lambda y, y_pred: 2.0**-24 * loss(y, y_pred))
    (gate,) = gates_in(model)
    seen = []
    tell = keras.callbacks.LambdaCallback(
        lambda epoch, logs: seen.append(gate.features.numpy()[:, 2])
    )
    model.fit(data, epochs=1, verbose=0, callbacks=[PolicyTraining(data), tell])
    assert np.isfinite(seen).all() and np.any(seen)


def test_epochs_leave_agents_alone_and_phases_the_network(data):
    model = wrapped(runtime_ratio=0.5)
    policy = gates_in(model)[0].policy
    agents = values_of(policy.agents)
    model.fit(data, epochs=1, verbose=0)
    for old, new in zip(agents, values_of(policy.agents), strict=True):
        np.testing.assert_array_equal(old, new)
    own = {id(w) for agent in policy.agents for w in agent.variables}
    own.add(id(policy.memory))
    network = [w for w in model.variables if id(w) not in own]
    before = [w.numpy() for w in network]
    Learner(model, gates_in(model), 1e-3, -0.1, 0).phase(data)
    for old, variable in zip(before, network, strict=True):
        np.testing.assert_array_equal(old, variable.numpy(), err_msg=variable.path)


@pytest.mark.parametrize(
    ("kind", "arguments"), [("both", {"settle": 3}), ("groups", {"warm_up": 3})]
)
def test_a_fit_that_goes_on_is_the_one_that_was_not_interrupted(
    kind, arguments, data, tmp_path
):
    def fit(model, start=0):
        training = PolicyTraining(data, learning_rate=1e-2, seed=3, **arguments)
        callbacks = [training, Stop()]
        settings = {"initial_epoch": start, "verbose": 0, "callbacks": callbacks}
        model.fit(data, epochs=4, **settings)

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                self.model.save(tmp_path / "half.keras")

    keras.utils.set_random_seed(0)
    model = wrapped(1, **KINDS[kind])
    fit(model)
    again = keras.saving.load_model(tmp_path / "half.keras")
    fit(again, 2)
    for old, new in zip(model.variables, again.variables, strict=True):
        # Keras does not save where generators of dropout are, of which there is none.
        if "seed_generator" not in old.path:
            np.testing.assert_array_equal(old, new, err_msg=old.path)


@pytest.mark.parametrize(("kind", "found"), [("groups", 4), ("both", 1)])
def test_agents_have_no_say_while_the_network_warms_up(kind, found):
    model = wrapped(**KINDS[kind])
    x = np.ones((64, 12, 12, 3), "float32")
    policy = gates_in(model)[0].policy

    def widths(training):
        seen = {}

        def see(gate, mask):
            seen[gate.name] = mask.numpy().sum(axis=-1) / gate.channels
            return mask

        with seeing_masks(model, see):
            model(x, training=training)
        return [set(each) for each in seen.values()]

    assert [len(each) for each in widths(True)] == [1] * 2
    policy.warming_up = WarmUp(tf.Variable(1.0), tf.random.Generator.from_seed(0))
    assert [len(each) for each in widths(True)] == [found] * 2
    assert [len(each) for each in widths(False)] == [1] * 2
    if kind == "both":
        assert widths(True) == [{1.0}] * 2 and {1.0} not in widths(False)


@pytest.mark.parametrize("start", [0, 1])
def test_fewer_channels_stay_batch_by_batch_while_the_network_warms_up(start, data):
    model, widths = wrapped(1), Widths()
    size = gates_in(model)[0].channels
    with seeing_masks(model, widths.see):
        training = PolicyTraining(data, warm_up=2)
        settings = {"initial_epoch": start, "epochs": 3, "verbose": 0}
        model.fit(data, callbacks=[widths, training], **settings)
    ratios = {epoch: 1 - (epoch + np.arange(3) / 3) / 2 * 0.5 for epoch in (0, 1)}
    for epoch in range(start, 2):
        assert widths.seen[epoch] == set(np.round(ratios[epoch] * size))
    # Then agents decide, at first by what the ratio is to be.
    assert widths.seen[2] == {round(0.5 * size)}


class Widths(keras.callbacks.Callback):
    """Notes how many channels are kept as the network trains, `{epoch: counts}`."""

    def __init__(self):
        super().__init__()
        self.seen, self.epoch = {}, None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        self.epoch = None

    def note(self, mask):
        self.seen.setdefault(self.epoch, set()).update(mask.sum(axis=-1).tolist())
        return mask

    def see(self, gate, mask):
        seen = tf.numpy_function(self.note, [mask], tf.bool)
        return tf.ensure_shape(seen, mask.shape)


def test_agents_learn_after_the_network_has_met_every_choice(data, capsys):
    model = wrapped(1, **KINDS["groups"])
    agent, widths = gates_in(model)[0].policy.agent, Widths()
    # What it holds best is the same for all images.
    agent.worth.set_weights([np.zeros((128, 4)), np.eye(4)[2]])
    model.fit(data, epochs=1, verbose=0)
    with seeing_masks(model, widths.see):
        callbacks = [widths, PolicyTraining(data, warm_up=2), Preflight()]
        logs = model.fit(data, epochs=4, verbose=0, callbacks=callbacks).history
    assert "learn in 2 phases between 4 epochs, the first 2" in capsys.readouterr().out
    counts = [len(widths.seen[epoch]) for epoch in range(4)]
    assert counts == [4, 4, 1, 1]
    assert len(logs["agent_loss"]) == 2
    # Agents that have learned have a say from the first epoch on.
    with seeing_masks(model, widths.see):
        widths.seen.clear()
        callbacks = [widths, PolicyTraining(data, warm_up=1)]
        model.fit(data, epochs=2, verbose=0, callbacks=callbacks)
    assert len(widths.seen[0]) == 1
    with pytest.warns(UserWarning, match="will not learn"):
        callbacks = [PolicyTraining(data, warm_up=3)]
        wrapped().fit(data.take(1), verbose=0, callbacks=callbacks)


class StopAt(keras.callbacks.Callback):
    """Ends training after an epoch."""

    def __init__(self, last):
        super().__init__()
        self.last = last

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch == self.last


def test_agents_do_not_learn_after_the_epoch_that_ends_training(data):
    model = wrapped(1)
    callbacks = [StopAt(1), PolicyTraining(data, warm_up=0)]
    model.fit(data.take(1), epochs=5, verbose=0, callbacks=callbacks)
    assert gates_in(model)[0].policy.memory.numpy()[0] == 1


@pytest.mark.parametrize("ended_by", ["stop", "restored"])
def test_it_says_so_if_what_is_static_is_not_settled_in_the_end(ended_by, data):
    stops = {
        "stop": StopAt(0),
        # The first epoch is the best, as no other can be.
        "restored": keras.callbacks.EarlyStopping(
            "loss", min_delta=1e9, patience=9, restore_best_weights=True
        ),
    }
    callbacks = [stops[ended_by], PolicyTraining(data.take(1), warm_up=0, settle=1)]
    model = wrapped(1, runtime_ratio=0.5)
    with pytest.warns(UserWarning, match="is not settled.*start_from_epoch=1"):
        model.fit(data.take(1), epochs=2, verbose=0, callbacks=callbacks)


def test_what_is_compacted_has_the_same_budget(data):
    model = wrapped(runtime_ratio=0.5)
    gates = gates_in(model)
    for gate, ratio in zip(gates, (0.2, 0.6), strict=True):
        count = round((0.5 + 0.5 * ratio) * gate.units)
        gate.stored.assign(np.arange(gate.units) < count)
        gate.static_keep.assign(ratio)
    gates[0].policy.settled.assign(True)
    small = tfprune.compact(model)
    small.compile("sgd", model.loss)
    assert [gate.units < gate.total for gate in gates_in(small)] == [True, True]
    learners = [Learner(x, gates_in(x), 1e-9, -0.1, 0) for x in (model, small)]
    assert learners[0].caps == pytest.approx(learners[1].caps)
    before, after = (learner.phase(data.take(1)) for learner in learners)
    assert before == pytest.approx(after, rel=1e-4)
    # All that is stored stays where images have no say.
    plain = [tfprune.cost(without_runtime_gates(x)).macs for x in (model, small)]
    for learner in learners:
        decisions = [{"ratios": np.ones(1), "static_ratios": np.ones(1)}] * 2
        shares = learner._shares(decisions)
        assert shares["macs"] == pytest.approx(plain[1] / plain[0])


def own_loss(y, p):
    return tf.square(y - p)


LOSSES = {
    "binary_crossentropy": 1,
    "hinge": 1,
    "crossentropy": 3,
    "sparse_categorical_crossentropy": 3,
    own_loss: 1,
    keras.losses.Huber(): 1,
}


@pytest.mark.parametrize(("loss", "outputs"), LOSSES.items())
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_agents_see_the_losses_that_keras_takes(loss, outputs, dtype):
    inputs = keras.layers.Input((3,))
    dense = keras.layers.Dense(outputs, "softmax" if outputs > 1 else "sigmoid")
    model = keras.Model(inputs, dense(inputs))
    model.compile("sgd", loss)
    predictions = model(np.random.default_rng(0).normal(size=(4, 3)))
    y = np.array([0, 1, 1, 0], dtype)
    losses = _losses_of_samples(model)(tf.constant(y), predictions)
    ones = [slice(number, number + 1) for number in range(4)]
    expected = [model.compute_loss(None, y[one], predictions[one]) for one in ones]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def learned(sign, rounds):
    """What agents keep of three layers, of which one carries all of the signal."""
    inputs = keras.layers.Input((4, 4, 8))
    branches = []
    for name in "abc":
        conv = keras.layers.Conv2D(16, 1, use_bias=False, name=name)
        branches.append(keras.layers.ReLU()(conv(inputs)))
    means = [keras.layers.GlobalAveragePooling2D()(x) for x in branches]
    heads = [keras.layers.Dense(1, use_bias=False)(x) for x in means]
    base = keras.Model(inputs, keras.layers.Add()(heads))
    for name in "abc":
        kernel = base.get_layer(name).kernel
        kernel.assign(np.full(kernel.shape, 1 / 8))
    for layer, size in zip(base.layers[-4:-1], (0.0, 1.0, 0.0), strict=True):
        layer.kernel.assign(np.full(layer.kernel.shape, size))
    model = tfprune.prune_wrap(base, RuntimeGate, keep_ratio=0.5)
    model.compile("sgd", lambda y, p: keras.ops.abs(y - p)[:, 0])
    x = np.ones((128, 4, 4, 8), "float32")
    learner = Learner(model, gates_in(model), 1e-3, -0.1, 0)
    learn = learner._learn
    learner._learn = lambda losses, decisions: learn(sign * losses, decisions)
    learner.phase([(tf.constant(x), tf.constant(base(x)))] * rounds)
    kept = tfprune.runtime.kept_channels(model, x[:1])
    return {name: mask.mean() for name, mask in kept.items()}


def test_agents_find_the_layer_that_carries_the_signal():
    kept = learned(1.0, 250)
    assert kept["b_gate"] > 0.9
    assert np.mean(list(kept.values())) < 0.55


def test_they_do_not_if_the_loss_is_turned_round():
    kept = learned(-1.0, 60)
    assert kept["b_gate"] < 0.5


@pytest.mark.parametrize(
    ("time", "epoch"), [(0.5, 4), (np.float32(0.5), 4), (2, 2), (np.int64(2), 2)]
)
def test_times_are_epochs_or_fractions_whatever_their_type(time, epoch, data):
    training = PolicyTraining(data, settle=time, warm_up=time)
    training.set_model(wrapped(1, runtime_ratio=0.5))
    training.set_params({"epochs": 8})
    training.on_train_begin()
    text = training.summary()
    assert f"the first {epoch} of which" in text and f"after epoch {epoch}" in text


def test_bad_arguments(data):
    for arguments, name in (
        ({"every": 0}, "every"),
        ({"settle": 1.5}, "settle"),
        ({"penalty": 0.1}, "penalty"),
        ({"warm_up": -1}, "warm_up"),
    ):
        with pytest.raises(ValueError, match=f"`{name}`"):
            PolicyTraining(data, **arguments)
    with pytest.raises(ValueError, match="`agent_data` must be .*, not arrays"):
        PolicyTraining((np.zeros((4, 8, 8, 3)), np.zeros(4)))
    generator = (batch for batch in data)
    for endless in (data.repeat(), generator):
        with pytest.raises(ValueError, match="`batches` must say .*batches=None"):
            PolicyTraining(endless)
        PolicyTraining(endless, batches=1)
    x = np.zeros((4, 12, 12, 3), "float32")
    for batches in (data.map(lambda x, y: x), data.map(lambda x, y: {"x": x, "y": y})):
        with pytest.raises(ValueError, match=r"`agent_data` must have .*`\(x, y\)`"):
            PolicyTraining(batches)
    with pytest.raises(ValueError, match=r"`agent_data` must have .*`\(x, y\)`"):
        PolicyTraining([x])._first_batch()
    two = wrapped()
    two = keras.Model(two.input, [two.output, two.output])
    two.compile("sgd", "mse")
    with pytest.raises(ValueError, match="needs one loss, of one output. .*2 outputs"):
        two.fit(data, verbose=0, callbacks=[PolicyTraining(data)])
    two = wrapped()
    two.compile("sgd", lambda y, p: tf.reduce_mean(p))
    with pytest.raises(ValueError, match="needs a loss of each image"):
        _losses_of_samples(two)(tf.zeros(4), tf.zeros((4, 3)))
    plain = small_network()
    plain.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="agents of runtime gates"):
        plain.fit(data, verbose=0, callbacks=[PolicyTraining(data)])
    with pytest.raises(ValueError, match="none, or had them once"):
        training = PolicyTraining(iter([]), batches=1)
        wrapped(1).fit(data.take(1), epochs=2, verbose=0, callbacks=[training])
    with pytest.warns(UserWarning, match="not be settled"):
        training = PolicyTraining(data, settle=5)
        wrapped(runtime_ratio=0.0).fit(data.take(1), verbose=0, callbacks=[training])
