"""Budget: how much goes, and what stays in any case."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from tfprune.checks import check_integer, check_number
from tfprune.patterns import as_patterns

_TARGETS = ("flops_reduction", "params_reduction", "sparsity")


@dataclass(frozen=True, repr=False)
class Budget:
    """How much goes: a floor on what is removed, and floors on what stays.

    At most one of the four targets is given; the smallest choice that meets it is
    taken.

    Args:
        flops_reduction: fraction of multiply-accumulates to remove, in [0, 1).
        params_reduction: fraction of weights to remove, in [0, 1).
        sparsity: fraction of the prunable units to remove (channels; single weights
            with a graph of those), in [0, 1).
        n_of_m: `(n, m)`, for graphs of single weights: of every m weights in a row
            along the input axis of a kernel the n best stay, such as `(2, 4)`. Kernels
            without one, as of depthwise convolutions and `Embedding`, stay whole, and
            so do those of which `max_sparsity` or `min_channels` lets fewer go.
        max_sparsity: largest fraction removed from any one group, in [0, 1], or
            `{path pattern: fraction}`, where the first pattern that matches a group
            counts and 0 keeps it whole; None for no such cap. The papers' floor of
            10 % kept is 0.9, which leaves 4 of 32; where code rounds the floor down to
            3, the same is `{"stage2*": 29 / 32}`.
        min_channels: units that stay in every group, at least 1.
        multiple_of: kept channels of a group are rounded up to a multiple of this
            (8 or 16 suit vector units), as far as the group has them.
        in_force: fraction of what `n_of_m` removes that is to go, in [0, 1]: those with
            the lowest scores. Schedules set it. Defaults to 1.

    Raises:
        ValueError: for fractions outside their range or several targets.

    Example:

    >>> budget = tfprune.Budget(flops_reduction=0.5, multiple_of=8)
    """

    flops_reduction: float | None = None
    params_reduction: float | None = None
    sparsity: float | None = None
    max_sparsity: float | Mapping[str, float] | None = None
    min_channels: int = 1
    multiple_of: int = 1
    n_of_m: tuple[int, int] | None = None
    in_force: float = 1.0

    def __post_init__(self):
        given = [name for name in _TARGETS if getattr(self, name) is not None]
        if len(given) + (self.n_of_m is not None) > 1:
            given += ["n_of_m"] * (self.n_of_m is not None)
            raise ValueError(f"A budget has one target. Received: {', '.join(given)}.")
        for name in given:
            check_number(name, getattr(self, name), "[0, 1)", "the fraction to remove")
        _check_n_of_m(self.n_of_m)
        caps = self.max_sparsity
        if isinstance(caps, Mapping) and caps:
            as_patterns("max_sparsity", list(caps))
        for cap in caps.values() if isinstance(caps, Mapping) else [caps]:
            if cap is not None:
                meaning = "the largest fraction removed from one group"
                check_number("max_sparsity", cap, "[0, 1]", meaning)
        what = "the fraction of what `n_of_m` removes"
        check_number("in_force", self.in_force, "[0, 1]", what)
        for name in ("min_channels", "multiple_of"):
            check_integer(name, getattr(self, name), 1)

    def __repr__(self) -> str:
        values = {each: getattr(self, each.name) for each in fields(self)}
        given = [f"{f.name}={v!r}" for f, v in values.items() if v != f.default]
        return f"Budget({', '.join(given)})"

    @property
    def target(self) -> tuple[str, float] | None:
        """Returns `(name, fraction)` of the target, None if there is none."""
        for name in _TARGETS:
            if getattr(self, name) is not None:
                return name, getattr(self, name)
        return None if self.n_of_m is None else ("n_of_m", self.in_force)

    def scaled(self, fraction: float) -> "Budget":
        """Returns this budget with `fraction` of its target, as a schedule asks for."""
        if self.target is None:
            return self
        name, value = self.target
        name = "in_force" if name == "n_of_m" else name
        return replace(self, **{name: value * fraction})


def _check_n_of_m(n_of_m) -> None:
    if n_of_m is None:
        return
    pair = n_of_m if isinstance(n_of_m, (tuple, list)) else ()
    are_ints = [isinstance(n, (int, np.integer)) for n in pair]
    if len(pair) != 2 or not all(are_ints) or not 0 < pair[0] < pair[1]:
        raise ValueError(
            "`n_of_m` must be two ints with 0 < n < m: of every m weights n stay, such "
            f"as (2, 4). Received: n_of_m={n_of_m!r}"
        )


def most_removed(graph, budget: Budget) -> np.ndarray:
    """Returns how many units of each group of a graph may go."""
    caps = budget.max_sparsity
    by_pattern = caps if isinstance(caps, Mapping) else {}
    cap_of: dict[str, float] = {}
    for pattern, cap in by_pattern.items():
        for group in graph.match(pattern):
            cap_of.setdefault(group.name, cap)
    default = 1.0 if caps is None or by_pattern else caps
    most = []
    for group in graph.groups:
        # The tolerance keeps 0.9 of 10 at 9, whatever 1 - 0.9 is in floats.
        share = 1 - cap_of.get(group.name, default)
        least = max(budget.min_channels, int(np.ceil(group.size * share - 1e-9)))
        least = min(group.size, least)
        most.append(group.size - round_up(least, group.size, budget.multiple_of))
    return np.array(most, np.int64)


def round_up(kept, size, multiple_of: int):
    """Returns numbers of units as the next multiples, as far as there are so many."""
    return np.minimum(size, -(-kept // multiple_of) * multiple_of)
