"""Thresholds: which scale factors count as zero, found from their values.

A threshold is a callable `threshold({layer path: scales}) -> {layer path: float}`:
scales at or below it go.
"""

import abc
import warnings
from collections.abc import Callable, Mapping

import numpy as np

from tfprune.checks import check_number, is_number

_BINS = 100


class _ByLayer(abc.ABC):
    """Base of the rules that look for a gap in the scales of every layer.

    Args:
        cap: largest threshold that is trusted.
        fallback: threshold of layers without a gap below `cap`.
    """

    def __init__(self, cap: float = 0.2, fallback: float = 0.01):
        check_number("cap", cap, "[0, inf)")
        check_number("fallback", fallback, f"[0, {cap}]", "no more than `cap`")
        self.cap = cap
        self.fallback = fallback

    def __call__(self, scales: Mapping[str, np.ndarray]) -> dict[str, float]:
        found = {path: self.gap(np.asarray(each)) for path, each in scales.items()}
        without = [path for path, gap in found.items() if gap is None]
        if without:
            warnings.warn(
                f"The scales of these layers have no gap below {self.cap}, so only "
                f"those up to {self.fallback} go: {', '.join(without[:8])}"
                f"{', ...' * (len(without) > 8)}. The regularizer was too weak to "
                "part them, or the training too short.",
                stacklevel=4,
            )
        return {path: self.fallback if x is None else x for path, x in found.items()}

    @abc.abstractmethod
    def gap(self, scales: np.ndarray) -> float | None:
        """Returns the threshold in a gap of one layer's scales, None without one."""


class Valley(_ByLayer):
    """The first valley of the histogram of a layer's scales, the rule of the paper.

    Counts in 100 bins over [0, 1]; the threshold is the left edge of the first bin
    that is no fuller than the one before it and the one behind. A valley above `cap`,
    one that is more than half as high as the peaks beside it, or one behind a hump
    that does not begin at zero, is no gap.

    Args:
        cap: largest threshold that is trusted. Defaults to 0.2.
        fallback: threshold of layers without such a gap. Defaults to 0.01.

    Source: Zhuang et al., "Neuron-level structured pruning using polarization
    regularizer", 2020, section 3.3; the guards are ours.

    Example:

    >>> tfprune.thresholds.Valley()({"bn": np.array([0.004, 0.012, 0.7, 0.9])})
    {'bn': 0.02}
    """

    def gap(self, scales):
        threshold = valley(scales)
        if threshold is None or threshold > self.cap:
            return None
        counts, place = _histogram(scales), round(threshold * _BINS)
        low, high = counts[:place].max(), counts[place + 1 :].max()
        parts = counts[place] <= min(low, high) / 2
        # What lies below has to be at zero: a hump of its own is no pruned channels.
        return threshold if parts and counts[0] >= low / 4 else None


class Margin(_ByLayer):
    """The middle of the widest gap between a layer's scales that begins below `cap`.

    Gaps narrower than 0.02 do not count. The one between zero and the smallest scale
    does: where it is the widest, nothing goes.

    Args:
        cap: what lies above is not looked at. Defaults to 0.2.
        fallback: threshold of layers without a gap. Defaults to 0.01.

    Example:

    >>> tfprune.thresholds.Margin()({"bn": np.array([0.0, 0.04, 0.8, 0.9])})
    {'bn': 0.12}
    """

    narrowest = 0.02

    def gap(self, scales):
        edges = np.sort(np.append(scales, 0.0))
        edges = np.append(edges[edges < self.cap], self.cap)
        widths = np.diff(edges)
        widest = widths.argmax()
        if widths[widest] < self.narrowest:
            return None
        return float(edges[widest] + widths[widest] / 2)


class Quantile:
    """One threshold for all layers: of the n scales in all, number `fraction * n`.

    It is counted from 0 and goes too. A fraction of 0 removes nothing.

    Args:
        fraction: float in [0, 1).

    Raises:
        ValueError: for arguments out of range.

    Source: Liu et al., "Learning efficient convolutional networks through network
    slimming", 2017.

    Example:

    >>> tfprune.thresholds.Quantile(0.5)({"a": np.array([0.1, 0.2, 0.3, 0.4])})
    {'a': 0.3}
    """

    def __init__(self, fraction: float):
        check_number("fraction", fraction, "[0, 1)", "how much of all scales goes")
        self.fraction = fraction

    def __call__(self, scales):
        pool = np.sort(np.concatenate([*map(np.ravel, scales.values()), []]))
        # The tolerance keeps 0.29 of 100 at 29, whatever 0.29 * 100 is in floats.
        number = int(self.fraction * len(pool) + 1e-9)
        threshold = float(pool[number]) if self.fraction and len(pool) else -1.0
        return dict.fromkeys(scales, threshold)


def valley(scales: np.ndarray) -> float | None:
    """Returns the paper's threshold of one layer's scales, as it is, None without one.

    Args:
        scales: values; those outside [0, 1] are not seen.
    """
    steps = np.diff(_histogram(scales))
    valleys = np.flatnonzero((steps[:-1] <= 0) & (steps[1:] >= 0))
    return float(valleys[0] + 1) / _BINS if len(valleys) else None


def _histogram(scales: np.ndarray) -> np.ndarray:
    return np.histogram(scales, _BINS, (0.0, 1.0))[0]


_BY_NAME = {"margin": Margin, "valley": Valley}


def check(threshold) -> None:
    """Raises ValueError unless a threshold is finite, a rule's name or a callable."""
    if is_number(threshold):
        check_number("threshold", threshold, "(-inf, inf)")
    else:
        get(threshold)


def get(threshold: str | Callable) -> Callable:
    """Returns a threshold given by name or as a callable."""
    if isinstance(threshold, str) and threshold in _BY_NAME:
        return _BY_NAME[threshold]()
    if callable(threshold) and not isinstance(threshold, type):
        return threshold
    raise ValueError(
        f"`threshold` must be a float, one of {sorted(_BY_NAME)} or a callable "
        "`threshold({layer path: scales}) -> {layer path: float}`. "
        f"Received: {threshold!r}"
    )
