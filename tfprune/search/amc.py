"""AMC: how much of each layer to keep, learned by reinforcement."""

import dataclasses
import math

import numpy as np

from tfprune import evaluating, importances
from tfprune.budget import Budget
from tfprune.checks import check_integer
from tfprune.graph import Graph
from tfprune.masks import Masks
from tfprune.search.ddpg import DDPG
from tfprune.selection import Ranking, checked_scores, measure_of, unreachable
from tfprune.surgery.mask import set_masks
from tfprune.surgery.wrap import prune_wrap

_TARGETS = ("flops_reduction", "params_reduction")


@dataclasses.dataclass(frozen=True)
class AMCResult:
    """What AMC has found.

    Attributes:
        masks: `Masks` of the best episode; they meet the budget.
        score: float. What the masked model scored, without training.
        metric: str. The metric it was measured by.
        keep_ratios: `{group name: fraction of its units that stay}`.
        scores: tuple of floats, the score of every episode; minus infinity where it
            was not finite, from which the agent did not learn.
    """

    masks: Masks
    score: float
    metric: str
    keep_ratios: dict
    scores: tuple[float, ...]


class AMC:
    """Learns how much of each group of channels to keep, within a budget.

    Episode by episode an agent walks through the groups, from the input to the output,
    and says for each which fraction stays. Those of the lowest importance are masked,
    and the episode's reward is how good the masked model is without any training. What
    the agent asks for is reduced where the groups that are still to come could not make
    up for it, so every episode meets the budget. The first episodes are drawn at
    random; then the agent (DDPG) learns from all.

    Args:
        model: compiled model. Its first metric is the score, negated where less of it
            is better, as of an error; without metrics it is the negated loss. Not
            changed.
        budget: `tfprune.Budget` with `flops_reduction` or `params_reduction`. The
            published search keeps a fifth of every layer: `max_sparsity=0.8`.
        importance: as in `tfprune.select`: which units of a group go first.
        seed: int of at least 0. Defaults to 0.

    Raises:
        ValueError: for arguments out of range, or if the budget has another target or
            cannot be met, or the model has no loss or gates already.

    Source: He et al., "AMC: AutoML for model compression and acceleration on mobile
    devices", 2018. There a step is a layer; here it is a group of coupled channels,
    which one number describes. The least-squares refit of the weights is left out.

    Example:

    ```python
    search = tfprune.search.AMC(model, tfprune.Budget(flops_reduction=0.5))
    result = search.run(validation, episodes=200)
    small = tfprune.compact(model, result.masks)
    ```
    """

    def __init__(self, model, budget: Budget, importance="magnitude", seed: int = 0):
        if (
            not isinstance(budget, Budget)
            or (budget.target or ("",))[0] not in _TARGETS
        ):
            raise ValueError(
                f"`budget` must be a `tfprune.Budget` with one of {_TARGETS}. "
                f"Received: {budget!r}"
            )
        check_integer("seed", seed, 0)
        graph = Graph(model)
        scores = checked_scores(graph, importances.get(importance)(graph))
        self.walk = Walk(graph, Ranking(graph, scores, budget))
        self.seed = seed
        self._gated = prune_wrap(model)
        evaluating.compile_like(self._gated, model)
        self._gated_graph = Graph(self._gated)

    def run(self, data, episodes=400, random_episodes=100, verbose=1) -> AMCResult:
        """Searches; interrupted (Ctrl-C), returns what it has found so far.

        Args:
            data: what the masked models are scored on, not the test set: a dataset of
                batches `(x, y)`, arrays `(x, y)` or `(x, y, sample_weight)`, or a
                function that returns either.
            episodes: int, how many models are scored. Defaults to the half of the 800
                published.
            random_episodes: int in [1, episodes], how many of them are drawn at random
                at first. Defaults to 100.
            verbose: 0 or 1. Whether to show progress.

        Returns:
            `AMCResult`.

        Raises:
            ValueError: for arguments out of range, or if no score was finite.
        """
        check_integer("episodes", episodes, 1)
        check_integer("random_episodes", random_episodes, 1)
        if random_episodes > episodes:
            raise ValueError(
                "`random_episodes` must lie in [1, episodes]. Received: "
                f"random_episodes={random_episodes}, episodes={episodes}"
            )
        agent = DDPG(self.walk.state_size, 100 * self.walk.steps, self.seed)
        found = _Found()
        with _Progress(verbose, episodes) as progress:
            try:
                for episode in range(episodes):
                    learned = episode - random_episodes
                    kept, states, actions = self.walk.through(
                        lambda state, n=learned: agent.explore(state, n)
                    )
                    is_finite = found.add(kept, self.score(kept, data))
                    if is_finite:
                        agent.remember(states, actions, found.scores[-1])
                    if learned >= 0 and found.kept is not None:
                        agent.learn(self.walk.steps)
                    progress.show(found)
            except KeyboardInterrupt:
                if found.kept is None:
                    raise
        return self._result(found)

    def score(self, kept: np.ndarray, data) -> float:
        """Returns the score of the model that keeps so many units of each group."""
        set_masks(self._gated_graph, self.walk.ranking.masks(kept))
        found = evaluating.measure(self._gated, data)
        self._metric, score = evaluating.score(self._gated, found)
        return score

    def _result(self, found: "_Found") -> AMCResult:
        if found.kept is None:
            raise ValueError(
                f"No episode had a finite score: {self._metric!r} of the masked models "
                "is NaN or infinite on `data`. Received: episodes="
                f"{len(found.scores)}. See what `model.evaluate` says of `data`: the "
                "model may have diverged, or `data` may hold NaN."
            )
        ranking = self.walk.ranking
        names = [group.name for group in ranking.graph.groups]
        ratios = (found.kept / ranking.sizes).tolist()
        return AMCResult(
            ranking.masks(found.kept),
            max(found.scores),
            self._metric,
            dict(zip(names, ratios, strict=True)),
            tuple(found.scores),
        )


