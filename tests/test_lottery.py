"""Winning tickets: what is kept, what is rewound, and the controls."""

import keras
import numpy as np
import pytest
from keras import layers

from tfprune import Graph, remove_passive, winning_ticket
from tfprune.optimizers import GlobalSparseMomentum

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(64, 10)).astype("float32"), RANDOM.integers(0, 3, 64)


@pytest.fixture
def model():
    return keras.Sequential(
        [
            keras.Input((10,)),
            layers.Dense(16, "relu", name="fc1"),
            layers.BatchNormalization(name="bn"),
            layers.Dense(3, name="logits"),
        ]
    )


def train(model, callbacks=(), optimizer=None, **settings):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.SGD(0.1), loss, **settings)
    model.fit(X, Y, batch_size=16, epochs=3, verbose=0, callbacks=[*callbacks])


def kernels(model):
    graph = Graph(model, unit="weight")
    return {name: kernel.variable.numpy() for name, kernel in graph.kernels.items()}


def assert_rewound(ticket, start):
    for name, value in kernels(ticket.model).items():
        mask = ticket.masks[name].reshape(value.shape)
        np.testing.assert_array_equal(value, kernels(start)[name] * mask)


def test_one_shot(model):
    before = [w.copy() for w in model.get_weights()]
    ticket = winning_ticket(model, train, sparsity=0.75)
    flat = np.concatenate([abs(v).ravel() for v in kernels(ticket.trained).values()])
    kept = np.concatenate(list(ticket.masks.values()))
    assert kept.sum() == 208 // 4
    assert flat[kept].min() >= flat[~kept].max()
    assert_rewound(ticket, model)
    # All that is not masked is at its beginning, too, statistics included.
    bn, start = ticket.model.get_layer("bn"), model.get_layer("bn")
    for now, then in zip(bn.weights, start.weights, strict=True):
        np.testing.assert_array_equal(now.numpy(), then.numpy())
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert not model.compiled and not ticket.model.compiled

    train(ticket.model)
    for name, value in kernels(ticket.model).items():
        mask = ticket.masks[name].reshape(value.shape)
        assert not value[~mask].any()
        assert (value[mask] != kernels(model)[name][mask]).mean() > 0.5


def test_rounds_remove_the_same_share_each(model):
    seen = []

    def watched(network, callbacks):
        value = np.concatenate([v.ravel() for v in kernels(network).values()])
        seen.append(value != 0)
        train(network, callbacks)

    ticket = winning_ticket(model, watched, sparsity=0.488, rounds=3)
    counts = [int(each.sum()) for each in seen]
    assert counts == [208, int(208 * 0.8), int(208 * 0.64)]
    final = np.concatenate(list(ticket.masks.values()))
    assert final.sum() == int(208 * 0.512)
    for earlier, later in zip(seen, [*seen[1:], final], strict=True):
        assert not (later & ~earlier).any()
    assert_rewound(ticket, model)


def test_a_fraction_for_every_layer(model):
    scope = {"logits/*": 1 - 0.9**2, "*": 1 - 0.8**2}
    ticket = winning_ticket(model, train, scope=scope, rounds=2)
    shares = [mask.mean() for mask in ticket.masks.values()]
    np.testing.assert_allclose(shares, [0.64, 0.81], atol=0.02)


def test_late_rewinding(model):
    class Recorder(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.weights = []

        def on_train_batch_end(self, batch, logs=None):
            self.weights.append(self.model.get_weights())

    recorder = Recorder()
    ticket = winning_ticket(
        model, lambda m, c: train(m, [*c, recorder]), sparsity=0.5, rewind_steps=5
    )
    for now, then in zip(ticket.start.get_weights(), recorder.weights[4], strict=True):
        np.testing.assert_array_equal(now, then)
    assert_rewound(ticket, ticket.start)
    rounds = winning_ticket(model, train, sparsity=0.9, rounds=2, rewind_steps=5)
    assert_rewound(rounds, rounds.start)
    assert sum(mask.sum() for mask in rounds.masks.values()) == 20
    with pytest.raises(ValueError, match="must fall between two executions"):
        winning_ticket(
            model,
            lambda m, c: train(m, c, steps_per_execution=3),
            sparsity=0.5,
            rewind_steps=5,
        )
    with pytest.raises(ValueError, match="did not come to the step.*rewind_steps=99"):
        winning_ticket(model, train, sparsity=0.5, rewind_steps=99)
    with pytest.raises(ValueError, match="Give the callbacks"):
        winning_ticket(model, lambda m, c: train(m), sparsity=0.5, rewind_steps=5)


@pytest.mark.filterwarnings("ignore:The weights that go")
def test_found_by_gsm(model):
    given = []

    def find(trained):
        given.append(trained.get_weights())
        train(trained, optimizer=GlobalSparseMomentum(0.01, sparsity=0.8))
        return remove_passive(trained, verbose=0)

    ticket = winning_ticket(model, train, find=find)
    assert sum(mask.sum() for mask in ticket.masks.values()) == int(0.2 * 208)
    for a, b in zip(given[0], ticket.trained.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert_rewound(ticket, model)


def test_controls(model):
    ticket = winning_ticket(model, train, sparsity=0.8)
    random, again, other = (ticket.with_random_masks(seed=n) for n in (1, 1, 2))
    for name, mask in ticket.masks.items():
        assert random.masks[name].sum() == other.masks[name].sum() == mask.sum()
        assert (random.masks[name] == again.masks[name]).all()
    assert random.masks != ticket.masks and random.masks != other.masks
    assert_rewound(random, model)

    new = ticket.with_new_weights(seed=1)
    assert new.masks == ticket.masks
    assert_rewound(new, new.start)
    for a, b in zip(kernels(new.start).values(), kernels(model).values(), strict=True):
        assert (a != b).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "Exactly one of"),
        ({"sparsity": 0.5, "find": print}, "Exactly one of"),
        ({"sparsity": 0.5, "scope": {"*": 0.5}}, "Exactly one of"),
        ({"sparsity": 1.0}, r"must lie in \(0, 1\)"),
        ({"sparsity": 0.5, "rounds": 0}, "`rounds` must be"),
        ({"find": print, "rounds": 2}, "1 with `find`"),
        ({"sparsity": 0.5, "rewind_steps": -1}, "`rewind_steps` must be"),
    ],
)
def test_bad_arguments(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        winning_ticket(model, train, **arguments)


def test_train_must_train(model):
    with pytest.raises(ValueError, match="must train the model that it is given"):
        winning_ticket(model, lambda m, c: None, sparsity=0.5)
