"""Algorithm 1: which strength and which t to try next, from the trials so far."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tfprune.search.roots import crossing, next_points
from tfprune.search.trials import Trial

# Beyond these there is nothing to find: strengths that differ by less than 2 %, or
# have been doubled twenty times; values of t less than 0.01 apart.
_SAME_STRENGTH, _MOST_DOUBLINGS, _SAME_T = 1.02, 20, 0.01


@dataclass(frozen=True)
class Algorithm1:
    """The search for a strength, coarse, and then for t, fine.

    As published, with two corrections: both loops bisect once the target lies between
    two trials (they could go to and fro for ever), and strength is not limited. More
    pruning is asked of a larger strength and a larger t.

    Args:
        flops_reduction: float: the target.
        tolerance: float: half the width of what is accepted; the coarse phase accepts
            twice as much.
        strength: the first strength.
        t: the first t.

    Source: Zhuang et al., "Neuron-level structured pruning using polarization
    regularizer", 2020, author response, algorithm 1.
    """

    flops_reduction: float
    tolerance: float = 0.05
    strength: float = 1e-4
    t: float = 1.2

    def error(self, trial: Trial) -> float:
        """Returns how much too many FLOPs went; no end of them for a divergence."""
        if trial.has_diverged:
            return math.inf
        return trial.flops_reduction - self.flops_reduction

    def is_met(self, trials: Sequence[Trial]) -> bool:
        return any(abs(self.error(trial)) < self.tolerance for trial in trials)

    def best(self, trials: Sequence[Trial]) -> Trial | None:
        """Returns the most accurate trial within the tolerance, else the closest.

        One that diverged is the best only if all did.
        """
        trials = [x for x in trials if not x.has_diverged] or trials
        inside = [x for x in trials if abs(self.error(x)) < self.tolerance]
        if inside:
            return max(inside, key=lambda x: (x.accuracy, -abs(self.error(x))))
        return min(trials, key=lambda x: abs(self.error(x)), default=None)

    def propose(self, trials: Sequence[Trial], count: int = 1):
        """Returns `((strength, t) to try next, why there is none)`.

        Args:
            trials: what is known.
            count: how many to propose at once, for trials in parallel.
        """
        if self.is_met(trials):
            return [], "the target was met"
        if trials and all(x.has_diverged for x in trials):
            least = min(x.strength for x in trials)
            if least <= self.strength:
                return [], (
                    f"every training diverged, down to strength {least:.4g}: lower the "
                    "learning rate, or start with a smaller `strength`"
                )
        coarse = {x.strength: self.error(x) for x in trials if x.t == self.t}
        close = min(coarse, key=lambda s: abs(coarse[s]), default=None)
        if close is None or abs(coarse[close]) >= 2 * self.tolerance:
            if not self._is_exhausted(coarse):
                return self._strengths(coarse, count), ""
        fine = {x.t: self.error(x) for x in trials if x.strength == close}
        bracket = crossing(fine)
        if bracket is not None and bracket[1] - bracket[0] < _SAME_T:
            return [], (
                "FLOPs jump past the target, or training diverges, between "
                f"t={bracket[0]:.4g} and t={bracket[1]:.4g} at strength {close:.4g}: "
                "train longer, or use a wider tolerance"
            )
        if bracket is None and fine.get(0.0, 0.0) > 0:
            return [], (
                f"even t=0 removes more than the target at strength {close:.4g}: train "
                "longer, or use a wider tolerance"
            )
        return self._ts(close, fine, count), ""

    def _is_exhausted(self, coarse: dict) -> bool:
        """Whether another strength would not bring the target nearer."""
        bracket = crossing(coarse)
        if bracket is not None:
            return bracket[1] / bracket[0] < _SAME_STRENGTH
        furthest = (abs(math.log2(each / self.strength)) for each in coarse)
        return max(furthest, default=0) >= _MOST_DOUBLINGS

    def _strengths(self, coarse: dict, count: int) -> list:
        points = next_points(
            coarse,
            self.strength,
            lambda point, steps: point * 2.0**steps,
            lambda low, high, share: low * (high / low) ** share,
            count,
        )
        return [(point, self.t) for point in points]

    def _ts(self, strength: float, fine: dict, count: int) -> list:
        points = next_points(
            fine,
            self.t,
            lambda point, steps: point + 0.1 * steps,
            lambda low, high, share: low + (high - low) * share,
            count,
        )
        # Below 0 the regularizer is another.
        points = dict.fromkeys(max(0.0, round(point, 6)) for point in points)
        return [(strength, point) for point in points]
