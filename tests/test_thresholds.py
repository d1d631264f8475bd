"""Thresholds: the paper's valley as it is, its guards, and the other rules."""

import numpy as np
import pytest

from tfprune import thresholds
from tfprune.thresholds import Margin, Quantile, Valley, valley


def repeated(*pairs):
    return np.concatenate([np.full(count, value) for value, count in pairs])


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        (repeated((0.5, 8)), 0.01),
        (repeated((0.0, 8)), 0.01),
        (repeated((1.5, 8)), 0.01),
        (repeated((-0.5, 8)), 0.01),
        (repeated((0.005, 4), (0.015, 6), (0.025, 2), (0.2, 4)), 0.03),
        (repeated((0.004, 20), (0.011, 1), (0.8, 9)), 0.02),
        (repeated(*((0.005 + i / 100, 200 - i) for i in range(100))), None),
        (repeated(*((0.005 + i / 100, 1 + i) for i in range(100))), None),
    ],
)
def test_the_papers_rule(scales, expected):
    assert valley(scales) == expected
    shuffled = np.random.default_rng(0).permutation(scales)
    assert valley(shuffled) == expected


def test_valley_by_layer():
    low = repeated((0.004, 20), (0.8, 9))
    high = repeated((0.005, 4), (0.015, 6), (0.025, 2), (0.2, 4))
    assert Valley()({"low": low, "high": high}) == {"low": 0.01, "high": 0.03}


@pytest.mark.parametrize(
    "scales",
    [
        # Monotone; a gap, but too high; a dent in one peak.
        repeated(*((0.005 + i / 100, 200 - i) for i in range(100))),
        repeated(*((0.005 + i / 100, 1 + i) for i in range(30)), (0.8, 9)),
        repeated((0.005, 3), (0.015, 9), (0.025, 7), (0.035, 12), (0.045, 9)),
    ],
)
def test_what_is_no_gap_is_said(scales):
    with pytest.warns(UserWarning, match="have no gap below 0.2.*: conv_bn"):
        assert Valley()({"conv_bn": scales}) == {"conv_bn": 0.01}


@pytest.mark.filterwarnings("ignore:The scales")
@pytest.mark.parametrize("n", [16, 64, 512])
def test_one_hump_is_not_cut_in_two(n):
    random = np.random.default_rng(0)
    gone = []
    for _ in range(200):
        scales = np.abs(random.normal(0.09, 0.03, n))
        gone.append(np.mean(scales <= Valley()({"bn": scales})["bn"]))
    assert max(gone) <= 0.25 and np.mean(gone) < 0.1


def test_margin():
    scales = np.array([0.01, 0.9, 0.03, 0.8, 0.02])
    assert Margin()({"a": scales}) == {"a": pytest.approx((0.03 + 0.2) / 2)}
    # The widest gap is below all scales: nothing goes.
    low = Margin()({"a": np.array([0.18, 0.19, 0.9])})["a"]
    assert 0 < low < 0.18
    with pytest.warns(UserWarning, match="no gap"):
        assert Margin()({"a": np.linspace(0, 1, 100)}) == {"a": 0.01}


def test_quantile_is_global():
    scales = {"a": np.array([0.4, 0.1]), "b": np.array([0.2, 0.3, 0.5])}
    assert Quantile(0.4)(scales) == {"a": 0.3, "b": 0.3}
    assert Quantile(0.0)(scales) == {"a": -1.0, "b": -1.0}
    many = {"a": np.arange(100) / 100}
    assert Quantile(0.29)(many) == {"a": 0.29}


def test_by_name():
    assert isinstance(thresholds.get("valley"), Valley)
    assert isinstance(thresholds.get("margin"), Margin)
    rule = Quantile(0.5)
    assert thresholds.get(rule) is rule


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: thresholds.get("gap"), "`threshold` must be a float, one of"),
        (lambda: thresholds.get(Valley), "`threshold` must be a float, one of"),
        (lambda: Valley(cap=0.1, fallback=0.2), r"`fallback` must lie in \[0, 0.1\]"),
        (lambda: Quantile(1.0), "`fraction` must lie in"),
    ],
)
def test_bad_rules(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("n", [32, 512])
def test_parted_scales_are_parted(n):
    random = np.random.default_rng(0)
    for _ in range(50):
        low = np.minimum(random.exponential(0.003, n // 2), 0.02)
        scales = np.concatenate([low, random.uniform(0.4, 1, n // 2)])
        gone = scales <= Valley()({"bn": scales})["bn"]
        assert not gone[n // 2 :].any() and gone[: n // 2].mean() > 0.8


@pytest.mark.parametrize("threshold", [np.nan, np.inf, -np.inf, True, "valey"])
def test_what_is_no_threshold(threshold):
    with pytest.raises(ValueError, match="`threshold` must be a"):
        thresholds.check(threshold)
