"""Algorithm 1 on functions: it meets the target, or ends and says why not."""

import math

import numpy as np
import pytest

from tfprune.search import Trial
from tfprune.search.algorithm import Algorithm1
from tfprune.search.roots import next_points


def smooth(scale):
    """FLOPs reduction that grows with strength and with t, from 0 to 1."""

    def reduction(strength, t):
        return 1 / (1 + (scale / strength) ** 1.5 * math.exp(2 * (1.2 - t)))

    return reduction


def search(algorithm, function, most=60, count=1):
    """Returns the trials and why there were no more."""
    trials, reason = [], "too many"
    while len(trials) < most:
        points, reason = algorithm.propose(trials, count)
        if not points:
            return trials, reason
        assert len(set(points)) == len(points)
        assert not {(x.strength, x.t) for x in trials} & set(points)
        trials += [Trial(s, t, function(s, t), 0.5) for s, t in points]
    return trials, reason


@pytest.mark.parametrize("scale", [1e-7, 3e-5, 1e-4, 4e-4, 5e-2])
@pytest.mark.parametrize("target", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_target_is_met(scale, target, count):
    algorithm = Algorithm1(target, 0.05)
    trials, reason = search(algorithm, smooth(scale), count=count)
    assert reason == "the target was met"
    assert abs(algorithm.best(trials).flops_reduction - target) < 0.05
    # Doublings to come near, and few to come close.
    doublings = abs(math.log2(scale / 1e-4))
    assert len(trials) <= (doublings + 10) * count


def test_by_hand():
    """Too much, too little, in between; then t from too little to enough."""
    found = {1e-4: 0.9, 5e-5: 0.2, 1e-4 / math.sqrt(2): 0.42}

    def reduction(strength, t):
        if t == 1.2:
            return next(v for k, v in found.items() if math.isclose(k, strength))
        return {1.3: 0.44, 1.4: 0.48}[t]

    algorithm = Algorithm1(0.5, 0.05)
    trials, _ = search(algorithm, reduction)
    assert [x.flops_reduction for x in trials] == [0.9, 0.2, 0.42, 0.44, 0.48]
    assert [x.t for x in trials] == [1.2, 1.2, 1.2, 1.3, 1.4]


def test_t_is_bisected_once_the_target_lies_between():
    def reduction(strength, t):
        return 0.57 - 0.6 * (1.2 - t) if t >= 1.15 else 0.3

    trials, reason = search(Algorithm1(0.5, 0.045), reduction)
    assert [x.t for x in trials][:3] == [1.2, 1.1, 1.15]
    assert reason == "the target was met"
    # A jump over the target in t, whatever it is.
    trials, reason = search(
        Algorithm1(0.4, 0.02), lambda s, t: 0.43 if t > 1.17 else 0.37
    )
    assert "FLOPs jump past the target, or training diverges, between t=" in reason


def test_steps_in_the_strength_are_left_to_t():
    def reduction(strength, t):
        coarse = 0.8 if strength > 1.3e-4 else 0.2
        return coarse + (t - 1.2)

    algorithm = Algorithm1(0.5, 0.05)
    trials, reason = search(algorithm, reduction)
    assert reason == "the target was met"
    assert any(x.t != 1.2 for x in trials)


@pytest.mark.parametrize(
    "function",
    [
        lambda s, t: 0.0,
        lambda s, t: 1.0,
        lambda s, t: 0.2 if s > 1e-4 else 0.8,
        lambda s, t: 0.5 + 0.4 * math.sin(1e6 * s + 50 * t),
        lambda s, t: float("nan"),
        lambda s, t: 0.44 if t > 1.25 else 0.56,
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_it_ends_whatever_the_function(function, count):
    algorithm = Algorithm1(0.5, 0.05)
    trials, _ = search(algorithm, function, most=120, count=count)
    assert algorithm.best(trials) in trials


def test_what_diverges_is_too_strong():
    def trial(strength, t):
        diverges = strength > 1.5e-4
        return Trial(strength, t, *((0.0, -math.inf) if diverges else (0.45, 0.9)))

    # The nearer to nothing the target is, the more a divergence looks as if it met it.
    for target in (0.04, 0.5):
        algorithm = Algorithm1(target, 0.05)
        points, reason = algorithm.propose([trial(2e-4, 1.2)])
        assert points == [(1e-4, 1.2)] and not reason
    assert not algorithm.is_met([trial(2e-4, 1.2)])
    algorithm = Algorithm1(0.6, 0.05)
    ((between, _),), _ = algorithm.propose([trial(1e-4, 1.2), trial(2e-4, 1.2)])
    assert 1e-4 < between < 2e-4


@pytest.mark.parametrize("count", [1, 3])
def test_it_ends_if_all_diverges(count):
    trials, reason = [], ""
    for strength, t in Algorithm1(0.04).propose([], count)[0]:
        trials.append(Trial(strength, t, 0.0, -math.inf))
    points, reason = Algorithm1(0.04).propose(trials, count)
    assert not points and "every training diverged, down to strength" in reason
    # A smaller start is tried.
    assert Algorithm1(0.04, strength=1e-6).propose(trials, count)[0]


@pytest.mark.parametrize("count", [1, 3])
def test_t_ends_at_0(count):
    trials, reason = search(Algorithm1(0.5), lambda s, t: 0.58, count=count)
    assert min(x.t for x in trials) == 0 and "even t=0 removes more" in reason


def test_random_functions_repeat_nothing():
    random = np.random.default_rng(0)
    for _ in range(50):
        search(Algorithm1(0.5, 0.01), lambda s, t: random.uniform(), most=40, count=2)


def test_the_best_is_the_most_accurate_that_is_close_enough():
    algorithm = Algorithm1(0.5, 0.05)
    trials = [
        Trial(1.0, 1.2, 0.30, 0.99),
        Trial(2.0, 1.2, 0.46, 0.90),
        Trial(3.0, 1.2, 0.53, 0.95),
    ]
    assert algorithm.best(trials) == trials[2]
    assert algorithm.best(trials[:1]) == trials[0]
    assert algorithm.best([]) is None


def test_points_at_once():
    def asked(errors, count):
        return next_points(
            errors,
            1.0,
            lambda x, steps: x * 2.0**steps,
            lambda low, high, share: low + (high - low) * share,
            count,
        )

    assert asked({}, 3) == [1, 2, 0.5]
    assert asked({1.0: -1}, 2) == [2, 4]
    assert asked({1.0: 1}, 2) == [0.5, 0.25]
    assert asked({1.0: -1, 2.0: 1}, 3) == [1.25, 1.5, 1.75]
