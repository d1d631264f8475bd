"""What a choice of ratios costs, and the reward for staying within a budget."""

import numpy as np

from tfprune.costs import Counter
from tfprune.graph import Graph

# How fast the penalty grows beyond the cap, its height, and what being below earns.
_SCALE, _PENALTY, _BONUS = 0.03, 1.2, 0.1
# The published penalty reaches 1e11, which no critic can follow.
_LARGEST_EXPONENT = 10.0


class RatioCost:
    """Counts what is left when a fraction of every group stays, for many at once.

    Args:
        graph: the `Graph`.
        count: `"macs"` or `"params"`.

    Example:

    >>> float(RatioCost(graph)(np.ones(len(graph.groups))))
    1.0
    """

    def __init__(self, graph: Graph, count: str = "macs"):
        if count not in ("macs", "params"):
            raise ValueError(
                f'`count` must be "macs" or "params". Received: count={count!r}'
            )
        self.sizes = np.array([group.size for group in graph.groups])
        counter = Counter(graph)
        self._constants, self._axes = counter.table(count)
        self._by_group, self._fixed = counter.lengths_by_group()
        self._whole = self._of_lengths(self._by_group.sum(axis=1) + self._fixed)

    def __call__(self, ratios) -> np.ndarray:
        """Returns the shares that are left, an array of shape `(...)`.

        Args:
            ratios: float array of shape `(..., groups)`: the fraction of each group
                that stays, rounded to whole units, one at least.
        """
        kept = np.maximum(1, np.round(np.asarray(ratios) * self.sizes))
        return self._left(kept / self.sizes)

    def cap(self, ratios) -> float:
        """Returns the share that is left at ratios that are not rounded.

        Args:
            ratios: float, or a float array of shape `(groups,)`.
        """
        return float(self._left(np.broadcast_to(ratios, len(self.sizes))))

    def _left(self, fractions) -> np.ndarray:
        lengths = fractions @ self._by_group.T + self._fixed
        return self._of_lengths(lengths) / self._whole

    def _of_lengths(self, lengths) -> np.ndarray:
        return (self._constants * lengths[..., self._axes].prod(axis=-1)).sum(axis=-1)


def budget_reward(share, cap, bonus: bool = True) -> np.ndarray:
    """Returns the reward for the share of the work, or of the weights, that is left.

    Zero at the cap; beyond it `-1.2 (exp((share - cap) / 0.03) - 1)`, with the exponent
    cut off at 10; below it `0.1 (cap - share)`.

    Args:
        share: float array.
        cap: float: the share that is allowed.
        bonus: whether being below the cap earns anything.

    Source: Chen et al., "Storage efficient and dynamic flexible runtime channel pruning
    via deep reinforcement learning", 2020, author response and code; the cut-off is
    ours.
    """
    over = np.asarray(share, np.float64) - cap
    exponent = np.clip(over / _SCALE, 0, _LARGEST_EXPONENT)
    return np.where(
        over > 0, -_PENALTY * np.expm1(exponent), -_BONUS * over if bonus else 0.0
    )


def running_mean(mean, count, values, steps: int = 200, decay: float = 0.995) -> float:
    """Returns a mean that counts all updates alike at first, and forgets later.

    Args:
        mean: float: the mean so far.
        count: int: which update it is, from 1.
        values: float array, whose own mean is taken in.
        steps: int. How many updates count alike.
        decay: float. What an update leaves of the mean from then on.
    """
    left = 1 - 1 / count if count <= steps else decay
    return float(left * mean + (1 - left) * np.mean(values))
