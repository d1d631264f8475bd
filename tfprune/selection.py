"""Selection: from scores and a budget to masks."""

from collections.abc import Callable, Mapping

import numpy as np

from tfprune import importances, thresholds
from tfprune.budget import Budget, most_removed, round_up
from tfprune.checks import check_number
from tfprune.costs import Counter, warn_of_uncounted
from tfprune.cuts import select_above, select_by_rule
from tfprune.graph import Graph, WeightGraph
from tfprune.masks import Masks
from tfprune.weight_cuts import select_weights


def select(
    graph: Graph,
    importance: str | Callable = "magnitude",
    budget: Budget | None = None,
    threshold: float | str | Callable | None = None,
    scope: str | Mapping = "global",
) -> Masks:
    """Chooses the units that stay.

    Args:
        graph: the `Graph` of the model.
        importance: `"magnitude"`, `"geometric_median"`, `"scale"` or `"random"` (for
            single weights `"magnitude"`, `"lamp"` or `"random"`), or a callable
            `importance(graph) -> {group name: scores}`. Those that look at data, such
            as `importances.Taylor()`, see it in `update_state` first and are given
            as objects.
        budget: `Budget`, met as a floor on what is removed.
        threshold: float; units with a score at or below it go, but for the best of
            each group. Or a rule of `tfprune.thresholds`, `"valley"` and `"margin"`
            by name, that finds one for every layer's scores (with an importance that
            has no scores of layers, every group's): a unit goes when it is at or
            below in every layer of its group. Exactly one of budget and threshold is
            given; a `scope` of fractions may stand alone.
        scope: `"global"` ranks all units together; `"uniform"` removes the same
            fraction of every group; `"erk"`, for single weights, keeps more of small
            kernels (Erdos-Renyi-Kernel densities: the sum of a kernel's sizes over
            their product, times one factor); `{path pattern: fraction}` removes that fraction
            of the groups that match (the first pattern counts, others stay whole),
            all scaled by one factor if the budget has a target.

    Returns:
        `Masks` with one mask per group.

    Raises:
        ValueError: if the budget cannot be met (the message says what can), scores
            are missing or not finite, or a pattern matches nothing.

    Example:

    ```python
    masks = tfprune.select(graph, "magnitude", tfprune.Budget(flops_reduction=0.5))
    masks = tfprune.select(graph, "magnitude", scope={"stage3/*": 0.6})
    ```
    """
    _check_arguments(graph, budget, threshold, scope)
    by_fraction, is_weights = isinstance(scope, Mapping), isinstance(graph, WeightGraph)
    importance = importances.get(importance, graph.unit)
    is_rule = isinstance(threshold, str) or callable(threshold)
    if is_rule and hasattr(importance, "by_layer"):
        return select_by_rule(graph, importance.by_layer(graph), threshold)
    scores = checked_scores(graph, importance(graph))
    if is_rule:
        groups = zip(graph.groups, graph.members, strict=True)
        layers = {g.name: (units, scores[g.name]) for g, units in groups}
        return select_by_rule(graph, layers, threshold)
    if threshold is not None:
        return select_above(graph, scores, threshold)
    budget = budget or Budget()
    if is_weights:
        fractions = (
            scope
            if not by_fraction and scope != "uniform"
            else _fractions(graph, scope)
        )
        return select_weights(graph, scores, budget, fractions)
    ranking = Ranking(graph, scores, budget)
    if scope == "global":
        plan = _GlobalPlan(ranking, scores)
    else:
        plan = _FractionPlan(ranking, _fractions(graph, scope))
    return ranking.masks(_solve(graph, ranking, plan))


def _check_arguments(graph, budget, threshold, scope) -> None:
    """Raises ValueError unless these arguments of `select` go together."""
    if not isinstance(graph, Graph):
        raise ValueError(
            "`graph` must be the `Graph` of a model: `tfprune.Graph(model)`. "
            f"Received: {graph!r}"
        )
    if budget is not None and not isinstance(budget, Budget):
        raise ValueError(
            "`budget` must be a `Budget`, such as `tfprune.Budget(flops_reduction=0.5)`. "
            f"Received: budget={budget!r}"
        )
    by_fraction = isinstance(scope, Mapping)
    if (budget is not None) + (threshold is not None) + by_fraction == 0 or (
        budget is not None and threshold is not None
    ):
        raise ValueError(
            "Pass exactly one of `budget` and `threshold`. "
            f"Received: budget={budget}, threshold={threshold}."
        )
    is_weights = isinstance(graph, WeightGraph)
    scopes = ("global", "uniform", *["erk"] * is_weights)
    if not by_fraction and scope not in scopes:
        raise ValueError(
            f"`scope` must be one of {scopes} or {{path pattern: fraction}}. "
            f"Received: scope={scope!r}"
        )
    if threshold is not None:
        thresholds.check(threshold)
    if threshold is not None and scope != "global":
        raise ValueError(
            "A threshold says by itself how much goes, everywhere: `scope` is for "
            f"budgets. Received: threshold={threshold!r}, scope={scope!r}"
        )
    if by_fraction and not scope:
        raise ValueError(
            "`scope` must name groups: {path pattern: fraction}. It is {}."
        )
    if is_weights and (isinstance(threshold, str) or callable(threshold)):
        raise ValueError(
            "Rules find a threshold between the scores of channels; for single weights "
            f"it is a number. Received: threshold={threshold!r}"
        )
    if budget is not None and budget.target is None and not by_fraction:
        raise ValueError(
            "`budget` needs a target: flops_reduction, params_reduction, sparsity or "
            f"n_of_m. Received: {budget}"
        )
    if budget is not None and budget.n_of_m is not None:
        _check_pattern(graph, budget, scope)
    if budget is not None and budget.multiple_of != 1 and is_weights:
        raise ValueError(
            "`multiple_of` rounds numbers of channels, and the units of the graph are "
            f"weights. Received: {budget}. Leave it out."
        )


