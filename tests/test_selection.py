"""select: which units stay, by eye; the budget is met, and not by more than needed."""

import checker
import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tfprune import Budget
from tfprune.budget import most_removed
from tfprune.costs import Counter


def net(*widths, inputs=3):
    """Dense layers a, b, ... of these widths, then one output."""
    model = keras.Sequential([layers.Input((inputs,))])
    for width, name in zip(widths, "abcdefgh", strict=False):
        model.add(layers.Dense(width, "relu", name=name))
    model.add(layers.Dense(1, name="out"))
    return tfprune.Graph(model)


def scores(**values):
    return lambda graph: {k: np.array(v, "float32") for k, v in values.items()}


def kept(masks) -> dict:
    return {name: np.flatnonzero(mask).tolist() for name, mask in masks.items()}


# The global ranking -------------------------------------------------------------


def test_global_ranking_takes_the_lowest_of_all():
    importance = scores(a=[4, 1, 5, 2], b=[9, 3])
    graph = net(4, 2)
    masks = tfprune.select(graph, importance, Budget(sparsity=0.5))
    assert kept(masks) == {"a": [0, 2], "b": [0]}
    masks = tfprune.select(graph, importance, Budget(sparsity=0.16))
    assert kept(masks) == {"a": [0, 2, 3], "b": [0, 1]}


def test_budget_is_a_floor_and_the_smallest_plan_is_taken():
    # 3 -> 4 -> 2 -> 1: 12 + 8 + 2 = 22 MACs; a unit of a costs 5.
    graph = net(4, 2)
    importance = scores(a=[1, 2, 3, 4], b=[8, 9])
    for goal, macs in ((0.0, 22), (0.1, 17), (5 / 22, 17), (0.23, 12), (0.5, 7)):
        masks = tfprune.select(graph, importance, Budget(flops_reduction=goal))
        assert tfprune.cost(graph, masks).macs == macs


def test_params_budget_counts_all_weights():
    # (3 + 1) * 4 + (4 + 1) * 2 + (2 + 1) = 29 weights; a unit of a has 6.
    graph = net(4, 2)
    importance = scores(a=[1, 2, 3, 4], b=[8, 9])
    masks = tfprune.select(graph, importance, Budget(params_reduction=0.2))
    assert tfprune.cost(graph, masks).params == 23
    masks = tfprune.select(graph, importance, Budget(params_reduction=0.21))
    assert tfprune.cost(graph, masks).params == 17


def test_ties_go_to_the_first_unit():
    masks = tfprune.select(net(4, 2), scores(a=[1] * 4, b=[1, 1]), Budget(sparsity=0.3))
    assert kept(masks) == {"a": [2, 3], "b": [0, 1]}


def test_one_unit_always_stays():
    importance = scores(a=[1, 1, 1, 2], b=[3, 4])
    masks = tfprune.select(net(4, 2), importance, Budget(sparsity=4 / 6))
    assert kept(masks) == {"a": [3], "b": [1]}


def test_min_channels():
    budget = Budget(sparsity=0.4, min_channels=3)
    masks = tfprune.select(net(5, 5), scores(a=range(5), b=range(10, 15)), budget)
    assert kept(masks) == {"a": [2, 3, 4], "b": [2, 3, 4]}


def test_min_channels_above_the_size_keeps_the_group():
    budget = Budget(sparsity=0.25, min_channels=3)
    masks = tfprune.select(net(6, 2), scores(a=range(10, 16), b=[0, 1]), budget)
    assert kept(masks) == {"a": [2, 3, 4, 5], "b": [0, 1]}


def test_max_sparsity_is_the_papers_floor():
    budget = Budget(sparsity=0.45, max_sparsity=0.9)
    masks = tfprune.select(net(10, 10), scores(a=range(10), b=range(20, 30)), budget)
    assert kept(masks) == {"a": [9], "b": list(range(10))}
    budget = Budget(sparsity=0.2, max_sparsity=0.25)
    masks = tfprune.select(net(10, 10), scores(a=range(10), b=range(20, 30)), budget)
    assert [m.sum() for m in masks.values()] == [8, 8]


