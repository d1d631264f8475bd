"""Costs: multiply-accumulates and parameters of a model under any masks."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import keras
import numpy as np

from tfprune.graph import Graph, as_graph
from tfprune.graph.joins import scattered

# Operations of `keras.ops` that multiply and accumulate, and have no rule.
_PRODUCTS = {
    "Conv",
    "ConvTranspose",
    "Correlate",
    "DepthwiseConv",
    "Dot",
    "Inner",
    "SeparableConv",
    "Tensordot",
    "Vdot",
    "Vecdot",
}


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer.

    Attributes:
        path: layer path.
        type: class name of the layer or operation.
        output_shape: shape of its output, batch axis None.
        macs: multiply-accumulates for one sample, all calls of the layer together.
        params: entries of its weights, also those that do not train.
    """

    path: str
    type: str
    output_shape: tuple
    macs: int
    params: int


@dataclass(frozen=True)
class Cost:
    """Cost of a model for one sample.

    Attributes:
        macs: multiply-accumulates of convolutions, dense-like layers and products
            of two tensors, logits included.
        params: entries of all weights, also those that do not train.
        layers: tuple of `LayerCost`, in call order.
        scattered: entries written to put zeros between the channels of branches that
            are pruned independently (`Graph(residual="independent")`). They take
            time and no multiply-accumulates.
        uncounted: paths of layers that have kernels and could not be followed. Their
            multiply-accumulates are in no count, their weights are.
    """

    macs: int
    params: int
    layers: tuple[LayerCost, ...] = field(repr=False, compare=False)
    scattered: int = field(default=0, repr=False, compare=False)
    uncounted: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @property
    def flops(self) -> int:
        """Floating-point operations: two for each multiply-accumulate."""
        return 2 * self.macs


def cost(model: keras.Model | Graph, masks: Mapping | None = None) -> Cost:
    """Counts multiply-accumulates and parameters, as they are or under masks.

    The count under masks is exactly that of the compacted model. Gates cost nothing:
    a wrapped model counts as the model inside. Where the model leaves a size open,
    224 is assumed (`Graph.assumed_shapes` says for which inputs).

    Args:
        model: Functional, Sequential or subclassed model, or the `Graph` of one.
        masks: group name to bool array, True = keep; None keeps everything.

    Returns:
        `Cost` with `.macs`, `.flops`, `.params` and `.layers`.

    Raises:
        ValueError: if the masks belong to another model.

    Example:

    >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)]
    >>> tfprune.cost(keras.Sequential(layers)).macs
    3888
    """
    graph = as_graph(model)
    counter = Counter(graph)
    keep = graph.keep(masks)
    macs, params = counter.macs_per_term(keep), counter.params_per_variable(keep)
    rows = _layer_rows(graph, counter, macs, params, keep)
    moved = scattered(graph, keep)
    return Cost(int(macs.sum()), int(params.sum()), rows, moved, (*_uncounted(graph),))


def warn_of_uncounted(graph: Graph, budget) -> None:
    """Warns of what a budget of FLOPs is without.

    Args:
        graph: the `Graph` that the budget is for.
        budget: `Budget`.
    """
    left_out = _uncounted(graph) if budget.flops_reduction is not None else ()
    if left_out:
        first = left_out[0]
        # Without a `stacklevel`, Python says it once, however often masks are chosen.
        warnings.warn(
            "`flops_reduction` is of the multiply-accumulates that are counted, and "
            "those of layers that could not be followed are not: "
            f"{', '.join(left_out[:8])}{', ...' * (len(left_out) > 8)} ({first!r}: "
            f"{graph.skipped.get(first, 'an operation')}). `params_reduction` counts all "
            "weights."
        )


def _uncounted(graph: Graph) -> list[str]:
    """Returns the paths of layers with kernels whose work nothing has counted."""
    with_kernels = [call.path for call in graph.calls if _works(graph, call)]
    counted = [f"{term.path}/" for term in graph.mac_terms]
    return [
        path
        for path in dict.fromkeys(with_kernels)
        if not any(each.startswith(f"{path}/") for each in counted)
    ]


def _works(graph: Graph, call) -> bool:
    """Returns whether a call may multiply and accumulate and has no rule that counts."""
    if type(call.operation).__name__ in _PRODUCTS:
        return True
    # A subclass may also multiply with its table, as a `ReversibleEmbedding` does.
    looks_up = type(call.layer) is keras.layers.Embedding
    if call.path not in graph.skipped or looks_up:
        return False
    return any(len(v.shape) > 1 for v in getattr(call.layer, "weights", ()))


