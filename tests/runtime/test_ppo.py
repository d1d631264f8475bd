"""PPO and the agents: closed forms, and that the best ratios are learned."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfprune.layers.agents import Agent
from tfprune.runtime.budgets import budget_reward
from tfprune.runtime.ppo import (
    PPO,
    advantages,
    log_probability,
    new_optimizer,
    rollout_of,
)


def test_advantages_of_a_reward_at_the_end():
    reward, gamma, trace, length = 2.5, 0.999, 0.95, 8
    rewards = np.zeros((1, length))
    rewards[:, -1] = reward
    better, returns = advantages(rewards, np.zeros((1, length)))
    left = length - 1 - np.arange(length)
    np.testing.assert_allclose(better[0], (gamma * trace) ** left * reward, rtol=1e-6)
    np.testing.assert_allclose(returns[0], gamma**left * reward, rtol=1e-6)


def test_advantages_of_values_that_are_right_are_zero():
    rewards = np.array([[0.0, 0.0, 3.0]])
    values = 3 * 0.999 ** np.array([[2, 1, 0]])
    np.testing.assert_allclose(advantages(rewards, values)[0], 0, atol=1e-6)


def test_log_probabilities():
    found = log_probability(tf.constant([1.5]), tf.constant([1.0]), tf.constant([-1.0]))
    deviation = np.exp(-1)
    density = np.exp(-(0.5**2) / 2 / deviation**2) / deviation / np.sqrt(2 * np.pi)
    assert found.numpy()[0] == pytest.approx(np.log(density), rel=1e-6)


@pytest.fixture
def states():
    random = np.random.default_rng(0)
    return [random.normal(size=(96, size)).astype("float32") for size in (5, 9, 3)]


def agent_of(states, cell="rnn", budget=0.5):
    return Agent([state.shape[1] for state in states], budget, cell)


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_a_new_agent_keeps_the_budget(states, cell):
    if cell == "lstm":
        states = [state[:, :1] for state in states]
    agent = agent_of(states, cell, 0.7)
    means, log_deviations, values = agent(states)
    assert means.shape == log_deviations.shape == values.shape == (96, 3)
    np.testing.assert_allclose(means, 0.7, atol=0.02)
    np.testing.assert_allclose(log_deviations, -4, atol=0.02)
    agent.mean.set_weights([np.zeros((128, 1)), np.zeros(1)])
    np.testing.assert_array_equal(agent(states)[0], np.float32(0.7))
    agent.log_deviation.kernel.assign(np.zeros((128, 1)))
    np.testing.assert_array_equal(agent(states)[1], np.float32(-4))


def test_a_walk_step_by_step_is_the_whole(states):
    for cell in ("rnn", "lstm"):
        own = [state[:, :1] for state in states] if cell == "lstm" else states
        agent = agent_of(own, cell)
        hidden, found = agent.begin(96), []
        for number, state in enumerate(own):
            heads, hidden = agent.step(number, tf.constant(state), hidden)
            found.append(heads)
        whole = agent(own)
        for place, each in enumerate(zip(*found, strict=True)):
            stacked = np.stack(each, axis=1)
            np.testing.assert_allclose(stacked, whole[place], rtol=1e-5, atol=1e-6)


def test_the_hidden_state_is_carried_on(states):
    agent = agent_of(states)
    other = [states[0] + 1, *states[1:]]
    assert not np.allclose(agent(states)[0][:, 2], agent(other)[0][:, 2], atol=1e-6)


def act(agent, states, generator=None):
    heads = agent.compiled(list(map(tf.constant, states)))
    return rollout_of(states, agent.act(heads, generator)[0], heads)


def explored(agent, states, seed=0):
    return act(agent, states, tf.random.Generator.from_seed(seed))


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_the_first_minibatch_changes_nothing_yet(states, cell):
    states = [state[:64, :1] for state in states] if cell == "lstm" else states
    agent = agent_of(states, cell)
    rollout = explored(agent, states)
    rewards = np.random.default_rng(1).normal(size=rollout.actions.shape)
    learner = PPO(agent, new_optimizer(agent, 0.0))
    found = learner.learn(rollout, rewards)
    assert found["change"] < 1e-4
    assert abs(found["policy"]) < 1e-4


def test_probabilities_are_those_of_actions_before_clipping(states):
    agent = agent_of(states, budget=1.0)
    rollout = explored(agent, states)
    assert rollout.actions.max() > 1
    means, log_deviations, _ = agent(states)
    expected = log_probability(rollout.actions, means, log_deviations)
    np.testing.assert_allclose(rollout.log_probabilities, expected, rtol=1e-5)
    clipped = agent.clipped(rollout.actions)
    assert clipped.numpy().max() == 1.0 and clipped.numpy().min() >= 0.1


def test_without_noise_the_means_are_taken(states):
    agent = agent_of(states)
    rollout = act(agent, states)
    np.testing.assert_array_equal(rollout.actions, agent(states)[0])


def test_clipping_stops_what_has_moved_far_enough(states):
    agent = agent_of(states)
    rollout = explored(agent, states)
    learner = PPO(agent)
    ones = np.ones_like(rollout.actions)
    better = np.where(np.arange(96)[:, None] % 2, ones, -ones)
    arguments = rollout.actions, rollout.values, better, rollout.values
    actions, values, better, returns = map(np.float32, arguments)
    # Twice as probable as before, which counts in full only for what was bad.
    old = rollout.log_probabilities - np.float32(np.log(2))
    terms = learner.losses(states, actions, old, values, better, returns)
    assert terms["policy"].numpy() == pytest.approx((2 - 1.2) / 2, rel=1e-4)
    # Worth as much as thought, but said to be one more than before.
    terms = learner.losses(states, actions, old, values - 1, better, values)
    assert terms["value"].numpy() == pytest.approx(0.5 * 0.8**2, rel=1e-3)


def test_the_critic_learns_what_follows(states):
    agent = agent_of(states)
    learner = PPO(agent, new_optimizer(agent, 3e-3))
    rewards = np.zeros((96, 3))
    rewards[:, -1] = 2.0
    before = abs(np.asarray(agent(states)[2]) - 2).mean()
    for round_ in range(60):
        learner.learn(explored(agent, states, round_), rewards)
    after = abs(np.asarray(agent(states)[2]) - 2).mean()
    assert after < 0.3 < 1.2 < before


def test_means_outside_are_pulled_back(states):
    agent = agent_of(states)
    agent.mean.set_weights([np.zeros((128, 1)), np.array([0.7])])
    rollout = explored(agent, states)
    arguments = [rollout.actions, rollout.log_probabilities, rollout.values] * 2
    terms = PPO(agent).losses(states, *arguments[:5])
    # 1.2 lies 0.2 outside.
    assert terms["outside"].numpy() == pytest.approx(0.5 * 0.2**2, rel=1e-4)


def test_the_agent_s_work_is_a_three_hundredth_of_the_network_s():
    widths = [3, 64, 64, 128, 128, 128, 192, 192, 192]
    assert Agent(widths[:-1], 0.5).macs == 379_264
    both = [a + b for a, b in zip(widths, widths[1:], strict=False)]
    assert Agent(both, 0.5).macs == 518_528
    assert 518_528 / 174_299_904 < 0.0030


def test_saved_and_loaded(states, tmp_path):
    agent = agent_of(states)
    again = Agent.from_config(agent.get_config())
    again.set_weights(agent.get_weights())
    for old, new in zip(agent(states), again(states), strict=True):
        np.testing.assert_array_equal(old, new)
    with pytest.raises(ValueError, match="`cell` must be"):
        Agent([3], 0.5, cell="gru")


# A problem whose best answer is known ------------------------------------------------


def learned(sign, rounds=400):
    """Ratios after training: the second of three layers carries all of the signal."""
    states = [np.ones((128, 4), np.float32)] * 3
    agent = Agent([4] * 3, 0.5)
    learner = PPO(agent, new_optimizer(agent, 3e-4))
    generator = tf.random.Generator.from_seed(0)
    for _ in range(rounds):
        rollout = act(agent, states, generator)
        ratios = agent.clipped(rollout.actions).numpy()
        rewards = np.zeros_like(ratios)
        signal = -5.0 * (1 - ratios[:, 1])
        rewards[:, -1] = sign * (signal + budget_reward(ratios.mean(axis=1), 0.5))
        learner.learn(rollout, rewards)
    return agent.clipped(act(agent, states).actions).numpy()[0]


def test_the_best_ratios_are_learned():
    keras.utils.set_random_seed(0)
    ratios = learned(1.0)
    assert ratios[1] > 0.95
    assert 0.3 < ratios.mean() < 0.51


def test_they_are_not_if_rewards_are_turned_round():
    keras.utils.set_random_seed(0)
    ratios = learned(-1.0, 60)
    assert ratios[1] < 0.5 or ratios.mean() > 0.6
