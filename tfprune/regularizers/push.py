"""How far a regularizer's strength moves a scale in a training run."""

import keras
import numpy as np

from tfprune.checks import check_integer, check_number


def push(
    strength, learning_rate, steps: float, momentum: float = 0.0, start: int = 0
) -> float:
    """Returns how far a constant pull of 1 times `strength` moves a weight with SGD.

    It is `strength` times the sum of the learning rates over 1 - `momentum`. A scale
    below the mean that the data do not hold moves by about (t + 1) times as much under
    `Polarization`, by as much under `NetworkSlimming`. To move 0.5 to 0 the push of
    Polarization has to be 0.3 at least; the paper's runs have 1.5 to 9. The same
    strength in a run a tenth as long has a tenth of the push, and nothing is pruned.

    Args:
        strength: float, the regularizer's.
        learning_rate: float, `LearningRateSchedule`, or the learning rates of the
            steps.
        steps: number of optimizer steps of the run, such as `epochs * images / batch`;
            rounded down.
        momentum: float, the optimizer's.
        start: int: steps before the run, which a `LearningRateSchedule` has behind it.

    Raises:
        ValueError: for arguments out of range.

    Source: derived; the paper gives strengths for its own lengths of training.

    Example:

    >>> round(tfprune.regularizers.push(5e-5, 0.1, steps=10_000, momentum=0.9), 6)
    0.5
    """
    check_number("strength", strength, "[0, inf)")
    check_number("momentum", momentum, "[0, 1)")
    check_number("steps", steps, "[1, inf)", "the optimizer steps of the run")
    check_integer("start", start, 0)
    total = _sum_of_rates(learning_rate, int(steps), start)
    return float(strength * total / (1 - momentum))


def strength_for_push(
    wanted: float, learning_rate, steps: float, momentum: float = 0.0
) -> float:
    """Returns the strength that has a push, for a run of another length or rate.

    Args:
        wanted: float: the push; 1.5 to 3 for `Polarization`.
        learning_rate: as for `push`.
        steps: as for `push`.
        momentum: float, the optimizer's.

    Raises:
        ValueError: for arguments out of range.

    Example:

    >>> strength = tfprune.regularizers.strength_for_push(1.5, 0.1, 1_000, momentum=0.9)
    >>> round(strength, 6)
    0.0015
    """
    check_number("wanted", wanted, "(0, inf)")
    of_one = push(1.0, learning_rate, steps, momentum)
    if not of_one:
        raise ValueError(
            "`learning_rate` must be above 0, or nothing moves. Received: "
            f"learning_rate={learning_rate}"
        )
    return wanted / of_one


def _sum_of_rates(learning_rate, steps: int, start: int) -> float:
    if isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule):
        # A thousand steps tell the sum of a long run well enough.
        places = start + np.unique(np.linspace(0, steps - 1, 1000).astype(int))
        rates = [float(learning_rate(place)) for place in places.tolist()]
        return float(np.mean(rates) * steps)
    rates = np.ravel(learning_rate)
    is_numeric = rates.dtype.kind in "fiu"
    if not (is_numeric and ((rates >= 0) & np.isfinite(rates)).all()):
        for rate in rates.tolist():
            check_number("learning_rate", rate, "[0, inf)")
    if np.ndim(learning_rate):
        if len(learning_rate) != steps:
            raise ValueError(
                "`learning_rate` must have one entry per step. Received: "
                f"{len(learning_rate)} of them, steps={steps}"
            )
        return float(np.sum(learning_rate))
    return float(learning_rate) * steps
