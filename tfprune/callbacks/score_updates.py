"""How scores of masks are trained: their own rule, beside the model's optimizer."""

import contextlib
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from tfprune.layers import ChannelGate, TrainableChannelMask, TrainableMask
from tfprune.layers.trainable_mask import set_scores


@dataclass(frozen=True, eq=False)
class Scored:
    """One variable of scores, and what its update needs to know.

    Attributes:
        name: what its density is called in the logs.
        scores: the variable.
        gate: the `TrainableMask` or `TrainableChannelMask` that holds them.
        mask: variable that follows the scores, None where the scores themselves tell.
        kernels: `(variable, shape)` of the weights that a closed score holds still; the
            mask is reshaped to this.
        norms: function without arguments that returns what gradients are divided by, or
            None.
        push: float or array: how hard each score is pushed down, beside others.
    """

    name: str
    scores: object
    gate: object
    mask: object = None
    kernels: tuple = ()
    norms: object = None
    push: object = 1.0


def scored_kernels(graph) -> list[Scored]:
    """Returns what is to be trained in a model with `TrainableMask`s."""
    return [
        Scored(
            name,
            kernel.gate.scores[kernel.index],
            kernel.gate,
            kernels=((kernel.variable, tuple(kernel.variable.shape)),),
        )
        for name, kernel in graph.kernels.items()
        if isinstance(kernel.gate, TrainableMask)
    ]


def scored_channels(graph, push: dict) -> list[Scored]:
    """Returns what is to be trained in a model with `TrainableChannelMask`s.

    Args:
        graph: graph of the model's channels.
        push: `{id(mask variable): array}` with how hard its scores are pushed down.
    """
    gates: dict[int, list] = {}
    for call in graph.calls:
        gate = call.operation
        if isinstance(gate, ChannelGate):
            mask = gate.output_mask
            if isinstance(mask, TrainableChannelMask):
                own = gates.setdefault(id(mask), [])
                own += [] if gate in own else [gate]
    return [_scored_channels(own, push) for own in gates.values()]


def _scored_channels(gates: list, push: dict) -> Scored:
    mask = gates[0].output_mask

    def norms():
        return tf.sqrt(tf.add_n([tf.square(gate.norms()) for gate in gates]))

    return Scored(
        gates[0].name,
        mask.scores,
        mask,
        mask=mask.mask,
        kernels=tuple(pair for gate in gates for pair in gate.masked()),
        norms=norms if mask.learning.rule == "modified" else None,
        push=push.get(id(mask.mask), 1.0),
    )