def _check_pattern(graph, budget, scope) -> None:
    if not isinstance(graph, WeightGraph) or graph.block:
        raise ValueError(
            "`n_of_m` is a pattern of single weights. Received: a graph of "
            f"{'blocks' if graph.unit == 'weight' else 'channels'}. Pass "
            '`Graph(model, unit="weight")`.'
        )
    if scope not in ("global", "uniform"):
        raise ValueError(
            "`n_of_m` takes the same share of every kernel, so no other `scope` goes "
            f"with it. Received: scope={scope!r}. To keep kernels whole: "
            "`Budget(n_of_m=..., max_sparsity={path pattern: 0.0})`."
        )


def checked_scores(graph: Graph, scores) -> dict[str, np.ndarray]:
    """Returns scores as an importance gives them, if each unit has one."""
    if not isinstance(scores, Mapping):
        raise ValueError(
            "An importance must return {group name: scores}. "
            f"Received: {type(scores).__name__}"
        )
    checked = {}
    for group in graph.groups:
        if group.name not in scores:
            raise ValueError(f"The importance gave no scores for group {group.name!r}.")
        try:
            array = np.asarray(scores[group.name], np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The scores of group {group.name!r} are not numbers: {error}."
            ) from error
        if array.shape != (group.size,):
            raise ValueError(
                f"The scores of group {group.name!r} must have shape ({group.size},). "
                f"Received: {array.shape}"
            )
        # The smallest of numbers with NaN among them is NaN.
        if not array.min() > -np.inf:
            raise ValueError(
                f"The scores of group {group.name!r} are not numbers. Look for NaN or "
                f"infinite weights in {', '.join(group.layers[:4])}."
            )
        checked[group.name] = array
    return checked


def _fractions(graph: Graph, scope) -> dict[str, float]:
    if scope == "uniform":
        return {group.name: 1.0 for group in graph.groups}
    fractions: dict[str, float] = {}
    for pattern, fraction in scope.items():
        name = f"scope[{pattern!r}]"
        check_number(name, fraction, "[0, 1)", "the fraction to remove")
        for group in graph.match(pattern):
            fractions.setdefault(group.name, float(fraction))
    return fractions


class Ranking:
    """The order in which each group loses its units, and how many it may lose.

    Args:
        graph: the `Graph`.
        scores: `{group name: scores}`, checked.
        budget: `Budget`, whose floors count.
    """

    def __init__(self, graph: Graph, scores, budget: Budget):
        warn_of_uncounted(graph, budget)
        self.graph, self.budget = graph, budget
        self.sizes = np.array([group.size for group in graph.groups], np.int64)
        finite = [int(np.isfinite(scores[g.name]).sum()) for g in graph.groups]
        finite = np.array(finite, np.int64)
        self.caps = np.minimum(most_removed(graph, budget), finite)
        self.infinite = int((self.sizes - finite).sum())
        # Ties go to the unit that comes first, so results do not depend on sorting.
        self.order = [np.argsort(scores[g.name], kind="stable") for g in graph.groups]
        self._rank = np.full(graph.num_units + 1, np.inf)
        self._group_of = np.zeros(graph.num_units + 1, np.int64)
        for number, (units, order) in enumerate(
            zip(graph.members, self.order, strict=True)
        ):
            self._group_of[units] = number
            self._rank[units[order]] = np.arange(len(units))

    def kept(self, removed: np.ndarray) -> np.ndarray:
        """Returns how many units each group keeps when this many should go."""
        kept = self.sizes - np.minimum(removed, self.caps)
        return round_up(kept, self.sizes, self.budget.multiple_of)

    def keep(self, kept: np.ndarray) -> np.ndarray:
        """Returns per unit whether it stays, as `Graph.keep` does for masks."""
        if not len(kept):
            return np.ones(1, bool)
        return self._rank >= (self.sizes - kept)[self._group_of]

    def masks(self, kept: np.ndarray) -> Masks:
        return Masks(self.graph.masks_of(self.keep(kept)))


