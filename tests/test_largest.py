"""The k largest, against a stable sort."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfprune import largest as module
from tfprune.largest import kth_largest, largest

KINDS = {
    "normal": lambda random, n: random.normal(size=n),
    "tied": lambda random, n: random.normal(size=n).round(1),
    "zeros": lambda random, n: np.zeros(n),
    "mostly zero": lambda random, n: np.maximum(random.normal(size=n) - 1, 0),
    "heavy tails": lambda random, n: random.standard_cauchy(n),
    "denormal": lambda random, n: random.normal(size=n) * 1e-42,
    "infinite": lambda random, n: np.where(random.random(n) < 0.2, np.inf, 1.0),
}


def expected(arrays, count):
    flat = np.concatenate(arrays)
    keep = np.zeros(flat.size, bool)
    keep[np.argsort(-flat, kind="stable")[:count]] = True
    return keep


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=4), st.data())
def test_same_as_a_stable_sort(kinds, data):
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    arrays = [
        KINDS[kind](random, data.draw(st.integers(1, 300))).astype("float32")
        for kind in kinds
    ]
    count = data.draw(st.integers(0, sum(a.size for a in arrays)))
    masks = largest(arrays, count)
    assert np.array_equal(np.concatenate(masks), expected(arrays, count))


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_arrays_larger_than_the_sample(kind, share):
    random = np.random.default_rng(1)
    sizes = (700_000, 20, 64_000)
    arrays = [KINDS[kind](random, n).astype("float32") for n in sizes]
    count = int(share * sum(sizes))
    masks = largest(arrays, count)
    assert np.array_equal(np.concatenate(masks), expected(arrays, count))


@pytest.mark.parametrize("bounds", [(2.0, 3.0), (-3.0, -2.0), (0.0, 0.0)])
def test_a_misleading_sample_costs_time_and_nothing_else(monkeypatch, bounds):
    monkeypatch.setattr(module, "_bounds", lambda arrays, k: bounds)
    array = np.random.default_rng(2).normal(size=999).astype("float32")
    assert kth_largest([array], 500) == np.sort(array)[-500]
