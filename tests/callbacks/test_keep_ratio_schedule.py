"""KeepRatioSchedule: gates keep all channels at first, and fewer and fewer."""

import keras
import numpy as np
import pytest
from gated import gates_in, small_network

import tfprune
from tfprune.callbacks import KeepRatioSchedule, Preflight
from tfprune.layers import RuntimeGate
from tfprune.schedules import OneShot, Periodic

DATA = (np.ones((64, 12, 12, 3), "float32"), np.zeros(64, int))


def wrapped():
    model = tfprune.prune_wrap(small_network(), RuntimeGate, agent=None, keep_ratio=0.9)
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def fit(model, *callbacks, epochs=4, **arguments):
    settings = {"batch_size": 16, "verbose": 0, "callbacks": list(callbacks)}
    return model.fit(*DATA, epochs=epochs, **settings, **arguments).history


class Ratios(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        self.seen.append({float(gate.keep_ratio) for gate in gates_in(self.model)})


def test_the_ratio_follows_the_schedule():
    model, ratios = wrapped(), Ratios()
    lower = KeepRatioSchedule(0.5, Periodic(begin=4, end=12, frequency=4))
    logs = fit(model, lower, ratios)
    expected = [1.0] * 8 + [0.75] * 4 + [0.5] * 4
    assert ratios.seen == [{each} for each in expected]
    assert logs["keep_ratio"] == [1.0, 0.75, 0.5, 0.5]
    # A run from epoch 0 begins anew.
    assert fit(model, lower, epochs=3)["keep_ratio"][0] == 1.0


def test_a_resumed_run_goes_on_where_it_was(tmp_path):
    schedule = Periodic(begin=0, end=12, frequency=2)
    model = wrapped()
    logs = fit(model, KeepRatioSchedule(0.4, schedule))["keep_ratio"]
    half = wrapped()
    fit(half, KeepRatioSchedule(0.4, schedule), epochs=3)
    half.save(tmp_path / "half.keras")
    again = keras.saving.load_model(tmp_path / "half.keras")
    for gate in gates_in(again):
        gate.keep_ratio.assign(0.9)
    later = fit(again, KeepRatioSchedule(0.4, schedule), initial_epoch=2)
    assert later["keep_ratio"] == logs[2:]


def test_it_is_announced(capsys):
    fit(wrapped(), KeepRatioSchedule(0.5, OneShot(8)), Preflight())
    assert "3 gates keep all channels at first" in capsys.readouterr().out


def test_bad_arguments():
    with pytest.raises(ValueError, match="`keep_ratio` must lie in"):
        KeepRatioSchedule(0.0)
    with pytest.raises(ValueError, match="`schedule` must be one of"):
        KeepRatioSchedule(0.5, 0.3)
    with pytest.raises(ValueError, match="before the run ends|within|run of"):
        fit(wrapped(), KeepRatioSchedule(0.5, OneShot(99)))
    with_agents = tfprune.prune_wrap(small_network(), RuntimeGate, keep_ratio=0.5)
    plain = small_network()
    for model, which in ((with_agents, "gates with agents"), (plain, "none")):
        model.compile("sgd", "sparse_categorical_crossentropy")
        with pytest.raises(ValueError, match=which):
            fit(model, KeepRatioSchedule(0.5))
