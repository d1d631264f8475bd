"""Q-learning of groups: the last action is dense, and the best choice is learned."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfprune.layers import RuntimeGate
from tfprune.layers.agents import GroupAgent
from tfprune.runtime.ppo import new_optimizer
from tfprune.runtime.q_learning import QLearning, rewards_of


def test_masks_are_prefixes_and_the_last_action_is_dense():
    _, ratios = GroupAgent([3]).act((tf.eye(4),))
    for channels, counts in (
        (64, [16, 32, 48, 64]),
        (10, [2, 5, 8, 10]),
        (3, [1, 2, 2, 3]),
    ):
        gate = RuntimeGate(selection="prefix")
        gate.build((None, 4, 4, channels), (None, 4, 4, 3))
        masks = gate.mask(None, None, ratios, None).numpy()
        assert masks.sum(axis=1).tolist() == counts
        for mask in masks:
            assert mask.tolist() == sorted(mask.tolist(), reverse=True)


def walk(agent, observe, samples, exploration=0.0):
    """Goes through the layers; returns what was seen and what was chosen."""
    agent.exploration = exploration
    hidden, states = agent.begin(samples), []
    actions = np.zeros((samples, 0), np.int32)
    for number in range(len(agent.state_sizes)):
        states.append(np.float32(observe(actions)))
        heads, hidden = agent.step(number, tf.constant(states[-1]), hidden)
        chosen, _ = agent.act(heads, tf.random.get_global_generator())
        actions = np.concatenate([actions, chosen.numpy()[:, None]], axis=1)
    return states, actions


def test_rewards():
    found = rewards_of([[0, 3], [1, 2]], [2.0, 0.0], penalty=-0.1, weight=0.5)
    np.testing.assert_allclose(found, [[0, -1.3], [-0.1, -0.2]], rtol=1e-6)


def test_exploration():
    agent = GroupAgent([2, 2])
    seen = []

    def observe(actions):
        seen.append(actions.shape)
        return np.zeros((4000, 2))

    tf.random.set_global_generator(tf.random.Generator.from_seed(0))
    _, best = walk(agent, observe, 4000)
    assert seen == [(4000, 0), (4000, 1)] and (best == best[0]).all()
    _, drawn = walk(agent, observe, 4000, 1.0)
    shares = np.bincount(drawn.ravel(), minlength=4) / drawn.size
    np.testing.assert_allclose(shares, 0.25, atol=0.02)
    _, some = walk(agent, observe, 4000, 0.4)
    assert np.mean(some != best) == pytest.approx(0.4 * 3 / 4, abs=0.02)


def test_targets_are_rewards_and_what_comes_after():
    agent = GroupAgent([3, 3])
    learner = QLearning(agent, new_optimizer(agent, 0.0), discount=0.5)
    random = np.random.default_rng(0)
    states = [random.normal(size=(7, 3)).astype("float32") for _ in range(2)]
    actions = random.integers(0, 4, (7, 2))
    rewards = random.normal(size=(7, 2)).astype("float32")
    worth = np.asarray(agent(states)[0])
    chosen = np.take_along_axis(worth, actions[..., None], -1)[..., 0]
    targets = rewards + 0.5 * np.stack([worth[:, 1].max(axis=-1), np.zeros(7)], 1)
    expected = np.mean((chosen - targets) ** 2)
    assert learner.learn(states, actions, rewards) == pytest.approx(expected, rel=1e-5)


def loss_of(hard, actions):
    """Hard images need all of the second layer, easy ones nothing but the first group.

    What the third layer computes does not matter.
    """
    return np.where(hard, 3 - actions[..., 1], 0.0)


def best_choice(hard):
    choices = np.array(list(itertools.product(range(4), repeat=3)))
    earned = rewards_of(choices, loss_of(hard, choices), -0.3, 1.0).sum(axis=1)
    return choices[earned.argmax()].tolist()


def observer(hard):
    """What is seen: the kind of image, and what the layer before has computed."""

    def observe(actions):
        before = actions[:, -1] / 3 if actions.shape[1] else np.zeros(len(hard))
        return np.stack([hard, ~hard, before], axis=1)

    return observe


def learned(sign, rounds=250):
    keras.utils.set_random_seed(0)
    tf.random.set_global_generator(tf.random.Generator.from_seed(0))
    agent = GroupAgent([3] * 3)
    learner = QLearning(agent)
    random = np.random.default_rng(0)
    for round_ in range(rounds):
        hard = random.random(64) < 0.5
        states, actions = walk(agent, observer(hard), 64, 1 - round_ / rounds)
        rewards = sign * rewards_of(actions, loss_of(hard, actions), -0.3, 1.0)
        learner.learn(states, actions, rewards)
    both = np.array([True, False])
    return walk(agent, observer(both), 2)[1].tolist()


def test_each_image_gets_what_it_needs():
    assert best_choice(True) == [0, 3, 0] and best_choice(False) == [0, 0, 0]
    assert learned(1.0) == [best_choice(True), best_choice(False)]


def test_they_do_not_if_rewards_are_turned_round():
    hard, easy = learned(-1.0, 120)
    assert hard[1] == 0 and sum(easy) > 6
