"""How much a model loses when one layer alone is pruned."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

from tfprune import importances
from tfprune.evaluating import evaluate, measure, score
from tfprune.graph import Graph
from tfprune.largest import largest
from tfprune.surgery import apply_masks, strip
from tfprune.surgery.mask import zeroed_values
from tfprune.tails import Tail

# A model that is evaluated faster than this takes longer to be taken apart.
_WORTH_TAILS = 2.0
_MOST_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True, eq=False)
class Sensitivity:
    """What pruning each layer alone does to a model.

    Attributes:
        metric: name of the metric: the first one of the model, with a `"-"` where it is
            negated, so that more is better, or `"-loss"`.
        dense: float: the metric before pruning.
        sparsities: the fractions that were removed.
        scores: `{group name: float array, one for each sparsity}`: the metric when that
            group alone is pruned.
    """

    metric: str
    dense: float
    sparsities: tuple
    scores: Mapping

    def drops(self, sparsity: float) -> dict[str, float]:
        """Returns `{group name: loss of the metric}` at one of the sparsities."""
        if sparsity not in self.sparsities:
            raise ValueError(
                f"`sparsity` must be one of {self.sparsities}. Received: {sparsity}"
            )
        place = self.sparsities.index(sparsity)
        return {k: float(self.dense - own[place]) for k, own in self.scores.items()}

    def agreement(self, masks: Mapping, sparsity: float) -> float:
        """Returns how well the layers that masks keep more of are the sensitive ones.

        Args:
            masks: group name to bool array, True = keep, such as those of a model after
                `GlobalSparseMomentum`.
            sparsity: one of the sparsities.

        Returns:
            Spearman's rank correlation of drop and fraction kept: 1 is the same order;
            NaN where there is none, as all layers keep or lose the same.

        Source: Ding et al., "Global sparse momentum SGD", 2019, figure 2.
        """
        drops = self.drops(sparsity)
        kept = [float(np.mean(masks[name])) for name in drops]
        ranks = _ranks(list(drops.values())), _ranks(kept)
        if not all(map(np.ptp, ranks)):
            return float("nan")
        return float(np.corrcoef(*ranks)[0, 1])

    def summary(self, masks: Mapping | None = None) -> str:
        """Returns a table as text, a line for each group.

        Args:
            masks: group name to bool array; what they keep stands beside. By default
                nothing does.
        """
        width = max(map(len, self.scores))
        head = " ".join(f"{each:>8.0%}" for each in self.sparsities)
        lines = [f"{self.metric}: {self.dense:.4f}", f"{'pruned':<{width}} {head}"]
        for name, own in self.scores.items():
            cells = " ".join(f"{each:8.4f}" for each in own)
            kept = "" if masks is None else f"   keeps {np.mean(masks[name]):.2%}"
            lines.append(f"{name:<{width}} {cells}{kept}")
        return "\n".join(lines)

    def plot(self, path=None, masks: Mapping | None = None):
        """Draws the metric by layer, a line for each sparsity.

        Args:
            path: where to save the figure; None does not.
            masks: group name to bool array; the fractions they keep are drawn as bars.

        Returns:
            A matplotlib figure.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        from matplotlib.figure import Figure

        names = list(self.scores)
        figure = Figure(figsize=(max(5, 0.6 * len(names) + 3), 4), layout="constrained")
        axes = figure.subplots()
        for place, (sparsity, marker) in enumerate(_with_markers(self.sparsities)):
            values = [own[place] for own in self.scores.values()]
            axes.plot(names, values, marker=marker, label=f"prune {sparsity:.0%}")
        axes.axhline(self.dense, color="gray", linestyle=":", label="not pruned")
        axes.set_ylabel(self.metric)
        axes.tick_params("x", rotation=60)
        if masks is not None:
            bars = axes.twinx()
            kept = [float(np.mean(masks[name])) for name in names]
            bars.bar(names, kept, alpha=0.2, color="black")
            bars.set_ylabel("fraction kept (bars)")
        axes.legend()
        if path is not None:
            figure.savefig(path)
        return figure