class Walk:
    """The way through the groups: states, and what actions are turned into.

    Args:
        graph: the `Graph`.
        ranking: `Ranking` with the budget.
    """

    def __init__(self, graph: Graph, ranking: Ranking):
        self.ranking = ranking
        name, fraction = ranking.budget.target
        self._measure = measure_of(graph, name)
        self._least = ranking.kept(ranking.caps)
        whole, least = self._count(ranking.sizes), self._count(self._least)
        # A float may fall short of the target by one rounding error.
        self._most = whole * (1 - fraction + 1e-12)
        if least > self._most:
            raise ValueError(unreachable(ranking, 1 - least / whole if whole else 0.0))
        self._whole = whole
        self._features = self._describe(graph)
        self.steps, self.state_size = len(ranking.sizes), self._features.shape[1] + 3

    def through(self, choose) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Goes through all groups; returns kept units, states and actions.

        Args:
            choose: function from a state to the fraction to keep, in [0, 1].
        """
        kept, action = self.ranking.sizes.copy(), 1.0
        states, actions = [], []
        for step in range(self.steps):
            states.append(self._state(step, kept, action))
            wanted = choose(states[-1])
            kept[step] = self._allowed(step, kept, wanted)
            action = kept[step] / self.ranking.sizes[step]
            actions.append(action)
        return kept, np.array(states), np.array(actions)

    def _allowed(self, step: int, kept, wanted: float) -> int:
        """Returns how many units of a group stay: as wanted, if the budget allows it.

        It does if all later groups, at their least, make up for the rest.
        """
        ranking, size = self.ranking, self.ranking.sizes[step]
        trial = np.concatenate([kept[:step], self._least[step:]])

        def at(removed: int) -> int:
            goes = np.zeros_like(trial)
            goes[step] = removed
            return int(ranking.kept(goes)[step])

        def is_met(removed: int) -> bool:
            trial[step] = at(removed)
            return self._count(trial) <= self._most

        low = min(int(size - round(wanted * size)), int(ranking.caps[step]))
        if is_met(low):
            return at(low)
        high = int(ranking.caps[step])
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if is_met(middle) else (middle, high)
        return at(high)

    def _count(self, kept) -> int:
        return self._measure(self.ranking.keep(kept))

    def _describe(self, graph: Graph) -> np.ndarray:
        """Returns what is known of each group: place, sizes, work; each up to 1."""
        sizes = self.ranking.sizes
        work = []
        for number in range(len(sizes)):
            without = sizes.copy()
            without[number] = 0
            work.append(self._whole - self._count(without))
        layers = [len(group.layers) for group in graph.groups]
        rows = np.array([np.arange(len(sizes)), sizes, layers, work], np.float64)
        return (rows / np.maximum(rows.max(axis=1, keepdims=True), 1)).T

    def _state(self, step: int, kept, action: float) -> np.ndarray:
        """Returns a group's description, what is gone, what can go, what was done."""
        now = self._count(kept)
        least = self._count(np.concatenate([kept[:step], self._least[step:]]))
        shares = [1 - now / self._whole, (now - least) / self._whole, action]
        return np.concatenate([self._features[step], shares])


class _Found:
    """The scores so far, and what the best of them keeps."""

    def __init__(self):
        self.scores: list[float] = []
        self.kept = None

    def add(self, kept, score: float) -> bool:
        """Returns whether the score is finite; one that is not is worse than all."""
        is_finite = math.isfinite(score)
        score = score if is_finite else -math.inf
        if score > max(self.scores, default=-math.inf):
            self.kept = kept
        self.scores.append(score)
        return is_finite


class _Progress:
    """A progress bar with the best score."""

    def __init__(self, verbose: int, episodes: int):
        self._bar = None
        if verbose:
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
            )

            self._bar = Progress(
                TextColumn("AMC"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("now {task.fields[now]:.4f}, best {task.fields[best]:.4f}"),
            )
            nothing = float("nan")
            self._bar.add_task("", total=episodes, now=nothing, best=nothing)

    def show(self, found: _Found) -> None:
        if self._bar is not None:
            (task,) = self._bar.task_ids
            now, best = found.scores[-1], max(found.scores)
            self._bar.update(task, advance=1, now=now, best=best)

    def __enter__(self):
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error):
        if self._bar is not None:
            self._bar.stop()
