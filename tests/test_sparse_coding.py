"""Arrays without zeros: they come back, and take little more than the entropy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfprune import sparse_coding
from tfprune.sparse_coding import Places


@settings(max_examples=300, deadline=None)
@given(st.lists(st.booleans(), max_size=200), st.integers(1, 30))
def test_any_places_come_back(flags, apart):
    flags = np.array(flags, bool)
    # Runs of nothing between them, so that gaps have all sizes.
    flags = np.concatenate([np.pad(flags[:, None], ((0, 0), (0, apart)))]).reshape(-1)
    places = Places.of(flags)
    assert places.indices().tolist() == np.flatnonzero(flags).tolist()


@pytest.mark.parametrize("size", [1_000_000, 30_000])
@pytest.mark.parametrize("density", [0.5, 0.2, 1 / 60, 1 / 300])
def test_places_by_chance_take_little_more_than_the_entropy(size, density):
    flags = np.random.default_rng(0).random(size) < density
    count = int(flags.sum())
    ways = math.lgamma(size + 1) - math.lgamma(count + 1)
    ways -= math.lgamma(size - count + 1)
    places = Places.of(flags)
    assert 8 * len(places.code) <= 1.05 * ways / math.log(2) + 16
    assert np.array_equal(places.indices(), np.flatnonzero(flags))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "bool"])
def test_values_come_back_bit_by_bit(dtype):
    random = np.random.default_rng(0)
    values = np.frombuffer(random.bytes(8000), "uint8")
    values = (values > 99) if dtype == "bool" else values.view(dtype)
    parts = sparse_coding.planes(values)
    assert len(parts) == values.itemsize
    back = sparse_coding.from_planes(parts, dtype)
    assert back.dtype == values.dtype and back.tobytes() == values.tobytes()


def test_only_plus_zero_is_nothing():
    array = np.array([[0.0, -0.0], [np.nan, 1e-45]], "float32")
    assert (sparse_coding.patterns(array) != 0).tolist() == [False, True, True, True]