def sensitivity(
    model: keras.Model | Graph,
    data,
    sparsities: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95),
    unit: str = "weight",
    importance: str | Callable = "magnitude",
) -> Sensitivity:
    """Returns how good a model is with each layer pruned alone, by several fractions.

    For choosing what to prune how much, and for comparing with what a method has
    chosen by itself. Nothing is trained. For large data sets only what lies behind a
    layer is computed anew.

    Args:
        model: compiled model, or the `Graph` of one; not changed.
        data: what to evaluate on: a dataset of batches `(x, y)`, or arrays
            `(x, y)` or `(x, y, sample_weight)`.
        sparsities: floats in (0, 1): fractions of a layer's units to remove.
        unit: `"weight"` or `"channel"`; a graph brings its own.
        importance: as in `tfprune.select`: which units go first.

    Returns:
        A `Sensitivity`.

    Raises:
        ValueError: for fractions out of range, or a model without a loss.

    Source: Ding et al., "Global sparse momentum SGD", 2019, section 4.2; Li et al.,
    "Pruning filters for efficient convnets", 2017, figure 2.

    Example:

    ```python
    found = tfprune.sensitivity(model, validation, sparsities=(0.5, 0.9))
    print(found.summary())
    found.plot("sensitivity.png")
    ```
    """
    sparsities = _checked(sparsities)
    graph = model if isinstance(model, Graph) else Graph(model, unit=unit)
    # The graph of a subclassed model has a functional one, which is not compiled.
    compiled = graph.model if isinstance(model, Graph) else model
    own = graph.of(strip(graph.model))
    start = time.perf_counter()
    metric, dense = score(own.model, evaluate(own.model, compiled, data))
    is_slow = time.perf_counter() - start > _WORTH_TAILS
    units = importances.get(importance, graph.unit)(own)
    scores = {}
    for group in own.groups:
        masks = [_mask(group, units[group.name], each) for each in sparsities]
        found = _evaluations(own, group.name, masks, compiled, data, is_slow)
        scores[group.name] = np.array([score(own.model, each)[1] for each in found])
    return Sensitivity(metric, dense, sparsities, scores)


def _evaluations(graph, name, masks, compiled, data, is_slow: bool):
    """Yields what the model measures with each of a group's masks, and undoes them."""
    variables = {id(variable): variable for variable in graph.model.variables}
    values = _zeroed(graph, name, masks[0])
    if not values.keys() <= variables.keys():
        # An array in the calls of the model is no variable that could be changed.
        for mask in masks:
            masked = apply_masks(graph, {name: mask})
            yield evaluate(masked, compiled, data)
        return
    own = [variables[key] for key in values]
    before = [variable.numpy() for variable in own]
    measured = _measure_of(graph.model, own, compiled, data, is_slow)
    try:
        for mask in masks:
            values = _zeroed(graph, name, mask)
            for variable, value in zip(own, before, strict=True):
                variable.assign(values.get(id(variable), value))
            yield measured()
    finally:
        for variable, value in zip(own, before, strict=True):
            variable.assign(value)


def _measure_of(model, variables, compiled, data, is_slow: bool) -> Callable:
    """Returns the function that measures a model while some of its variables change."""
    if is_slow:
        tail = Tail.of(model, variables, compiled, data, _MOST_BYTES)
        if tail is not None:
            return tail.evaluate
    return lambda: measure(model, data)


def _zeroed(graph, name: str, mask: np.ndarray) -> dict:
    """Returns `{id(variable): value}` of what a group's mask changes."""
    if graph.unit == "channel":
        return zeroed_values(graph, {name: mask})
    variable = graph.kernels[name].variable
    return {id(variable): variable.numpy() * graph.expanded(name, mask)}


def _mask(group, scores, sparsity: float) -> np.ndarray:
    count = max(1, group.size - int(np.ceil(group.size * sparsity - 1e-6)))
    return largest([np.asarray(scores, np.float32)], count)[0]


def _checked(sparsities) -> tuple:
    sparsities = tuple(map(float, np.atleast_1d(sparsities)))
    if not sparsities or not all(0 < each < 1 for each in sparsities):
        raise ValueError(
            "`sparsities` must be fractions in (0, 1), such as (0.5, 0.9). "
            f"Received: sparsities={sparsities}"
        )
    return sparsities


def _ranks(values: list) -> np.ndarray:
    """Returns the rank of each value, equal ones sharing the mean of theirs."""
    values = np.asarray(values)
    below = (values[:, None] > values).sum(1)
    return below + (values[:, None] == values).sum(1) / 2


def _with_markers(sparsities: tuple):
    # For black and white, too.
    return zip(sparsities, itertools.cycle("osD^v<>pX*"), strict=False)
