"""What a callback learns about its run."""

import gc
import weakref

import keras
import numpy as np
import pytest

from tfprune import training
from tfprune.schedules import OneShot, Polynomial, Update

X = np.ones((8, 2), "float32")
Y = np.ones((8, 1), "float32")


def compiled(optimizer="sgd", **arguments):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer, "mse", **arguments)
    return model


class Probe(training.PruningCallback):
    """Records `origin`, `total_steps` and `siblings` as a tfprune callback would."""

    def __init__(self):
        super().__init__()
        self.origins, self.siblings, self.total = [], None, None

    def on_train_begin(self, logs=None):
        self.total = training.total_steps(self.model, self.params)
        self.siblings = training.siblings(self)

    def on_epoch_begin(self, epoch, logs=None):
        self.origins.append(training.origin(self.model, self.params, epoch))


def probe(model, x=X, y=Y, **arguments):
    callback = Probe()
    arguments = {"batch_size": 1, "verbose": 0, "callbacks": [callback], **arguments}
    model.fit(x, y, **arguments)
    return callback


def test_total_steps():
    assert probe(compiled(), epochs=3).total == 24


def test_total_steps_count_optimizer_steps_under_gradient_accumulation():
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=3)
    assert probe(compiled(optimizer), epochs=2).total == 5
    scaled = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(gradient_accumulation_steps=3)
    )
    assert probe(compiled(scaled), epochs=2).total == 5


def test_total_steps_of_data_of_unknown_length():
    def batches():
        for _ in range(3):
            yield X, Y

    with pytest.warns(UserWarning, match="ran out of data"):
        callback = probe(compiled(), batches(), None, batch_size=None)
    assert callback.total is None


def test_every_epoch_finds_the_same_origin():
    model = compiled(steps_per_execution=3)
    assert probe(model, epochs=3).origins == [0, 0, 0]
    assert probe(model, epochs=5, initial_epoch=3).origins == [0, 0]


def test_earlier_training_moves_the_origin():
    model = compiled()
    model.fit(X, Y, batch_size=1, epochs=2, verbose=0)
    assert probe(model, epochs=2).origins == [16, 16]


def test_a_new_optimizer_begins_in_the_middle():
    assert probe(compiled(), initial_epoch=2, epochs=4).origins == [-16, -16]


def test_steps_beyond_the_epoch_do_not_move_the_origin():
    # 8 steps in executions of 3 out of endless data are 9.
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensors((X, Y)).repeat()
    model = compiled(steps_per_execution=3)
    callback = probe(model, data, None, batch_size=None, steps_per_epoch=8, epochs=3)
    assert int(model.optimizer.iterations) == 27
    assert callback.origins == [0, 0, 0]


def test_siblings_are_those_of_this_fit():
    model = compiled()
    probe(model)
    first, second = Probe(), Probe()
    model.fit(X, Y, verbose=0, callbacks=[first, keras.callbacks.Callback(), second])
    assert first.siblings == (second,)
    assert second.siblings == (first,)


def test_announcing_keeps_no_model_alive():
    model = compiled()
    probe(model)
    reference = weakref.ref(model)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert reference() is None


class Fixed:
    """A schedule that returns what it is given."""

    def __init__(self, *updates):
        self._updates = [Update(*update) for update in updates]

    def updates(self, total_steps):
        return self._updates


def test_simulate_returns_the_updates():
    assert training.simulate(OneShot(3), 10) == (Update(3, 1.0),)
    assert len(training.simulate(Polynomial(), 1000)) == 20


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Fixed(), "does nothing in a run of 10"),
        (Fixed((3, 0.5), (3, 1.0)), "increase strictly"),
        (Fixed((3, 0.5), (2, 1.0)), "increase strictly"),
        (Fixed((3, 0.5)), "must have `fraction=1.0`"),
        (Fixed((11, 1.0)), "come before the run ends"),
    ],
)
def test_simulate_refuses_schedules_that_miss_the_budget(schedule, message):
    with pytest.raises(ValueError, match=message):
        training.simulate(schedule, 10)


def test_batches_count_where_optimizers_do_not():
    known = training.Batches(None, {"steps": 4, "epochs": 3})
    assert (known.total, known.position) == (12, None)
    known.begin_epoch(2)
    assert known.position == 8
    known.end_batch(1)
    assert known.position == 10
    unknown = training.Batches(None, {"steps": None, "epochs": 3})
    assert unknown.total is None
    for epoch in range(2):
        unknown.begin_epoch(epoch)
        unknown.end_batch(2)
    assert unknown.position == 6