class Counter:
    """Counts the cost of any choice of units in a few vectorized steps.

    Args:
        graph: the `Graph` to count.
    """

    def __init__(self, graph: Graph):
        self._graph = graph
        self._axes: dict[int, int] = {}
        self._labels: list[np.ndarray] = []
        self.term_paths = [term.path for term in graph.mac_terms]
        self._terms = self._table(
            [(term.constant, term.labels) for term in graph.mac_terms]
        )
        variables = _variables(graph)
        self.variable_paths = [path for path, _ in variables]
        labels_of = {(id(b.variable), b.axis): b.labels for b in graph.bindings}
        products = [_product(variable, labels_of) for _, variable in variables]
        self._params = self._table(products)
        units = [graph.units(labels) for labels in self._labels]
        self._units = np.concatenate([*units, [graph.num_units]])
        self._starts = np.cumsum([0, *(len(each) for each in units)])
        self._ends = np.append(self._starts, len(self._units))

    def macs_per_term(self, keep: np.ndarray) -> np.ndarray:
        return self._evaluate(self._terms, keep)

    def params_per_variable(self, keep: np.ndarray) -> np.ndarray:
        return self._evaluate(self._params, keep)

    def macs(self, keep: np.ndarray) -> int:
        """Returns the multiply-accumulates when the units in `keep` stay."""
        return int(self.macs_per_term(keep).sum())

    def params(self, keep: np.ndarray) -> int:
        """Returns the number of weights when the units in `keep` stay."""
        return int(self.params_per_variable(keep).sum())

    def table(self, count: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the constant and the axes of each product that is counted.

        Args:
            count: `"macs"` or `"params"`.
        """
        return self._terms if count == "macs" else self._params

    def lengths_by_group(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns how long each axis is: by group, and what of it always stays."""
        group_of = np.full(self._graph.num_units + 1, len(self._graph.groups))
        for number, units in enumerate(self._graph.members):
            group_of[units] = number
        axis_of = np.repeat(np.arange(len(self._starts)), np.diff(self._ends))
        found = np.zeros((len(self._starts), len(self._graph.groups) + 1))
        np.add.at(found, (axis_of, group_of[self._units]), 1)
        return found[:, :-1], found[:, -1]

    def _table(self, products):
        """Turns (constant, axes) into arrays; the last axis number stands for 1."""
        width = max((len(axes) for _, axes in products), default=0)
        table = np.full((len(products), width), -1)
        for row, (_, axes) in zip(table, products, strict=True):
            row[: len(axes)] = [self._number(labels) for labels in axes]
        return np.array([c for c, _ in products], np.int64), table

    def _number(self, labels: np.ndarray) -> int:
        if id(labels) not in self._axes:
            self._axes[id(labels)] = len(self._labels)
            self._labels.append(labels)
        return self._axes[id(labels)]

    def _evaluate(self, table, keep: np.ndarray) -> np.ndarray:
        constants, axes = table
        # The unit appended at the end is never removed: axis -1 has length one.
        lengths = np.add.reduceat(keep[self._units].astype(np.int64), self._starts)
        return constants * lengths[axes].prod(axis=1)


def _variables(graph: Graph) -> list:
    """Returns (path, variable) of the weights of all layers, each once."""
    seen, found = set(), []
    for call in graph.calls:
        for variable in getattr(call.layer, "weights", ()):
            if id(variable) not in seen:
                seen.add(id(variable))
                found.append((call.path, variable))
    return found


def _product(variable, labels_of):
    labels = [
        labels_of.get((id(variable), axis)) for axis in range(len(variable.shape))
    ]
    plain = [n for n, each in zip(variable.shape, labels, strict=True) if each is None]
    return int(np.prod(plain, dtype=np.int64)), [x for x in labels if x is not None]


def _layer_rows(graph, counter, macs, params, keep) -> tuple[LayerCost, ...]:
    totals: dict[str, list[int]] = {path: [0, 0] for path in graph.layers}
    for path, count in zip(counter.term_paths, macs.tolist(), strict=True):
        totals[path][0] += count
    for path, count in zip(counter.variable_paths, params.tolist(), strict=True):
        totals[path][1] += count
    first = {}
    for call in graph.calls:
        first.setdefault(call.path, call)
    return tuple(
        LayerCost(
            path,
            type(call.layer).__name__,
            _shape(graph, call.outputs[0], keep),
            *totals[path],
        )
        for path, call in first.items()
    )


def _shape(graph, tensor, keep) -> tuple:
    return tuple(
        size if labels is None else int(keep[graph.units(labels)].sum())
        for size, labels in zip(tensor.shape, tensor.labels, strict=True)
    )
