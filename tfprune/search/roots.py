"""Where an increasing function crosses a level, asked at few points."""

from collections.abc import Callable, Mapping


def next_points(
    errors: Mapping[float, float],
    start: float,
    grow: Callable[[float, int], float],
    middle: Callable[[float, float, float], float],
    count: int,
) -> list[float]:
    """Returns where to ask next: outwards until a crossing lies between, then inside.

    The function should increase. Where it does not, the closest two neighbours with a
    crossing between them are taken, so that the search goes on and stays finite.

    Args:
        errors: `{point: value - level}` of what is known.
        start: the first point.
        grow: function `(point, steps) -> point` outwards; steps may be negative.
        middle: function `(low, high, fraction) -> point` between two.
        count: number of points to ask at once. One makes it a bisection.
    """
    if not errors:
        # 0, 1, -1, 2, -2, ... steps from the start.
        return [grow(start, (i + 1) // 2 * (-1) ** (i + 1)) for i in range(count)]
    bracket = crossing(errors)
    if bracket is not None:
        return [middle(*bracket, (i + 1) / (count + 1)) for i in range(count)]
    points = sorted(errors)
    if errors[points[0]] > 0:
        return [grow(points[0], -(i + 1)) for i in range(count)]
    return [grow(points[-1], i + 1) for i in range(count)]


def crossing(errors: Mapping[float, float]) -> tuple[float, float] | None:
    """Returns the closest neighbours with an error below 0 and one above, in order."""
    points = sorted(errors)
    pairs = [
        (low, high)
        for low, high in zip(points, points[1:], strict=False)
        if errors[low] < 0 < errors[high]
    ]
    return min(pairs, key=lambda pair: pair[1] - pair[0], default=None)
