"""Checks of arguments that are numbers, and what is said of those that are wrong."""

import numbers

import numpy as np


def is_number(value) -> bool:
    """Returns whether a value is a number, and no bool."""
    kinds = (int, float, np.floating, np.integer)
    return isinstance(value, kinds) and not isinstance(value, bool)


def is_integer(value) -> bool:
    """Returns whether a value is a whole number by its type, and no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_number(name: str, value, interval: str, meaning: str = "") -> None:
    """Raises ValueError unless a value is a number in an interval.

    Args:
        name: what the argument is called.
        value: what was given for it.
        interval: such as `"[0, 1)"`, or `"(0, inf)"` for all above 0.
        meaning: what the number is, for the message.
    """
    if not (is_number(value) and _lies_in(value, interval)):
        raise ValueError(
            f"`{name}` must {_described(interval)}{meaning and f': {meaning}'}. "
            f"Received: {name}={value!r}{_hint(value, interval)}"
        )


def check_integer(name: str, value, least: int) -> None:
    """Raises ValueError unless a value is an int, and not too small.

    Args:
        name: what the argument is called.
        value: what was given for it.
        least: the smallest that is allowed.
    """
    if not (is_integer(value) and value >= least):
        raise ValueError(
            f"`{name}` must be an int of at least {least}. Received: {name}={value!r}"
        )


def check_time(name: str, value, unit: str = "optimizer steps") -> None:
    """Raises ValueError unless a value is a time in a run: a number, or a fraction.

    Args:
        name: what the argument is called.
        value: what was given for it.
        unit: what an int counts.
    """
    if is_integer(value) and value >= 0:
        return
    if is_number(value) and not is_integer(value) and 0 <= value <= 1:
        return
    raise ValueError(
        f"`{name}` must be an int of at least 0 ({unit}) or a float in [0, 1] "
        f"(fraction of the run). Received: {name}={value!r}"
    )


def _bounds(interval: str) -> list[float]:
    return [float(each) for each in interval[1:-1].split(",")]


def _lies_in(value, interval: str) -> bool:
    lower, upper = _bounds(interval)
    above = value >= lower if interval[0] == "[" else value > lower
    below = value <= upper if interval[-1] == "]" else value < upper
    return bool(above and below)


def _described(interval: str) -> str:
    lower, upper = _bounds(interval)
    if upper < float("inf"):
        return f"lie in {interval}"
    if lower == -float("inf"):
        return "be a finite number"
    return f"be {'at least' if interval[0] == '[' else 'above'} {lower:g}"


def _hint(value, interval: str) -> str:
    of_one = _bounds(interval) == [0, 1] and is_number(value) and 1 < value <= 100
    return f". For {value} % pass {value / 100}." if of_one else ""
