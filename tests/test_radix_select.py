"""The k-th largest inside a graph, against a sort."""

import numpy as np
import pytest
import tensorflow as tf

from tfprune import radix_select
from tfprune.radix_select import kth_largest

KINDS = {
    "normal": lambda random, n: random.normal(size=n),
    "tied": lambda random, n: random.normal(size=n).round(1),
    "zeros": lambda random, n: np.zeros(n),
    "mostly zero": lambda random, n: np.maximum(random.normal(size=n) - 1, 0),
    "heavy tails": lambda random, n: random.standard_cauchy(n),
    "denormal": lambda random, n: random.normal(size=n) * 1e-42,
    "infinite": lambda random, n: np.where(random.random(n) < 0.2, np.inf, 1.0),
    "all sizes": lambda random, n: 10.0 ** random.uniform(-38, 38, n),
}


def numbers(kind, *sizes):
    random = np.random.default_rng(len(kind))
    return [np.abs(KINDS[kind](random, n)).astype("float32") for n in sizes]


def pieces(arrays):
    tensors = [tf.constant(each) for each in arrays]
    return [(each.shape[0], lambda each=each: each) for each in tensors]


def expected(arrays, k):
    return np.sort(np.concatenate(arrays))[-k]


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("method", ["_by_counting", "_by_sample"])
def test_same_as_a_sort(kind, method):
    arrays = numbers(kind, 30_000, 7, 300)
    total = sum(each.size for each in arrays)
    for k in (1, 2, total // 300, total // 20, total // 2, total - 1, total):
        if method == "_by_counting":
            found = radix_select._by_counting(pieces(arrays), total, k)
        else:
            found = radix_select._by_sample(list(map(tf.constant, arrays)), total, k)
        assert found.numpy() == expected(arrays, k)


def test_a_sample_that_misleads():
    # Every number that the sample sees is large, and all others are not.
    stride = (40_000 // radix_select._SAMPLE) | 1
    array = np.random.default_rng(0).random(40_000).astype("float32")
    array[::stride] += 5
    array[100:104] = 2.5
    found = radix_select._by_sample([tf.constant(array)], array.size, 8100)
    assert found.numpy() == expected([array], 8100)


def test_large_tensors_are_computed_anew_and_small_ones_together(monkeypatch):
    monkeypatch.setattr(radix_select, "_FEW", 1000)
    monkeypatch.setattr(radix_select, "_SMALL", 100)
    arrays = numbers("normal", 2000, 50, 3000, 90, 10)
    calls = np.zeros(len(arrays), int)

    def piece(number):
        def compute():
            calls[number] += 1
            return tf.constant(arrays[number])

        return arrays[number].size, compute

    for k in (1, 77, 5150):
        calls[:] = 0
        found = kth_largest(list(map(piece, range(len(arrays)))), k)
        assert found.numpy() == expected(arrays, k)
        assert calls.tolist() == [2, 1, 2, 1, 1]


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("share", [0.01, 0.5])
def test_in_graphs(jit, share):
    arrays = numbers("normal", 5000, 2000)
    variables = [tf.Variable(each) for each in arrays]
    k = int(share * 7000)

    @tf.function(jit_compile=jit, autograph=False)
    def run():
        assert radix_select._is_in_xla() == jit
        both = [(v.shape[0], lambda v=v: tf.convert_to_tensor(v)) for v in variables]
        return kth_largest(both, k)

    assert run().numpy() == expected(arrays, k)
