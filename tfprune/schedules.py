"""When masks change during training, and how much of the budget is in force.

A schedule is a frozen dataclass with one method, `updates(total_steps)`. It
returns the optimizer steps after which masks are chosen anew, each with the
fraction of the budget in force from then on. Times are written as `int` (optimizer
steps) or `float` (fraction of the run): `1` is one step, `1.0` the end of the run.

The last update always brings the whole budget: a frequency which does not
divide the schedule's length costs an uneven last interval, never the target.
"""

import dataclasses
import numbers
from typing import NamedTuple

import numpy as np

from tfprune.checks import check_number, check_time, is_integer


class Update(NamedTuple):
    """Masks are chosen anew after `step` steps, at `fraction` of the budget."""

    step: int
    fraction: float


def check(schedule) -> None:
    """Raises ValueError unless `schedule` is one, by what it can do."""
    if not callable(getattr(schedule, "updates", None)) or isinstance(schedule, type):
        raise ValueError(
            "`schedule` must be one of `tfprune.schedules`, such as "
            f"`Polynomial(end=0.5)`. Received: schedule={schedule!r}"
        )


@dataclasses.dataclass(frozen=True)
class Constant:
    """The whole budget from `begin` on, chosen anew every `frequency` steps.

    A channel that was removed comes back when its importance has risen above
    that of a channel still kept; a single weight is zero then, and stays so. No
    choice is made after the last step, since no training could follow it.

    Args:
        begin: int (steps) or float (fraction of the run). First choice.
            Defaults to `0`.
        frequency: int (steps) or float (fraction of the run). Time between
            two choices. Defaults to `0.05`.

    Raises:
        ValueError: for arguments out of range or, when training begins, if the run is
            too short for them.

    Example:

    >>> Constant(begin=10, frequency=30).updates(total_steps=100)[:2]
    (Update(step=10, fraction=1.0), Update(step=40, fraction=1.0))
    """

    begin: int | float = 0
    frequency: int | float = 0.05

    def __post_init__(self):
        check_time("begin", self.begin)
        _check_frequency(self.frequency)

    def updates(self, total_steps):
        """Returns the `Update`s of a run of `total_steps` optimizer steps."""
        if total_steps is None:
            raise ValueError(
                "`Constant` chooses until the run ends, so it needs the number "
                f"of steps of the run. Received: total_steps=None, {self}. Pass "
                "`steps_per_epoch` to `fit`, or use `OneShot`."
            )
        begin = _step("begin", self.begin, total_steps)
        _check_end(self, begin, total_steps)
        frequency = _interval(self.frequency, total_steps)
        steps = range(begin, max(total_steps, begin + 1), frequency)
        return tuple(Update(step, 1.0) for step in steps)


@dataclasses.dataclass(frozen=True)
class OneShot:
    """The whole budget at once.

    Args:
        at: int (steps) or float (fraction of the run). Defaults to `0`: before
            the first step.

    Example:

    >>> OneShot(at=0.25).updates(total_steps=100)
    (Update(step=25, fraction=1.0),)
    """

    at: int | float = 0

    def __post_init__(self):
        check_time("at", self.at)

    def updates(self, total_steps=None):
        """Returns the one `Update` of a run of `total_steps` optimizer steps."""
        at = _step("at", self.at, total_steps)
        _check_end(self, at, total_steps)
        return (Update(at, 1.0),)


@dataclasses.dataclass(frozen=True)
class Periodic:
    """The budget in equal portions, every `frequency` steps.

    Nothing goes at `begin` itself; the first portion goes `frequency` steps
    later, the last at `end`.

    Args:
        begin: int (steps) or float (fraction of the run). Defaults to `0`.
        end: int (steps) or float (fraction of the run). When the whole budget
            is in force. Defaults to `0.5`.
        frequency: int (steps) or float (fraction of the run). Time between
            two updates. Defaults to `0.025`: 20 updates.

    Raises:
        ValueError: for arguments out of range or, when training begins, if the run is
            too short for them.

    Example:

    >>> Periodic(begin=0, end=40, frequency=20).updates(total_steps=100)
    (Update(step=20, fraction=0.5), Update(step=40, fraction=1.0))
    """

    begin: int | float = 0
    end: int | float = 0.5
    frequency: int | float = 0.025

    def __post_init__(self):
        _check_span(self)

    def updates(self, total_steps=None):
        """Returns the `Update`s of a run of `total_steps` optimizer steps."""
        return _ramp(self, total_steps, lambda progress: progress)


