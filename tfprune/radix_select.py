"""The k-th largest of many numbers inside a TensorFlow graph, exactly and fast.

Non-negative floats are ordered as their bit patterns are, so the k-th largest is found
by counting: how many numbers have each pattern of leading bits, then, among those with
the leading bits of the k-th, how many have each pattern of the bits that follow. There
is no sort, and shapes are static. Where few numbers are wanted of few, a sample tells
which of them to sort.
"""

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import control_flow_util

# The 31 bits below the sign, in two parts.
_LEADING, _FOLLOWING = 16, 15
# Up to so many numbers in all, they are kept; more of them are computed twice.
_FEW = 1_000_000
# Of more, only tensors up to this size are taken together.
_SMALL = 1 << 16
# A sort of the candidates is cheaper than counting up to this part of all numbers.
_MOST_SORTED = 1 / 40
_SAMPLE = 8192


def kth_largest(pieces: list, k: int):
    """Returns the k-th largest of non-negative numbers, a float32 tensor.

    Args:
        pieces: `(size, function)` pairs; the function takes no arguments and returns
            `size` numbers, not below zero, as a float32 tensor. It may be called twice,
            so that no copy of a large tensor has to be kept. Infinity is above all
            numbers; NaN has no place.
        k: int from 1 to the number of numbers.

    Example:

    >>> kth_largest([(3, lambda: tf.constant([3.0, 1.0, 2.0]))], 2)
    <tf.Tensor: shape=(), dtype=float32, numpy=2.0>
    """
    total = sum(size for size, _ in pieces)
    if total > _FEW or k > _MOST_SORTED * total or _is_in_xla():
        return _by_counting(pieces, total, k)
    return _by_sample([function() for _, function in pieces], total, k)


def _is_in_xla() -> bool:
    """Returns whether XLA will compile what is traced: it needs static shapes."""
    graph = tf.compat.v1.get_default_graph()
    return control_flow_util.GraphOrParentsInXlaContext(graph)


def _bits(numbers, dtype):
    return tf.bitcast(tf.reshape(numbers, [-1]), dtype)


# By a sample --------------------------------------------------------------------------


def _by_sample(arrays: list, total: int, k: int):
    arrays = [_bits(each, tf.int32) for each in arrays]
    stride = max(1, total // _SAMPLE) | 1
    sample = tf.concat([each[::stride] for each in arrays], 0)
    # Six standard deviations of the rank of a random sample.
    size, share = sample.shape[0], k / total
    rank = share * size + 6 * np.sqrt(share * (1 - share) * size) + len(arrays) + 1
    bound = _kth(sample, min(size, int(np.ceil(rank))))
    candidates = [tf.gather(each, tf.where(each >= bound)[:, 0]) for each in arrays]
    candidates = tf.concat(candidates, 0)
    # That the sample misleads is as rare as it is harmless.
    found = tf.cond(
        tf.size(candidates) >= k,
        lambda: _kth(candidates, k),
        lambda: _kth(tf.concat(arrays, 0), k),
    )
    return tf.bitcast(found, tf.float32)


def _kth(numbers, k: int):
    return tf.reduce_min(tf.math.top_k(numbers, k, sorted=False)[0])


# By counting --------------------------------------------------------------------------


def _by_counting(pieces: list, total: int, k: int):
    rank = tf.constant(k, tf.int32 if total < 2**31 else tf.int64)
    chunks = _chunks(pieces, total)
    leading, rank = _locate(_leading_counts(chunks, rank.dtype), rank)
    known = tf.bitwise.left_shift(tf.cast(leading, tf.uint32), _uint32(_FOLLOWING))
    following, _ = _locate(_following_counts(chunks, known, rank.dtype), rank)
    return tf.bitcast(known + tf.cast(following, tf.uint32), tf.float32)


def _chunks(pieces: list, total: int) -> list:
    """Returns functions that return bit patterns, those of small pieces together."""
    is_small = [total <= _FEW or size <= _SMALL for size, _ in pieces]
    small = [f() for (_, f), flag in zip(pieces, is_small, strict=True) if flag]
    large = [f for (_, f), flag in zip(pieces, is_small, strict=True) if not flag]
    chunks = [
        lambda function=function: _bits(function(), tf.uint32) for function in large
    ]
    if small:
        together = tf.concat([_bits(each, tf.uint32) for each in small], 0)
        chunks.append(lambda: together)
    return chunks


def _leading_counts(chunks: list, dtype):
    def values(bits):
        return tf.bitwise.right_shift(bits, _uint32(_FOLLOWING))

    return _counts(chunks, values, 1 << _LEADING, dtype)


def _following_counts(chunks: list, known, dtype):
    size = 1 << _FOLLOWING

    def values(bits):
        # Below zero wraps around, so one minimum takes all others aside.
        return tf.minimum(bits - known, _uint32(size))

    return _counts(chunks, values, size + 1, dtype)[:size]


def _counts(chunks: list, values, size: int, dtype):
    """Returns how often each value occurs."""
    total = tf.zeros(size, dtype)
    for chunk in chunks:
        # One after the other, so that the temporaries of one live at a time.
        with tf.control_dependencies([total]):
            total += tf.raw_ops.DenseBincount(
                input=tf.bitcast(values(chunk()), tf.int32),
                size=size,
                weights=tf.constant([], dtype),
            )
    return total


def _locate(counts, rank):
    """Returns the value of the number of a rank from above, and its rank among equals.

    Args:
        counts: how often each of the values from 0 on occurs.
        rank: from 1.
    """
    # In two steps, because a running sum over all counts is slow.
    rows = tf.reshape(counts, [-1, 1 << 8])
    row, rank = _last_reaching(tf.reduce_sum(rows, 1), rank)
    column, rank = _last_reaching(tf.gather(rows, row), rank)
    return row * (1 << 8) + column, rank


def _last_reaching(counts, rank):
    # `gather`: to slice at a place it computes, XLA runs everything while it compiles.
    at_least = tf.cumsum(counts, reverse=True)
    place = tf.reduce_sum(tf.cast(at_least >= rank, tf.int32)) - 1
    return place, rank - tf.gather(at_least - counts, place)


def _uint32(value: int):
    return tf.constant(value, tf.uint32)
