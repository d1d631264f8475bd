"""Cuts between single weights: how many of each kernel stay, and which."""

from collections.abc import Callable, Mapping

import numpy as np

from tfprune.budget import most_removed
from tfprune.graph import WeightGraph
from tfprune.largest import largest
from tfprune.masks import Masks


def select_weights(
    graph: WeightGraph,
    scores: Mapping,
    budget,
    fractions: str | Mapping,
) -> Masks:
    """Returns masks that keep the best weights and meet a budget.

    Args:
        graph: graph of single weights.
        scores: `{group name: float array of shape (size,)}`; infinite ones keep their
            units.
        budget: a `tfprune.Budget`.
        fractions: `"global"`, `"erk"`, or `{group name: fraction}` to remove, scaled by
            one factor to meet the target of the budget, if it has one.
    """
    names = [group.name for group in graph.groups]
    arrays = [scores[name] for name in names]
    if budget.n_of_m is not None:
        masks = _n_of_m(graph, arrays, budget)
    else:
        sizes = np.array([group.size for group in graph.groups], np.int64)
        infinite = np.array([np.isinf(array).sum() for array in arrays], np.int64)
        least = np.maximum(sizes - most_removed(graph, budget), infinite)
        removed = _number_removed(graph, budget, int(sizes.sum()))
        if removed is not None and removed > (sizes - least).sum():
            raise ValueError(_unreachable(graph, budget, sizes, least))
        if fractions == "global":
            masks = largest(arrays, int(sizes.sum()) - removed, least)
        else:
            kept = (
                _erk(graph, sizes, least, int(sizes.sum()) - removed)
                if fractions == "erk"
                else _scaled(names, sizes, least, removed, fractions)
            )
            masks = [
                largest([array], int(number))[0]
                for array, number in zip(arrays, kept, strict=True)
            ]
    return Masks(dict(zip(names, masks, strict=True)))


def _number_removed(graph: WeightGraph, budget, units: int) -> int | None:
    """Returns how many units a budget removes at least; None without a target."""
    if budget.target is None:
        return None
    name, fraction = budget.target
    if name == "flops_reduction" or (name == "params_reduction" and graph.block):
        raise ValueError(
            f"A budget for masks on {'blocks of' if graph.block else 'single'} weights "
            f"has a `sparsity`; they take no work away. Received: {budget}. For fewer "
            "multiply-accumulates, remove channels."
        )
    whole = units if name == "sparsity" else _count_weights(graph)
    # The tolerance keeps 0.9 of 10 at 9, whatever that is in floats.
    return int(np.ceil(whole * fraction - 1e-6))


def _unreachable(graph, budget, sizes, least) -> str:
    most = (sizes - least).sum() / max(1, sizes.sum())
    return (
        f"`budget` cannot be met: at most {most:.6f} of the {sizes.sum()} units in "
        f"{len(sizes)} kernels of {graph.model.name!r} can be removed within its "
        f"floors and finite scores. Received: {budget}. Ask for less, or raise "
        "`max_sparsity`."
    )


def _scaled(names, sizes, least, removed: int | None, fractions: Mapping) -> np.ndarray:
    """Returns how many units stay when fractions are removed, scaled to a target."""
    weights = np.array([fractions.get(name, 0.0) for name in names])

    def kept(factor: float) -> np.ndarray:
        gone = np.ceil(sizes * np.minimum(1, weights * factor) - 1e-6).astype(np.int64)
        return np.maximum(sizes - gone, least)

    if removed is None:
        return kept(1.0)
    goal = int(sizes.sum()) - removed
    largest_factor = 1 / weights[weights > 0].min() if weights.any() else 0.0
    if kept(largest_factor).sum() > goal:
        raise ValueError(
            f"`scope` cannot meet the budget: its groups can give "
            f"{(sizes - kept(largest_factor)).sum()} of the {removed} units asked. "
            "Name more of them, or ask for less."
        )
    return kept(_smallest(lambda f: kept(f).sum() <= goal, largest_factor))


def _smallest(meets: Callable, high: float) -> float:
    """Returns the smallest number up to `high` that meets a monotone condition."""
    low = 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def _erk(graph: WeightGraph, sizes, least, count: int) -> np.ndarray:
    """Returns how many units stay at the densities of Erdos-Renyi-Kernel graphs.

    The density of a kernel goes with the sum of its sizes over their product, one
    factor for all, and is at most 1.
    """
    shapes = [kernel.variable.shape for kernel in graph.kernels.values()]
    density = np.array([sum(shape) / np.prod(shape) for shape in shapes])

    def wanted(factor: float) -> np.ndarray:
        return np.clip(sizes * density * factor, least, sizes)

    factor = _smallest(lambda f: wanted(f).sum() >= count, 1 / density.min())
    kept = np.floor(wanted(factor)).astype(np.int64)
    # What rounding has lost or gained goes where the exact number is nearest.
    order = np.argsort(kept - wanted(factor), kind="stable")
    missing = count - int(kept.sum())
    free = [n for n in order if kept[n] < sizes[n]][: max(0, missing)]
    kept[free] += 1
    surplus = [n for n in order[::-1] if kept[n] > least[n]][: max(0, -missing)]
    kept[surplus] -= 1
    return kept