class _GlobalPlan:
    """Removes units in the order of their scores, all groups together."""

    def __init__(self, ranking: Ranking, scores):
        group_of, score = [], []
        for number, (group, cap, order) in enumerate(
            zip(ranking.graph.groups, ranking.caps, ranking.order, strict=True)
        ):
            group_of.append(np.full(cap, number))
            score.append(scores[group.name][order[:cap]])
        order = np.argsort(np.concatenate([*score, []]), kind="stable")
        self._next = np.concatenate([*group_of, []]).astype(np.int64)[order]
        self._count = len(ranking.sizes)
        self.last = len(self._next)

    def removed(self, step: int) -> np.ndarray:
        return np.bincount(self._next[:step], minlength=self._count)


class _FractionPlan:
    """Removes a fraction of every group, all fractions scaled by one factor."""

    last = 2**14

    def __init__(self, ranking: Ranking, fractions: Mapping):
        self._sizes = ranking.sizes
        groups = ranking.graph.groups
        self._weights = np.array([fractions.get(g.name, 0.0) for g in groups])
        self._largest = self._weights.max(initial=0)
        # Groups of one size would all lose a channel at the same step: with a target
        # to meet, each rounds at a point of its own, so that the steps stay small.
        spread = (np.arange(len(groups)) + 0.5) / max(1, len(groups))
        self._offsets = 0.5 if ranking.budget.target is None else spread

    @property
    def as_given(self) -> float:
        """The step at which every fraction is removed as it was given."""
        return self.last * self._largest

    def removed(self, step: float) -> np.ndarray:
        # The last step takes the whole of the groups with the largest fraction.
        scale = step / self.last / self._largest if self._largest else 0.0
        exact = self._sizes * np.minimum(1, self._weights * scale)
        return np.floor(exact + self._offsets * (exact > 0) + 1e-9).astype(np.int64)


def _solve(graph: Graph, ranking: Ranking, plan) -> np.ndarray:
    """Returns how many units each group keeps: the smallest plan that does."""
    if ranking.budget.target is None:
        return ranking.kept(plan.removed(plan.as_given))
    name, fraction = ranking.budget.target
    measure = measure_of(graph, name)
    whole = measure(ranking.keep(ranking.sizes))

    def reduction(kept) -> float:
        return 1 - measure(ranking.keep(kept)) / whole if whole else 0.0

    # A float may fall short of the target by one rounding error.
    goal = fraction - 1e-12
    most = reduction(ranking.kept(plan.removed(plan.last)))
    if most < goal:
        raise ValueError(unreachable(ranking, most))
    low, high = -1, plan.last
    while high - low > 1:
        middle = (low + high) // 2
        if reduction(ranking.kept(plan.removed(middle))) >= goal:
            high = middle
        else:
            low = middle
    kept = ranking.kept(plan.removed(high))
    return _give_back(kept, ranking, lambda kept: reduction(kept) >= goal)


def _give_back(kept: np.ndarray, ranking: Ranking, meets: Callable) -> np.ndarray:
    """Returns units while the budget stays met: the last unit may have been a big one.

    Groups are tried from the one that lost most, in units, to the one that lost least.
    """
    step = ranking.budget.multiple_of
    while True:
        before = kept
        for group in np.argsort(kept - ranking.sizes, kind="stable"):
            more = kept.copy()
            more[group] = min(ranking.sizes[group], kept[group] + step)
            if more[group] > kept[group] and meets(more):
                kept = more
        if kept is before:
            return kept


def unreachable(ranking: Ranking, most: float) -> str:
    """Returns why a budget cannot be met when all that may go removes `most`."""
    graph = ranking.graph
    if not graph.groups:
        return (
            f"Model {graph.model.name!r} has no channels that can be pruned. Received: "
            f"{ranking.budget}. What keeps them: {dict(list(graph.locked.items())[:4])}"
        )
    unranked = (
        f"{ranking.infinite} of {ranking.sizes.sum()} units stay whatever the budget, as "
        "their score is infinite: so `Scale` scores units that no normalization and no "
        "gate scales. Another importance may rank them. "
    )
    return (
        f"`budget` cannot be met: at most {most:.4f} can be removed from the "
        f"{len(graph.groups)} prunable groups of {graph.model.name!r} within its floors "
        f"and this scope. Received: {ranking.budget}. {unranked * bool(ranking.infinite)}"
        "Ask for less, or lower `min_channels`, `multiple_of` or raise `max_sparsity`."
    )


def measure_of(graph: Graph, name: str) -> Callable:
    """Returns the function from kept units to the number that a budget limits.

    Args:
        graph: the `Graph`.
        name: name of the budget's target.
    """
    if name == "sparsity":
        return lambda keep: int(keep[:-1].sum())
    counter = Counter(graph)
    return counter.macs if name == "flops_reduction" else counter.params