def test_a_tenth_rounded_down_is_by_pattern():
    # Gate Decorator's code keeps int(0.1 * channels), which is more than 0.9 removed.
    graph, sizes = net(16, 32, 64), np.array([16, 32, 64])
    by_pattern = {"a": 15 / 16, "b": 29 / 32, "c": 58 / 64}
    assert (sizes - most_removed(graph, Budget(max_sparsity=0.9))).tolist() == [2, 4, 7]
    removed = most_removed(graph, Budget(max_sparsity=by_pattern))
    assert (sizes - removed).tolist() == [int(0.1 * size) for size in sizes]


def test_multiple_of():
    importance = scores(a=range(20), b=range(30, 40))
    budget = Budget(sparsity=0.3, multiple_of=8)
    masks = tfprune.select(net(20, 10), importance, budget)
    # 9 units have to go: a keeps a multiple of 8 or all of its 20.
    assert [m.sum() for m in masks.values()] == [8, 10]
    for goal in (0.1, 0.2, 0.4):
        masks = tfprune.select(
            net(20, 10), importance, Budget(sparsity=goal, multiple_of=8)
        )
        for mask in masks.values():
            assert mask.all() or mask.sum() % 8 == 0


@pytest.mark.parametrize("target", ["flops_reduction", "params_reduction", "sparsity"])
@pytest.mark.parametrize("scope", ["global", "uniform", {"a": 0.5, "?": 0.9}])
@pytest.mark.parametrize("multiple_of", [1, 4])
def test_no_budget_is_missed_and_none_can_give_units_back(target, scope, multiple_of):
    graph = net(16, 12, 9, 6, inputs=5)
    measure = {
        "flops_reduction": Counter(graph).macs,
        "params_reduction": Counter(graph).params,
        "sparsity": lambda keep: keep[:-1].sum(),
    }[target]
    whole = measure(graph.keep(None))
    for seed in range(3):
        random = tfprune.importances.Random(seed)
        for goal in (0.05, 0.31, 0.5, 0.62):
            budget = Budget(**{target: goal}, multiple_of=multiple_of)
            try:
                masks = tfprune.select(graph, random, budget, scope=scope)
            except ValueError as error:
                assert multiple_of > 1 and "at most" in str(error)
                continue
            assert 1 - measure(graph.keep(masks)) / whole >= goal - 1e-12
            for name, mask in masks.items():
                if mask.all():
                    continue
                back = mask.copy()
                values = np.where(mask, -1, random(graph)[name])
                back[np.argsort(values)[::-1][: min(multiple_of, (~mask).sum())]] = True
                more = graph.keep({**masks, name: back})
                assert 1 - measure(more) / whole < goal, (seed, goal, name)


def test_kept_units_are_the_best_of_their_group():
    graph = net(16, 12, 9)
    importance = tfprune.importances.Random(5)
    for scope in ("global", "uniform"):
        masks = tfprune.select(
            graph, importance, Budget(flops_reduction=0.5), scope=scope
        )
        for name, values in importance(graph).items():
            mask = masks[name]
            if not mask.all():
                assert values[mask].min() > values[~mask].max()


def test_overshoot_is_small_on_a_residual_network(make_residual):
    graph = tfprune.Graph(checker.randomize(make_residual(16)))
    whole = tfprune.cost(graph).macs
    for goal in (0.1, 0.3, 0.5, 0.7, 0.9):
        masks = tfprune.select(graph, "magnitude", Budget(flops_reduction=goal))
        reduction = 1 - tfprune.cost(graph, masks).macs / whole
        assert goal - 1e-12 <= reduction <= goal + 0.03


def test_more_budget_never_keeps_more():
    graph = net(16, 12, 9, 6)
    random = tfprune.importances.Random(2)
    last = None
    for goal in np.linspace(0, 0.9, 10):
        masks = tfprune.select(graph, random, Budget(sparsity=goal))
        if last is not None:
            assert all((masks[k] <= last[k]).all() for k in masks)
        last = masks


