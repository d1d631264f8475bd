"""The k largest, against a stable sort."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfprune import largest as module
from tfprune.largest import largest

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


def drawn(kinds, data):
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    return [
        KINDS[kind](random, data.draw(st.integers(1, 300))).astype("float32")
        for kind in kinds
    ]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=4), st.data())
def test_same_as_a_stable_sort(kinds, data):
    arrays = drawn(kinds, data)
    count = data.draw(st.integers(0, sum(a.size for a in arrays)))
    masks = largest(arrays, count)
    assert np.array_equal(np.concatenate(masks), expected(arrays, count))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(sorted(KINDS)), min_size=2, max_size=5), st.data())
def test_some_of_each_stay_in_any_case(kinds, data):
    arrays = drawn(kinds, data)
    least = [data.draw(st.integers(0, array.size)) for array in arrays]
    count = data.draw(st.integers(sum(least), sum(a.size for a in arrays)))
    masks = largest(arrays, count, least)
    check(arrays, masks, count, least)


def check(arrays, masks, count, least):
    assert sum(mask.sum() for mask in masks) == count
    for array, mask, number in zip(arrays, masks, least, strict=True):
        assert mask.sum() >= number
        # The best of each stay, the first of equal ones.
        assert np.array_equal(mask, expected([array], mask.sum()))
    flat, keep = np.concatenate(arrays), np.concatenate(masks)
    pairs = zip(masks, least, strict=True)
    could_go = np.concatenate([mask & (mask.sum() > n) for mask, n in pairs])
    if could_go.any() and not keep.all():
        assert flat[could_go].min() >= flat[~keep].max()


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_arrays_larger_than_the_sample(kind, share):
    random = np.random.default_rng(1)
    sizes = (700_000, 20, 64_000)
    arrays = [KINDS[kind](random, n).astype("float32") for n in sizes]
    count = int(share * sum(sizes))
    masks = largest(arrays, count)
    assert np.array_equal(np.concatenate(masks), expected(arrays, count))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_floors_that_move_the_threshold_far(kind):
    random = np.random.default_rng(1)
    sizes = (500_000, 300_000, 1, 100_000)
    arrays = [KINDS[kind](random, n).astype("float32") for n in sizes]
    arrays[1] *= 0.1
    least = (0, 200_000, 1, 90_000)
    masks = largest(arrays, 310_000, least)
    check(arrays, masks, 310_000, least)


def test_floors_go_before_the_count():
    arrays = [np.float32([3, 1]), np.float32([4, 5, 6]), np.float32([2])]
    found = largest(arrays, 2, [1, 2, 0])
    assert [mask.tolist() for mask in found] == [
        [True, False],
        [False, True, True],
        [False],
    ]
    assert not any(mask.any() for mask in largest(arrays, 0))


@pytest.mark.parametrize("bounds", [(2.0, 3.0), (-3.0, -2.0), (0.0, 0.0)])
def test_a_misleading_sample_costs_time_and_nothing_else(monkeypatch, bounds):
    monkeypatch.setattr(module, "_bounds", lambda arrays, k: bounds)
    array = np.random.default_rng(2).normal(size=999).astype("float32")
    assert np.array_equal(largest([array], 500)[0], expected([array], 500))
