"""The pruning step of Tick-Tock: exact sets by hand, ties, floors, dead channels."""

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tfprune import Budget, Masks
from tfprune.shares import remove_share

FLOOR = Budget(sparsity=0.5, min_channels=1)


def net(*sizes):
    model = keras.Sequential([layers.Input((3,))])
    for name, size in zip("abc", sizes, strict=False):
        model.add(layers.Dense(size, activation="relu", name=name))
    model.add(layers.Dense(2))
    return tfprune.Graph(model)


def step(scores, share, counts=None, masks=None, budget=FLOOR):
    scores = {name: np.array(each, np.float32) for name, each in scores.items()}
    graph = net(*map(len, scores.values()))
    whole = {name: np.ones(len(each), bool) for name, each in scores.items()}
    masks = Masks({**whole, **(masks or {})})
    counts = counts or {}
    counts = {k: np.full(len(v), counts.get(k, 1)) for k, v in scores.items()}
    after = remove_share(graph, masks, scores, counts, share, budget)
    return {name: np.flatnonzero(mask).tolist() for name, mask in after.items()}


def test_one_more_than_the_share_goes():
    # int(0.25 * 8) = 2 is the place of the threshold, so three filters go.
    kept = step({"a": [5, 1, 7, 3], "b": [2, 9, 8, 6]}, 0.25)
    assert kept == {"a": [0, 2], "b": [1, 2, 3]}


def test_whole_ties_go():
    kept = step({"a": [1, 1, 1, 9], "b": [1, 2, 3, 4]}, 1)
    assert kept == {"a": [3], "b": [1, 2, 3]}


def test_a_grouped_filter_counts_as_many():
    scores = {"a": [1, 10, 11, 12], "b": [2, 3, 4, 5]}
    # The pool is 1 1 1 2 3 4 10 10 10 11 11 11, without the best of either.
    assert step(scores, 2, {"a": 3}) == {"a": [1, 2, 3], "b": [0, 1, 2, 3]}
    assert step(scores, 3, {"a": 3}) == {"a": [1, 2, 3], "b": [1, 2, 3]}
    assert step(scores, 3) == {"a": [1, 2, 3], "b": [3]}
    # 4 * 3 + 4 filters are left, a quarter of them are 4.
    assert step(scores, 0.25, {"a": 3}) == {"a": [1, 2, 3], "b": [2, 3]}


def test_the_best_of_a_group_stay():
    scores = {"a": [1, 2, 3, 4], "b": [10, 20, 30, 40]}
    kept = step(scores, 3, budget=Budget(sparsity=0.5, min_channels=2))
    # The pool is 1 2 10 20: its number 3 is the last of b that may go.
    assert kept == {"a": [2, 3], "b": [2, 3]}
    kept = step(scores, 1, budget=Budget(sparsity=0.5, max_sparsity={"a": 0}))
    assert kept == {"a": [0, 1, 2, 3], "b": [2, 3]}


def test_dead_filters_go_for_free():
    scores = {"a": [0, 5, 0, 7], "b": [1, 2, 3, 4]}
    assert step(scores, 0) == {"a": [1, 3], "b": [1, 2, 3]}
    assert step(scores, -1) == {"a": [1, 3], "b": [0, 1, 2, 3]}


def test_a_dead_group_keeps_one():
    assert step({"a": [0, 0, 0], "b": [1, 2, 3]}, 0) == {"a": [2], "b": [1, 2]}


def test_what_is_closed_stays_closed():
    masks = {"a": np.array([False, True, True, True])}
    kept = step({"a": [9, 1, 2, 3], "b": [4, 5, 6, 7]}, 0, masks=masks)
    assert kept == {"a": [2, 3], "b": [0, 1, 2, 3]}
    # The floor counts what is open.
    masks = {"a": np.array([False, False, False, True])}
    kept = step({"a": [0, 0, 0, 1], "b": [4, 5, 6, 7]}, 100, masks=masks)
    assert kept == {"a": [3], "b": [3]}


def test_a_share_beyond_the_pool_takes_all_that_may_go():
    assert step({"a": [1, 2, 3], "b": [4, 5, 6]}, 0.9) == {"a": [2], "b": [2]}


def test_infinite_scores_stay():
    kept = step({"a": [np.inf, np.inf, np.inf], "b": [4, 5, 6]}, 100)
    assert kept == {"a": [0, 1, 2], "b": [2]}


@pytest.mark.parametrize("seed", range(5))
def test_repeated_steps_only_shrink_and_end_at_the_floor(seed):
    random = np.random.default_rng(seed)
    graph = net(9, 14, 6)
    budget = Budget(sparsity=0.5, min_channels=2)
    masks = Masks({g.name: np.ones(g.size, bool) for g in graph.groups})
    counts = {g.name: np.full(g.size, 1 + random.integers(3)) for g in graph.groups}
    for _ in range(60):
        scores = {g.name: random.random(g.size) * masks[g.name] for g in graph.groups}
        after = remove_share(graph, masks, scores, counts, 0.05, budget)
        assert all((after[name] <= masks[name]).all() for name in masks)
        assert all(after[name].sum() >= 2 for name in masks)
        masks = after
    assert [int(mask.sum()) for mask in masks.values()] == [2, 2, 2]