# Scopes -------------------------------------------------------------------------


def test_uniform_takes_the_same_fraction_of_every_group():
    graph = net(20, 10, 10)
    importance = scores(a=range(20), b=range(50, 60), c=range(90, 100))
    masks = tfprune.select(graph, importance, Budget(sparsity=0.5), scope="uniform")
    assert [m.sum() for m in masks.values()] == [10, 5, 5]
    assert kept(masks)["a"] == list(range(10, 20))


def test_fractions_by_path_stand_alone():
    graph = net(10, 10, 10)
    masks = tfprune.select(graph, "random", scope={"a": 0.3, "[ab]": 0.6})
    assert [m.sum() for m in masks.values()] == [7, 4, 10]


def test_fractions_scale_to_a_budget():
    graph = net(10, 10, 10)
    budget = Budget(sparsity=0.3)
    masks = tfprune.select(graph, "random", budget, scope={"a": 0.2, "b": 0.4})
    # 9 of 30 units, twice as many of b as of a, none of c.
    assert [m.sum() for m in masks.values()] == [7, 4, 10]


def test_fraction_of_a_layer_that_is_coupled():
    inputs = layers.Input((4,))
    x = layers.Add()(
        [layers.Dense(8, name="a")(inputs), layers.Dense(8, name="b")(inputs)]
    )
    graph = tfprune.Graph(keras.Model(inputs, layers.Dense(2)(x)))
    for name in ("a", "b"):
        (mask,) = tfprune.select(graph, "random", scope={name: 0.25}).values()
        assert mask.sum() == 6


def test_fractions_never_empty_a_group():
    masks = tfprune.select(net(3, 2), "random", scope={"*": 0.99})
    assert [m.sum() for m in masks.values()] == [1, 1]


# Thresholds ---------------------------------------------------------------------


def test_threshold_is_removed_itself():
    masks = tfprune.select(net(4, 2), scores(a=[1, 2, 3, 4], b=[2, 5]), threshold=2)
    assert kept(masks) == {"a": [2, 3], "b": [1]}


def test_threshold_leaves_the_best_unit():
    masks = tfprune.select(net(4, 2), scores(a=[1, 4, 3, 2], b=[2, 5]), threshold=9)
    assert kept(masks) == {"a": [1], "b": [1]}


def test_threshold_below_all_keeps_all():
    masks = tfprune.select(net(4, 2), scores(a=[1, 4, 3, 2], b=[2, 5]), threshold=-1.0)
    assert masks.density() == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_thresholds_of_a_rule_are_finite(value):
    importance = scores(a=[1, 4, 3, 2], b=[2, 5])
    with pytest.raises(ValueError, match=f"Received: {value} for layer 'b'"):
        tfprune.select(
            net(4, 2), importance, threshold=lambda s: {"a": 1.0, "b": value}
        )


def test_a_rule_is_not_asked_about_what_stays_anyway():
    def mean(found):
        return {name: np.mean(each) for name, each in found.items()}

    importance = scores(a=[1, 4, 3, 2], b=[np.inf, np.inf])
    masks = tfprune.select(net(4, 2), importance, threshold=mean)
    assert kept(masks) == {"a": [1, 2], "b": [0, 1]}


