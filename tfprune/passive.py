"""The end of a run with GlobalSparseMomentum: what has decayed becomes zero."""

import warnings

import numpy as np

from tfprune.evaluating import evaluate, score
from tfprune.graph import Graph
from tfprune.largest import largest
from tfprune.masks import Masks
from tfprune.optimizers import GlobalSparseMomentum
from tfprune.reading import shared_array
from tfprune.surgery import apply_masks, strip
from tfprune.training import inner_optimizer

# Weights at the edge of the cut should differ by more than this from those well below,
_CLEAR_GAP = 10
# and what goes should be no more than this share of all kernels' Euclidean norm.
_SMALL_SHARE = 0.1
_SHORT = (
    "Train longer, raise `weight_decay` or the learning rate, see "
    "`GlobalSparseMomentum.decay_budget`, or keep more weights."
)
_IN_TURNS = (
    "Passive weights have decayed, but more than Q were active in turns, as batches "
    "differ. Take larger batches, keep more weights, or train the result for some "
    "epochs: its zeros hold."
)


def remove_passive(model, data=None, verbose=1):
    """Returns a model with all but the Q largest weights at zero, and held there.

    For models trained with `tfprune.optimizers.GlobalSparseMomentum`, whose settings
    tell which kernels are pruned and how many weights stay. Kernels that it has not moved
    stay whole: frozen ones, and those that no output depends on. If training was long
    enough, the others are next to nothing already, and zeroing them costs nothing. That
    is checked: the gap between the Q-th and the 2Q-th largest magnitude and the share
    of the norm that goes are printed and, with `data`, the accuracy before and after.

    Args:
        model: model compiled with the optimizer, trained; not changed.
        data: what to evaluate on: a dataset of batches `(x, y)`, or arrays `(x, y)` or
            `(x, y, sample_weight)`.
            Defaults to `None`: the accuracy is not measured.
        verbose: 0 or 1. Whether to print, and to measure for that. Defaults to `1`.

    Returns:
        A new model with `WeightMask`s, uncompiled: zeros hold in further training, and
        `tfprune.strip` takes the masks off. Every kernel keeps one weight at least.

    Raises:
        ValueError: if the model's optimizer is another, or has not trained yet, or if
            weights are not finite, or all zero.

    Source: Ding et al., "Global sparse momentum SGD for pruning very deep neural
    networks", 2019, section 3.2; the checks are ours.

    Example:

    ```python
    optimizer = tfprune.optimizers.GlobalSparseMomentum(0.02, compression=60)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(train, epochs=20)
    sparse = tfprune.remove_passive(model, test)
    tfprune.save_sparse(tfprune.strip(sparse), "model.tfsparse")
    ```
    """
    graph, rankings = _read(model)
    names = {id(kernel.variable): name for name, kernel in graph.kernels.items()}
    masks, gaps, shares = {}, [], []
    for kernels, count in rankings:
        arrays = [np.abs(shared_array(kernel)).reshape(-1) for kernel in kernels]
        kept = largest(arrays, count, np.ones(len(arrays), int))
        masks.update({names[id(k)]: m for k, m in zip(kernels, kept, strict=True)})
        gaps.append(_gap(np.concatenate(arrays), count))
        shares.append(_share(np.concatenate(arrays), count))
    sparse = apply_masks(graph, masks)
    gap, share = min(gaps), max(shares)
    if verbose:
        print(_describe(model, sparse, Masks(masks), gap, share, data))
    if gap < _CLEAR_GAP or share > _SMALL_SHARE:
        warnings.warn(
            "The weights that go are not all next to nothing, so zeroing may cost "
            f"accuracy: the gap is {gap:.2g} ({_CLEAR_GAP} or more is clear), and they "
            f"are {share:.0%} of the norm ({_SMALL_SHARE:.0%} or less is little). "
            + (_SHORT if gap < _CLEAR_GAP else _IN_TURNS),
            stacklevel=2,
        )
    return sparse


def _read(model) -> tuple:
    """Returns the graph of a model's weights, and its optimizer's rankings."""
    optimizer = inner_optimizer(model) if hasattr(model, "optimizer") else None
    if not isinstance(optimizer, GlobalSparseMomentum):
        raise ValueError(
            "`remove_passive` ends a run with `tfprune.optimizers.GlobalSparseMomentum`"
            f". Received: model={model.name!r} with optimizer {optimizer!r}. Any other "
            "is cut by magnitude: `graph = Graph(model, unit='weight')`, then "
            "`apply_masks(graph, select(graph, 'magnitude', Budget(sparsity=0.9)))`."
        )
    graph = Graph(model, unit="weight")
    if not optimizer.built or not optimizer.iterations.numpy():
        raise ValueError(
            "The optimizer has not taken a step yet, so nothing has decayed. Received: "
            f"model={model.name!r}. Call `model.fit` first."
        )
    known = {id(kernel.variable) for kernel in graph.kernels.values()}
    rankings = optimizer.active_counts(optimizer.trained_variables())
    for kernel in (each for kernels, _ in rankings for each in kernels):
        if not np.isfinite(shared_array(kernel)).all():
            raise ValueError(
                f"Weights of {kernel.path!r} are not finite: the training has diverged. "
                f"Received: model={model.name!r}. Train again with a lower learning rate."
            )
        if id(kernel) not in known:
            raise ValueError(
                f"{kernel.path!r} is pruned by the optimizer, and is no kernel that can "
                f"be masked in {model.name!r}: {graph.skipped}. Leave it out "
                "with `GlobalSparseMomentum(exclude=...)`."
            )
    if not any(shared_array(each).any() for kernels, _ in rankings for each in kernels):
        raise ValueError(
            "All weights that the optimizer prunes are zero: nothing is left to keep. "
            f"Received: model={model.name!r}. Train again with less `weight_decay`."
        )
    return graph, rankings


def _gap(magnitudes: np.ndarray, count: int) -> float:
    """Returns the count-th largest magnitude over that of twice the rank."""
    if count >= magnitudes.size:
        return float("inf")
    places = magnitudes.size - np.array([count, min(2 * count, magnitudes.size)])
    edge, below = np.partition(magnitudes, places)[places]
    return float(edge / below) if below else float("inf")


def _share(magnitudes: np.ndarray, count: int) -> float:
    """Returns the share of the norm that all but the count largest magnitudes have."""
    ordered = np.sort(magnitudes).astype("float64")
    whole = np.linalg.norm(ordered)
    goes = np.linalg.norm(ordered[: ordered.size - count])
    return float(goes / whole) if whole else 0.0


def _describe(model, sparse, masks, gap, share, data) -> str:
    density = masks.density()
    number = sum(int(np.count_nonzero(mask)) for mask in masks.values())
    total = sum(mask.size for mask in masks.values())
    least = min(masks, key=lambda name: np.mean(masks[name]))
    lines = [
        f"remove_passive: {number:,} of {total:,} weights stay ({1 / density:.1f}x), "
        f"fewest of {least}: {np.mean(masks[least]):.2%}",
        f"  gap: {gap:.3g} (the Q-th over the 2Q-th largest magnitude); "
        f"{share:.1%} of the norm goes",
    ]
    if data is not None:
        plain = strip(model)
        name, before = score(plain, evaluate(plain, model, data))
        small = strip(sparse)
        name, after = score(small, evaluate(small, model, data))
        lines.append(f"  {name}: {before:.4f} before, {after:.4f} after")
    return "\n".join(lines)