@dataclasses.dataclass(frozen=True)
class Polynomial:
    """The budget in shrinking portions: much at first, little at the end.

    At progress `p` from `begin` (0) to `end` (1) the fraction in force is
    `1 - (1 - p) ** power`. Nothing goes at `begin` itself; the first portion
    goes `frequency` steps later, the last at `end`. The rest of the run trains
    the final masks.

    Args:
        begin: int (steps) or float (fraction of the run). Defaults to `0`.
        end: int (steps) or float (fraction of the run). When the whole budget
            is in force. Defaults to `0.5`.
        power: positive number. `1` is `Periodic`. Defaults to `3`.
        frequency: int (steps) or float (fraction of the run). Time between
            two updates. Defaults to `0.025`: 20 updates.

    Raises:
        ValueError: for arguments out of range or, when training begins, if the run is
            too short for them.

    Example:

    >>> Polynomial(begin=0, end=40, frequency=20).updates(total_steps=100)
    (Update(step=20, fraction=0.875), Update(step=40, fraction=1.0))

    Source:
        [Zhu and Gupta, 2017](https://arxiv.org/abs/1710.01878), equation 1,
        with initial sparsity 0.
    """

    begin: int | float = 0
    end: int | float = 0.5
    power: int | float = 3
    frequency: int | float = 0.025

    def __post_init__(self):
        _check_span(self)
        check_number("power", self.power, "(0, inf)", "the usual choice is 3")

    def updates(self, total_steps=None):
        """Returns the `Update`s of a run of `total_steps` optimizer steps."""
        return _ramp(self, total_steps, lambda p: 1.0 - (1.0 - p) ** self.power)


def _ramp(schedule, total_steps, shape):
    begin = _step("begin", schedule.begin, total_steps)
    end = _step("end", schedule.end, total_steps)
    if begin > end:
        raise ValueError(
            f"`begin` must not come after `end`. Received: {schedule}, which in a "
            f"run of {total_steps} steps begins at step {begin} and ends at {end}."
        )
    _check_end(schedule, end, total_steps)
    frequency = _interval(schedule.frequency, total_steps)
    steps = np.arange(begin + frequency, end, frequency)
    fractions = shape((steps - begin) / (end - begin))
    early = map(Update, steps.tolist(), fractions.tolist())
    return (*early, Update(end, 1.0))


def _step(name, time, total_steps):
    """The step that `time` (int: steps, float: fraction of the run) stands for."""
    if isinstance(time, numbers.Integral):
        return int(time)
    if total_steps is None:
        raise ValueError(
            f"`{name}` is a fraction of the run, whose number of steps is unknown. "
            f"Received: {name}={time!r}, total_steps=None. Pass `steps_per_epoch` "
            "to `fit`, or write all times of the schedule as int (steps)."
        )
    return round(float(time) * total_steps)


def _interval(frequency, total_steps):
    return max(1, _step("frequency", frequency, total_steps))


def _check_end(schedule, end, total_steps):
    if total_steps is None:
        return
    if total_steps < 1:
        raise ValueError(
            "A schedule needs a run of at least one optimizer step. Received: "
            f"total_steps={total_steps}."
        )
    if end > total_steps:
        raise ValueError(
            f"The schedule does not finish within the run: it needs {end} "
            f"optimizer steps and the run has {total_steps}. Received: {schedule}. "
            "Train for more epochs, or write its times as float (fractions of "
            "the run), which always fit."
        )


def _check_span(schedule):
    check_time("begin", schedule.begin)
    check_time("end", schedule.end)
    _check_frequency(schedule.frequency)
    begin, end = schedule.begin, schedule.end
    both_steps = is_integer(begin) == is_integer(end)
    if both_steps and begin > end:
        raise ValueError(
            "`begin` must not come after `end`. Received: "
            f"begin={begin!r}, end={end!r}."
        )


def _check_frequency(frequency):
    check_time("frequency", frequency)
    if frequency == 0:
        raise ValueError(
            "`frequency` must be positive: it is the time between two updates, as "
            "int (optimizer steps) or float (fraction of the run). Received: "
            f"frequency={frequency!r}."
        )