def _n_of_m(graph: WeightGraph, arrays: list, budget) -> list:
    """Returns masks that keep the best N of every M weights along the input axis."""
    masks = [np.ones(each.size, bool) for each in arrays]
    counts = _pattern_counts(graph, budget)
    rest = [
        _not_among_best(kernel, array, budget.n_of_m)
        if counts[name]
        else np.zeros(0, np.int64)
        for (name, kernel), array in zip(graph.kernels.items(), arrays, strict=True)
    ]
    count = sum(each.size for each in rest)
    if not count:
        raise ValueError(
            f"`n_of_m` removes nothing: no kernel of {graph.model.name!r} has an input "
            f"axis of more than {budget.n_of_m[0]}, finite scores, and a floor that "
            f"the pattern leaves standing. Received: {budget}"
        )
    share = round(count * (1 - budget.in_force))
    candidates = [a[where] for a, where in zip(arrays, rest, strict=True)]
    for mask, where, keep in zip(masks, rest, largest(candidates, share), strict=True):
        mask[where] = keep
    return masks


def _not_among_best(kernel, array: np.ndarray, n_of_m: tuple) -> np.ndarray:
    """Returns the flat indices of weights that are not among the N best of their M."""
    values = array.reshape(tuple(kernel.variable.shape))
    keep = keep_of_m(values, kernel.input_axis, n_of_m)
    return np.flatnonzero(~keep & np.isfinite(values))


def keep_of_m(values: np.ndarray, axis: int, n_of_m: tuple) -> np.ndarray:
    """Returns the mask of the N largest of every M values in a row along an axis.

    Args:
        values: array without NaN.
        axis: int. What is left over at its end keeps up to N.
        n_of_m: `(n, m)`.
    """
    best, out_of = n_of_m
    values = np.moveaxis(values, axis, -1)
    missing = -values.shape[-1] % out_of
    pads = [(0, 0)] * (values.ndim - 1) + [(0, missing)]
    values = np.pad(values, pads, constant_values=-np.inf)
    values = values.reshape(*values.shape[:-1], -1, out_of)
    rank = np.zeros(values.shape, np.uint16)
    for place in range(out_of):
        other = values[..., place : place + 1]
        rank += other > values
        # Of equal values the first is the better one.
        rank[..., place + 1 :] += other == values[..., place + 1 :]
    keep = (rank < best).reshape(*values.shape[:-2], -1)
    return np.moveaxis(keep[..., : keep.shape[-1] - missing], -1, axis)


def removed_weights(graph: WeightGraph, masks: Mapping, budget=None) -> dict:
    """Returns the fractions that masks remove, under the names of `Budget`."""
    gone = {
        name: int(mask.size - np.count_nonzero(mask)) for name, mask in masks.items()
    }
    entries = gone
    if graph.block:
        entries = {n: int(graph.entries(n)[~mask].sum()) for n, mask in masks.items()}
    removed = {
        "sparsity": sum(gone.values()) / max(1, graph.num_units),
        "params_reduction": sum(entries.values()) / _count_weights(graph),
    }
    if budget is not None and budget.n_of_m is not None:
        most = sum(_pattern_counts(graph, budget).values())
        removed["n_of_m"] = sum(gone.values()) / max(1, most)
    return removed


def _count_weights(graph: WeightGraph) -> int:
    """Returns the number of weights of the model, without those of its gates."""
    layers = {id(layer): layer for _, layer in graph.plain_layers()}
    weights = {id(w): w for layer in layers.values() for w in layer.weights}
    return sum(int(np.prod(weight.shape)) for weight in weights.values())


def _pattern_counts(graph: WeightGraph, budget) -> dict[str, int]:
    """Returns how many weights of each kernel the pattern of a budget removes.

    None of those of whose weights fewer may go: half a pattern is none.
    """
    counts, caps = {}, most_removed(graph, budget)
    for (name, kernel), most in zip(graph.kernels.items(), caps, strict=True):
        count = _count_n_of_m(kernel, budget.n_of_m)
        counts[name] = count if count <= most else 0
    return counts


def _count_n_of_m(kernel, n_of_m: tuple) -> int:
    """Returns how many weights of a kernel a pattern removes."""
    if kernel.input_axis is None:
        return 0
    shape, (best, out_of) = kernel.variable.shape, n_of_m
    length = shape[kernel.input_axis]
    gone = length // out_of * (out_of - best) + max(0, length % out_of - best)
    return int(np.prod(shape)) // length * gone


def without_pattern(graph: WeightGraph, budget) -> list[str]:
    """Returns the names of the kernels that the pattern of a budget leaves whole."""
    return [name for name, count in _pattern_counts(graph, budget).items() if not count]