# Errors -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"budget": Budget(sparsity=0.5), "threshold": 0.1}, "exactly one"),
        ({"budget": Budget()}, "needs a target"),
        ({"budget": Budget(sparsity=0.5), "scope": "erq"}, "`scope` must be"),
        ({"scope": {"zz*": 0.5}}, "'zz\\*' names no group"),
        ({"scope": {"out": 0.5}}, "'out' has no channels that can go"),
        ({"scope": {"a": 1.5}}, r"scope\['a'\]"),
        ({"threshold": np.nan}, "must be a finite number"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        tfprune.select(net(4, 2), "random", **arguments)


def test_units_without_a_scale_are_why_a_budget_cannot_be_met():
    budget = Budget(sparsity=0.5)
    with pytest.raises(ValueError, match="6 of 6 units stay .* `Scale` scores units"):
        tfprune.select(net(4, 2), "scale", budget)
    with pytest.raises(ValueError) as error:
        tfprune.select(net(4, 2), "magnitude", Budget(sparsity=0.9))
    assert "infinite" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": [1, 2, 3, 4]}, "no scores for group 'b'"),
        ({"a": [1, 2, 3], "b": [1, 2]}, r"shape \(4,\)"),
        ({"a": [1, 2, np.nan, 3], "b": [1, 2]}, "not numbers"),
        ({"a": [1, 2, -np.inf, 3], "b": [1, 2]}, "not numbers"),
    ],
)
def test_bad_scores(values, message):
    with pytest.raises(ValueError, match=message):
        tfprune.select(net(4, 2), scores(**values), Budget(sparsity=0.5))


@pytest.mark.parametrize(
    "arguments",
    [
        {"flops_reduction": 0.95},
        {"sparsity": 0.9},
        {"params_reduction": 0.5, "min_channels": 4},
        {"flops_reduction": 0.5, "max_sparsity": 0.1},
        {"flops_reduction": 0.9, "multiple_of": 4},
    ],
)
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_what_cannot_be_met_says_what_can(arguments, scope):
    graph = net(6, 4)
    with pytest.raises(ValueError, match="at most") as caught:
        tfprune.select(graph, "random", Budget(**arguments), scope=scope)
    most = float(str(caught.value).split("at most ")[1].split()[0])
    (name,) = set(arguments) - {"min_channels", "max_sparsity", "multiple_of"}
    reachable = Budget(**{**arguments, name: max(0, most - 1e-4)})
    tfprune.select(graph, "random", reachable, scope=scope)
    with pytest.raises(ValueError, match="at most"):
        tfprune.select(
            graph, "random", Budget(**{**arguments, name: most + 1e-4}), scope=scope
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flops_reduction": 50}, r"For 50 % pass 0.5"),
        ({"flops_reduction": 1.0}, r"lie in \[0, 1\)"),
        ({"flops_reduction": -0.1}, r"lie in \[0, 1\)"),
        ({"flops_reduction": np.nan}, r"lie in \[0, 1\)"),
        ({"flops_reduction": "half"}, r"lie in \[0, 1\)"),
        ({"flops_reduction": True}, r"lie in \[0, 1\)"),
        ({"sparsity": 0.5, "flops_reduction": 0.5}, "one target"),
        ({"sparsity": 0.5, "max_sparsity": 1.2}, "`max_sparsity`"),
        ({"sparsity": 0.5, "min_channels": 0}, "`min_channels`"),
        ({"sparsity": 0.5, "multiple_of": 1.5}, "`multiple_of`"),
    ],
)
def test_bad_budgets(arguments, message):
    with pytest.raises(ValueError, match=message):
        Budget(**arguments)


def test_budget_takes_numpy_numbers():
    assert Budget(sparsity=np.float32(0.5), multiple_of=np.int64(8)).sparsity == 0.5


def test_budget_scaled():
    budget = Budget(params_reduction=0.6, multiple_of=8)
    assert budget.scaled(0.5) == Budget(params_reduction=0.3, multiple_of=8)
    assert budget.scaled(0).target == ("params_reduction", 0.0)
    assert Budget().scaled(0.5) == Budget()


def test_a_scaled_budget_of_zero_removes_nothing():
    masks = tfprune.select(net(20, 10), "random", Budget(flops_reduction=0.5).scaled(0))
    assert masks.density() == 1


def test_model_without_groups():
    model = keras.Sequential([layers.Input((4,)), layers.Dense(2)])
    graph = tfprune.Graph(model)
    assert tfprune.select(graph, "random", Budget(sparsity=0.0)) == {}
    with pytest.raises(ValueError, match="no channels that can be pruned"):
        tfprune.select(graph, "random", Budget(flops_reduction=0.5))
