"""The k largest of many numbers, exactly, without sorting them.

Between two quantiles of a sample lies, all but certainly, the last number that stays:
two passes over the data, and a look at the few percent in between, find which do. Whole
networks of weights are cut with this during training.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_SAMPLE = 100_000
# Below this, threads cost more than they bring.
_WORTH_THREADS = 1_000_000


def largest(arrays: list[np.ndarray], count: int, least=None) -> list[np.ndarray]:
    """Returns which entries are among the `count` largest of all arrays together.

    Exactly `count` are; of equal numbers those that come first.

    Args:
        arrays: 1-D float arrays without NaN.
        count: int, at most the number of entries.
        least: ints, how many of each array are among them in any case, even where that
            is more than `count` in all. By default none.

    Returns:
        A bool array for each of `arrays`.

    Example:

    >>> largest([np.array([3.0, 1.0]), np.array([1.0, 2.0])], 3)
    [array([ True,  True]), array([False,  True])]
    """
    least = [0] * len(arrays) if least is None else [int(number) for number in least]
    if count >= sum(each.size for each in arrays):
        return [np.ones(each.size, bool) for each in arrays]
    if count <= sum(least):
        return [_best(*each) for each in zip(arrays, least, strict=True)]
    fixed, band = {}, None
    while True:
        rest = {n: array for n, array in enumerate(arrays) if n not in fixed}
        missing = count - sum(least[number] for number in fixed)
        chosen = band and band.best(rest, missing)
        if chosen is None:
            band = _Band(rest, *_bounds(list(rest.values()), missing))
            chosen = band.best(rest, missing)
        if chosen is None:
            # A sample that misleads is as rare as it is harmless.
            band = _Band(rest, -np.inf, np.inf)
            chosen = band.best(rest, missing)
        kept = {n: band.counts[n] + len(places) for n, places in chosen.items()}
        short = [number for number in rest if kept[number] < least[number]]
        if not short:
            masks = {**band.masks(chosen), **fixed}
            return [masks[number] for number in range(len(arrays))]
        fixed.update({number: _best(arrays[number], least[number]) for number in short})


def _best(array: np.ndarray, count: int) -> np.ndarray:
    if count > 1:
        return largest([array], count)[0]
    mask = np.zeros(array.size, bool)
    if count:
        mask[np.argmax(array)] = True
    return mask


class _Band:
    """What of arrays is above a number, and what is up to it and above a lower one.

    Args:
        arrays: `{number: array}`.
        low: float.
        high: float, not below `low`.

    Attributes:
        counts: `{number: how many entries are above}`.
    """

    def __init__(self, arrays: dict, low, high):
        found = _each(lambda array: _between(array, low, high), list(arrays.values()))
        self._found = dict(zip(arrays, found, strict=True))
        self._arrays, self._low = arrays, low
        self.counts = {n: np.count_nonzero(each[0]) for n, each in self._found.items()}

    def best(self, numbers, count: int) -> dict | None:
        """Returns where the `count` largest are beside those above, `{number: places}`.

        None if the last of them is not in the band.

        Args:
            numbers: of the arrays to look at.
            count: int, at least 0.
        """
        missing = count - sum(self.counts[number] for number in numbers)
        if missing < 0:
            return None
        inside = np.concatenate([self._found[number][2] for number in numbers])
        # Above the threshold all stay; of what is equal to it as many as are missing.
        is_low = missing > inside.size
        threshold = self._low if is_low else np.inf
        if missing and not is_low:
            threshold = np.partition(inside, -missing)[-missing]
        missing -= np.count_nonzero(inside > threshold)
        chosen = {}
        for number in numbers:
            _, places, values = self._found[number]
            chosen[number] = places[values > threshold]
            if missing:
                ties = places[values == threshold]
                if is_low:
                    ties = np.flatnonzero(self._arrays[number] == threshold)
                ties = ties[:missing]
                chosen[number] = np.concatenate([chosen[number], ties])
                missing -= len(ties)
        return None if missing else chosen

    def masks(self, chosen: dict) -> dict:
        """Returns masks of what is above and of these places, once."""
        for number, places in chosen.items():
            self._found[number][0][places] = True
        return {number: self._found[number][0] for number in chosen}


def _each(function, arrays: list) -> list:
    """Returns the function of every array; NumPy lets threads work at once."""
    if sum(each.size for each in arrays) < _WORTH_THREADS:
        return list(map(function, arrays))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, arrays))


def _between(array: np.ndarray, low, high) -> tuple:
    """Returns which entries are above `high`; where others are above `low`, and they."""
    above = array > high
    inside = array > low
    inside ^= above
    places = np.flatnonzero(inside)
    return above, places, array[places]


def _bounds(arrays: list[np.ndarray], k: int) -> tuple:
    """Returns two numbers that the k-th largest lies between, all but certainly."""
    total = sum(each.size for each in arrays)
    # A stride that shares no factor with the shapes of kernels, such as 64 or 9.
    stride = max(1, total // _SAMPLE) | 1
    while stride > 1 and any(stride % prime == 0 for prime in (3, 5, 7)):
        stride += 2
    sample = np.sort(np.concatenate([each[::stride] for each in arrays]))
    # Six standard deviations of the rank of a random sample.
    share = k / total
    slack = 6 * np.sqrt(share * (1 - share) * sample.size) + len(arrays) + 1
    place = sample.size * (1 - share)
    low = int(np.clip(np.floor(place - slack), 0, sample.size - 1))
    high = int(np.clip(np.ceil(place + slack), 0, sample.size - 1))
    low = -np.inf if low == 0 else sample[low]
    high = np.inf if high == sample.size - 1 else sample[high]
    return low, high