class ScoreUpdates:
    """Trains scores by plain gradient descent, and keeps closed weights as they are.

    Args:
        scored: list of `Scored`.
        strength: float. Push towards closing, per step and unit of the learning rate.
        hysteresis: float. How far a score is put beyond the threshold when it crosses.
        least: list of ints, how many scores of each stay open at least.
        target: int, the number of open scores in all below which nothing is pushed;
            None for no such number.
    """

    def __init__(self, scored, strength, hysteresis, least, target):
        self.scored = scored
        self._strength, self._hysteresis = strength, hysteresis
        self._least, self._target = least, target
        self.is_pushing = _variable(1.0)
        self._open = [_variable(0, "int32") for _ in scored]
        # Over an epoch: scores that opened again, open scores summed over steps, steps.
        self._recoveries = [_variable(0.0) for _ in scored]
        self._time_open = [_variable(0.0) for _ in scored]
        self._steps = _variable(0.0)

    def begin_epoch(self):
        """Counts anew, from what is open now."""
        for each, count in zip(self.scored, self._open, strict=True):
            count.assign(np.count_nonzero(each.scores.numpy() > 0))
        for counter in (*self._recoveries, *self._time_open, self._steps):
            counter.assign(0.0)

    def logs(self, by_layer: bool) -> dict:
        """Returns what has been counted since the epoch began."""
        sizes = [int(np.prod(each.scores.shape)) for each in self.scored]
        steps = max(1.0, float(self._steps.numpy()))
        time_open = [float(count.numpy()) / steps for count in self._time_open]
        logs = {
            "time_open": sum(time_open) / sum(sizes),
            "recoveries": sum(float(count.numpy()) for count in self._recoveries),
        }
        if by_layer:
            for each, count, size in zip(self.scored, self._open, sizes, strict=True):
                logs[f"density/{each.name}"] = int(count.numpy()) / size
        return logs

    def leave_slope(self, flag: bool):
        """Says whether gradients of scores come without estimators' derivatives."""
        for each in self.scored:
            each.gate.leaves_slope = flag

    def sync(self):
        """Puts scores on the side of the threshold where their masks are."""
        for each in self.scored:
            if each.mask is not None:
                set_scores(each.scores, each.mask.numpy())

    def step(self, gradients, rate):
        """Moves the scores, where their gradients are finite.

        Args:
            gradients: list of float32 tensors, without the estimators' derivatives;
                None for scores that had no part.
            rate: float tensor, the learning rate.
        """
        total = tf.add_n([count.value for count in self._open])
        pushing = tf.convert_to_tensor(self.is_pushing)
        if self._target is not None:
            pushing = pushing * tf.cast(total > self._target, "float32")
        for number, gradient in enumerate(gradients):
            if gradient is not None:
                self._step_one(number, gradient, rate, pushing)
        self._steps.assign_add(1.0)

    def _step_one(self, number, gradient, rate, pushing):
        each, least = self.scored[number], self._least[number]
        scores = tf.convert_to_tensor(each.scores)
        was_open = scores > 0
        if each.norms is not None:
            gradient = tf.math.divide_no_nan(gradient, each.norms())
        push = self._strength * pushing * each.push
        slope = each.gate.learning.sloped
        moved = scores - rate * slope(gradient + push, scores)
        is_open = moved > 0
        count = _count(is_open)
        # Rarely is there anything to take back, so it is looked for by two numbers.
        is_fine = tf.math.is_finite(tf.reduce_sum(moved)) & (count >= least)
        moved, is_open, count = tf.cond(
            is_fine,
            lambda: (moved, is_open, count),
            lambda: _taken_back(scores, was_open, moved, least),
        )
        if self._hysteresis:
            away = tf.where(is_open, self._hysteresis, -self._hysteresis)
            moved = tf.where(is_open == was_open, moved, moved + away)
        reopened = _count(tf.logical_and(is_open, tf.logical_not(was_open)))
        each.scores.assign(moved)
        if each.mask is not None:
            each.mask.assign(is_open)
        self._open[number].assign(count)
        self._recoveries[number].assign_add(tf.cast(reopened, "float32"))
        self._time_open[number].assign_add(tf.cast(count, "float32"))

    @contextlib.contextmanager
    def holding(self):
        """Gives closed weights their values back that an optimizer moved within."""
        before = [
            (variable, tf.identity(tf.convert_to_tensor(variable)), shape, each.scores)
            for each in self.scored
            for variable, shape in each.kernels
        ]
        yield
        for variable, value, shape, scores in before:
            is_open = tf.reshape(tf.convert_to_tensor(scores) > 0, shape)
            variable.assign(tf.where(is_open, tf.convert_to_tensor(variable), value))


def _taken_back(scores, was_open, moved, least):
    """Returns scores, whether and how many are open, without moves that must not be."""
    moved = tf.where(tf.math.is_finite(moved), moved, scores)
    # A layer that has all but closed gets no gradients to open it again: of those that
    # are about to close, the best stay.
    closing = tf.logical_and(was_open, moved <= 0)
    missing = tf.minimum(least - _count(moved > 0), _count(closing))
    values = tf.reshape(tf.where(closing, moved, moved.dtype.min), (-1,))
    best, _ = tf.math.top_k(values, tf.maximum(missing, 1))
    stays = closing & (moved >= best[-1]) & (missing > 0)
    moved = tf.where(stays, scores, moved)
    is_open = moved > 0
    return moved, is_open, _count(is_open)


def _count(flags):
    # Floats take half the time, and count up to here exactly.
    dtype = "float32" if flags.shape.num_elements() <= 1 << 24 else "int32"
    return tf.cast(tf.reduce_sum(tf.cast(flags, dtype)), "int32")


def _variable(value, dtype="float32"):
    return keras.Variable(value, dtype=dtype, trainable=False)
