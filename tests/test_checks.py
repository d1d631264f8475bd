"""Numbers that are wrong get one kind of answer: argument, value, what is allowed."""

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tfprune.callbacks import (
    KeepRatioSchedule,
    MaskTraining,
    NetworkSurgery,
    PolicyTraining,
    TickTock,
)
from tfprune.checks import check_integer, check_number, check_time
from tfprune.compat.tfmot import sparsity
from tfprune.layers import (
    HardConcrete,
    RuntimeGate,
    TargetedDropout,
    TrainableMask,
)
from tfprune.optimizers import GlobalSparseMomentum
from tfprune.regularizers import Polarization

NAN, INF = float("nan"), float("inf")
BUDGET = tfprune.Budget(flops_reduction=0.5)


@pytest.mark.parametrize(
    ("interval", "good", "bad", "text"),
    [
        ("[0, 1)", (0, 0.5, np.float32(0.5)), (-0.1, 1, 1.5), r"lie in \[0, 1\)"),
        ("(0, 1]", (1, 1e-9), (0, 1.1), r"lie in \(0, 1\]"),
        ("[0, inf)", (0, 1e30, np.int64(3)), (-1e-9,), "be at least 0"),
        ("(0, inf)", (1e-9,), (0, -1), "be above 0"),
    ],
)
def test_numbers(interval, good, bad, text):
    for value in good:
        check_number("rate", value, interval)
    for value in (*bad, NAN, INF, None, "0.5", True, [0.5]):
        with pytest.raises(ValueError, match=f"`rate` must {text}.*Received: rate="):
            check_number("rate", value, interval)


def test_integers_and_times():
    for value in (2, np.int32(7)):
        check_integer("steps", value, 2)
    for value in (1, 2.0, "2", None, True):
        with pytest.raises(ValueError, match="`steps` must be an int of at least 2"):
            check_integer("steps", value, 2)
    for value in (0, 5, 0.0, 1.0):
        check_time("stop", value)
    for value in (-1, 1.5, "a", None, True, NAN):
        with pytest.raises(ValueError, match="`stop` must be an int of at least 0"):
            check_time("stop", value)


def test_percents_are_recognised():
    with pytest.raises(ValueError, match=r"For 50 % pass 0.5\."):
        check_number("sparsity", 50, "[0, 1)")


def data():
    import tensorflow as tf

    return tf.data.Dataset.from_tensors((np.zeros((2, 4)), np.zeros(2)))


def dense():
    layer = layers.Dense(2)
    layer.build((None, 2))
    return layer


WRONG = {
    "momentum": lambda: GlobalSparseMomentum(sparsity=0.5, momentum="0.9"),
    "compression": lambda: GlobalSparseMomentum(compression="10"),
    "scope['a']": lambda: GlobalSparseMomentum(scope={"a": "b"}),
    "include": lambda: GlobalSparseMomentum(sparsity=0.5, include=5),
    "learning_rate": lambda: MaskTraining(learning_rate="fast"),
    "min_density": lambda: MaskTraining(min_density=None),
    "share": lambda: TickTock(data(), BUDGET, share="a"),
    "cycle": lambda: TickTock(data(), BUDGET, cycle=10),
    "learning_rates": lambda: TickTock(data(), BUDGET, learning_rates=1e-3),
    "gate_l1": lambda: TickTock(data(), BUDGET, gate_l1=None),
    "stop": lambda: NetworkSurgery(stop=True),
    "seed": lambda: NetworkSurgery(seed=None),
    "c['*']": lambda: NetworkSurgery(c="a"),
    "keep_ratio": lambda: KeepRatioSchedule("a"),
    "settle": lambda: PolicyTraining(data(), settle="a"),
    "batches": lambda: PolicyTraining(data(), batches=0.5),
    "t": lambda: Polarization(t=NAN),
    "strength": lambda: Polarization(strength=INF),
    "drop_rate": lambda: HardConcrete(dense(), drop_rate=None),
    "ramp_steps": lambda: TargetedDropout(dense(), ramp_steps=-1),
    "max_trials": lambda: tfprune.search.GridSearch(dense, 0.5, max_trials=1.5),
    "block_size": lambda: sparsity.keras.prune_low_magnitude(dense(), block_size=4),
    "sparsity_m_by_n": lambda: sparsity.keras.prune_low_magnitude(
        dense(), sparsity_m_by_n=(4, 4)
    ),
    "pruning_schedule": lambda: sparsity.keras.prune_low_magnitude(
        dense(), pruning_schedule="constant"
    ),
    "model": lambda: tfprune.runtime.work(
        keras.Sequential([layers.Input((4,)), layers.Dense(2)]), np.zeros((1, 4))
    ),
    "runtime_ratio": lambda: RuntimeGate(runtime_ratio="a"),
    "block": lambda: RuntimeGate(block=True),
    "negative_slope": lambda: TrainableMask(dense(), negative_slope="a"),
    "damping": lambda: tfprune.importances.LOBS(damping=None),
    "cap": lambda: tfprune.thresholds.Valley(cap="a"),
    "frequency": lambda: sparsity.keras.ConstantSparsity(0.5, 0, frequency=1.5),
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_of_wrong_types(name):
    import re

    with pytest.raises(ValueError, match=f"`{re.escape(name)}`(?s:.)*Received: "):
        WRONG[name]()
