"""What ratios cost, and the reward for it: numbers known in closed form."""

import keras
import networks_of_papers
import numpy as np
import pytest
from keras import layers

import tfprune
from tfprune.runtime.budgets import RatioCost, budget_reward, running_mean


def test_the_work_of_the_paper_s_network():
    model = networks_of_papers.m_cifarnet()
    cost = tfprune.cost(model)
    assert cost.macs == 174_301_824
    assert cost.macs - 1_920 == 174_299_904
    graph = tfprune.Graph(model)
    assert len(graph.groups) == 8
    # The logits are a hundred-thousandth of it.
    assert RatioCost(graph).cap(0.5) == pytest.approx(0.25223, abs=1e-5)
    assert RatioCost(graph).cap(0.7) == pytest.approx(0.49187, abs=1e-5)


def test_shares_are_those_of_the_compacted_model():
    model = networks_of_papers.m_cifarnet()
    graph = tfprune.Graph(model)
    random = np.random.default_rng(0)
    ratios = random.uniform(0.1, 1, (5, 8))
    shares = {count: RatioCost(graph, count)(ratios) for count in ("macs", "params")}
    whole = tfprune.cost(graph)
    for row, own in enumerate(ratios):
        masks = {
            group.name: np.arange(group.size) < max(1, round(group.size * ratio))
            for group, ratio in zip(graph.groups, own, strict=True)
        }
        cost = tfprune.cost(graph, masks)
        for count, share in shares.items():
            exact = getattr(cost, count) / getattr(whole, count)
            assert share[row] == pytest.approx(exact, rel=1e-12)


def test_coupled_and_concatenated_groups(make_residual):
    graph = tfprune.Graph(make_residual(8))
    ratios = np.linspace(0.25, 1, len(graph.groups))
    masks = {
        group.name: np.arange(group.size) < max(1, round(group.size * ratio))
        for group, ratio in zip(graph.groups, ratios, strict=True)
    }
    exact = tfprune.cost(graph, masks).macs / tfprune.cost(graph).macs
    assert RatioCost(graph)(ratios) == pytest.approx(exact, rel=1e-12)


def test_the_ratio_of_a_layer_counts_for_its_outputs():
    """Channels 3-64-64 at ratios .5 and .25: 608, where the authors' code has 1216."""
    x = inputs = layers.Input((1, 1, 3))
    x = layers.Conv2D(64, 1, use_bias=False, name="a")(x)
    x = layers.Conv2D(64, 1, use_bias=False, name="b")(layers.ReLU()(x))
    x = layers.Conv2D(1, 1, use_bias=False, name="last")(layers.ReLU()(x))
    graph = tfprune.Graph(keras.Model(inputs, x))
    whole = 3 * 64 + 64 * 64 + 64
    left = RatioCost(graph)([0.5, 0.25]) * whole
    assert left - 16 == pytest.approx(608)


def test_rewards_for_the_budget():
    cap = 0.25223
    assert budget_reward(cap, cap) == 0
    assert budget_reward(cap + 0.03, cap) == pytest.approx(-2.061938, abs=1e-6)
    assert budget_reward(cap - 0.1, cap) == pytest.approx(0.01)
    assert budget_reward(cap - 0.1, cap, bonus=False) == 0
    far = budget_reward(np.array([1.0, 0.9]), cap)
    assert np.isfinite(far).all() and (far < -2e4).all()


def test_the_running_mean_counts_all_alike_at_first():
    mean, found = 0.0, []
    for count, value in enumerate((4.0, 2.0, 6.0, 0.0, 13.0), 1):
        mean = running_mean(mean, count, [value, value], steps=4, decay=0.9)
        found.append(mean)
    assert found == pytest.approx([4.0, 3.0, 4.0, 3.0, 0.9 * 3 + 0.1 * 13])


def test_an_unknown_count():
    model = networks_of_papers.m_cifarnet()
    with pytest.raises(ValueError, match="`count` must be"):
        RatioCost(tfprune.Graph(model), "flops")
