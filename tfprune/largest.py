"""The k largest of many numbers, exactly, without sorting them.

Between two quantiles of a sample lies, all but certainly, the k-th largest number:
three passes over the data and a sort of a few percent find it. Whole networks of
weights are cut with this during training.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_SAMPLE = 100_000
# Below this, threads cost more than they bring.
_WORTH_THREADS = 1_000_000


def largest(arrays: list[np.ndarray], count: int) -> list[np.ndarray]:
    """Returns which entries are among the `count` largest of all arrays together.

    Exactly `count` are; of equal numbers those that come first.

    Args:
        arrays: 1-D float arrays without NaN.
        count: int, at least 0 and at most the number of entries.

    Returns:
        A bool array for each of `arrays`.

    Example:

    >>> largest([np.array([3.0, 1.0]), np.array([1.0, 2.0])], 3)
    [array([ True,  True]), array([False,  True])]
    """
    total = sum(each.size for each in arrays)
    if count <= 0 or count >= total:
        return [np.full(each.size, count > 0) for each in arrays]
    threshold = kth_largest(arrays, count)
    masks = _each(lambda array: array > threshold, arrays)
    missing = count - sum(map(np.count_nonzero, masks))
    for array, mask in zip(arrays, masks, strict=True):
        if not missing:
            break
        ties = np.flatnonzero(array == threshold)[:missing]
        mask[ties] = True
        missing -= len(ties)
    return masks


def kth_largest(arrays: list[np.ndarray], k: int) -> float:
    """Returns the k-th largest number of all arrays together.

    Args:
        arrays: 1-D float arrays without NaN.
        k: int from 1 to the number of entries.
    """
    low, high = _bounds(arrays, k)
    above = sum(_each(lambda array: np.count_nonzero(array > high), arrays))
    if above < k:
        between = _each(lambda array: _between(array, low, high), arrays)
        inside = np.concatenate([found for found, _ in between])
        if k <= above + (at_high := sum(number for _, number in between)):
            return high
        if k <= above + at_high + inside.size:
            return _partitioned(inside, k - above - at_high)
        at_low = sum(np.count_nonzero(each == low) for each in arrays)
        if k <= above + at_high + inside.size + at_low:
            return low
    # The sample was misleading, which is as rare as it is harmless.
    return _partitioned(np.concatenate(arrays), k)


def _each(function, arrays: list) -> list:
    """Returns the function of every array; NumPy lets threads work at once."""
    if sum(each.size for each in arrays) < _WORTH_THREADS:
        return list(map(function, arrays))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, arrays))


def _between(array: np.ndarray, low, high) -> tuple[np.ndarray, int]:
    """Returns the entries strictly between two numbers, and how many are the higher."""
    if low == high:
        return array[:0], np.count_nonzero(array == high)
    found = array[(array > low) & (array <= high)]
    is_inside = found < high
    return found[is_inside], found.size - np.count_nonzero(is_inside)


def _partitioned(numbers: np.ndarray, k: int):
    place = numbers.size - k
    return np.partition(numbers, place)[place]


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
