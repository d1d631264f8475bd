"""AMC: every episode within the budget, the best allocation of a toy, a network."""

import itertools

import checker
import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tfprune import Budget, importances
from tfprune.search import AMC, amc, ddpg
from tfprune.selection import Ranking, checked_scores


def walk_of(model, budget):
    graph = tfprune.Graph(model)
    scores = checked_scores(graph, importances.get("magnitude")(graph))
    return graph, amc.Walk(graph, Ranking(graph, scores, budget))


def chain(sizes=(16, 16, 16)):
    model = keras.Sequential([layers.Input((16,))])
    for number, size in enumerate(sizes):
        model.add(layers.Dense(size, "relu", name=f"fc{number}"))
    model.add(layers.Dense(4))
    model.compile(loss="mse")
    return model


# The wall ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "budget",
    [
        Budget(flops_reduction=0.5),
        Budget(flops_reduction=0.7, max_sparsity=0.8),
        Budget(params_reduction=0.4, multiple_of=4),
        Budget(flops_reduction=0.3, max_sparsity={"stem_conv": 0.0, "*": 0.6}),
    ],
)
def test_any_policy_meets_the_budget(make_residual, budget):
    model = checker.randomize(make_residual(8))
    graph, walk = walk_of(model, budget)
    name, fraction = budget.target
    unit = {"flops_reduction": "macs", "params_reduction": "params"}[name]
    random = np.random.default_rng(0)
    policies = [lambda s: 1.0, lambda s: 0.0, lambda s: 0.5]
    policies += [lambda s: random.random()] * 20
    for policy in policies:
        kept, states, actions = walk.through(policy)
        cost = tfprune.cost(model, walk.ranking.masks(kept))
        whole = getattr(tfprune.cost(model), unit)
        assert getattr(cost, unit) <= (1 - fraction) * whole
        np.testing.assert_allclose(actions, kept / walk.ranking.sizes)
        assert states.shape == (walk.steps, walk.state_size)
        assert states.min() >= 0 and states.max() <= 1
        if budget.multiple_of > 1:
            assert (kept % 4 == 0).all()


def test_as_much_stays_as_is_wanted_and_allowed():
    _, walk = walk_of(chain(), Budget(params_reduction=0.1))
    kept, *_ = walk.through(lambda state: 0.5)
    assert kept.tolist() == [8, 8, 8]
    # Nothing is taken that the budget does not ask for: one more would be too much.
    graph, walk = walk_of(chain(), Budget(flops_reduction=0.5))
    kept, *_ = walk.through(lambda state: 1.0)
    assert kept[0] == 16
    model = graph.model
    for number in range(3):
        more = kept.copy()
        more[number] += 1
        masks = walk.ranking.masks(np.minimum(more, 16))
        half = 0.5 * tfprune.cost(model).macs
        assert more[number] > 16 or tfprune.cost(model, masks).macs > half


def test_states_tell_what_is_gone_and_what_can_go():
    model = chain()
    _, walk = walk_of(model, Budget(flops_reduction=0.2))
    _, states, _ = walk.through(lambda state: 0.5)
    gone, can_go, done = states[:, -3:].T
    assert gone[0] == 0 and done[0] == 1
    # 16x16 + 16x16 + 16x16 + 16x4 before; one unit of each is the least.
    least = 16 + 1 + 1 + 4
    assert can_go[0] == pytest.approx(1 - least / 832)
    after = 16 * 8 + 8 * 16 + 16 * 16 + 16 * 4
    assert gone[1] == pytest.approx(1 - after / 832) and done[1] == 0.5


# Learning ----------------------------------------------------------------------------


def test_all_steps_of_an_episode_get_its_reward():
    agent = ddpg.DDPG(3, 5)
    agent.remember(np.arange(9).reshape(3, 3), [0.1, 0.2, 0.3], 7.0)
    memory = agent._memory._arrays
    assert memory["reward"][:3].tolist() == [[7.0]] * 3
    assert memory["goes_on"][:3].tolist() == [[1.0], [1.0], [0.0]]
    assert memory["following"][0].tolist() == memory["state"][1].tolist()
    # The oldest are forgotten.
    agent.remember(np.ones((3, 3)), [0.5] * 3, 1.0)
    assert memory["reward"].ravel().tolist() == [1.0, 7.0, 7.0, 1.0, 1.0]


def test_it_learns_in_full_precision_whatever_the_policy():
    keras.config.set_dtype_policy("mixed_float16")
    agent = ddpg.DDPG(3, 5)
    agent.remember(np.ones((2, 3)), [0.1, 0.2], 1.0)
    before = agent.act(np.ones(3))
    agent.learn(2)
    assert agent.act(np.ones(3)) != before
    assert agent._actor.output.dtype == agent._critic.output.dtype == "float32"


class Toy(AMC):
    """Knows how good a choice is: the second layer carries nearly all of it."""

    sign = 1.0

    def score(self, kept, data):
        self._metric = "toy"
        lost = 1 - kept / self.walk.ranking.sizes
        return self.sign * (1 - float(lost**2 @ [0.1, 0.8, 0.1]))


def best_of_toy(search):
    walk = search.walk
    choices = itertools.product(range(1, 17), repeat=3)
    return max(
        search.score(np.array(kept), None)
        for kept in choices
        if walk._count(np.array(kept)) <= walk._most
    )


def test_it_learns_the_best_allocation():
    search = Toy(chain(), Budget(flops_reduction=0.5))
    result = search.run(None, episodes=300, random_episodes=50, verbose=0)
    best = best_of_toy(search)
    assert result.score > best - 0.01
    at_random, learned = np.mean(result.scores[:50]), np.mean(result.scores[-50:])
    assert learned > best - 0.03 > at_random + 0.1


class Diverging(Toy):
    """Has no finite score in some episodes."""

    def __init__(self, *arguments, bad):
        super().__init__(*arguments)
        self.bad = iter(bad)

    def score(self, kept, data):
        good = super().score(kept, data)
        return next(self.bad, good)


def test_what_has_no_finite_score_is_the_worst_and_teaches_nothing(monkeypatch):
    remembered = []
    remember = ddpg.DDPG.remember

    def noting(agent, states, actions, reward):
        remembered.append(reward)
        remember(agent, states, actions, reward)

    monkeypatch.setattr(ddpg.DDPG, "remember", noting)
    nan, infinite = float("nan"), float("inf")
    bad = [nan, infinite, 0.0, -infinite, nan, 0.1]
    search = Diverging(chain(), Budget(flops_reduction=0.5), bad=bad)
    result = search.run(None, episodes=6, random_episodes=1, verbose=0)
    worst = -infinite
    assert result.scores == (worst, worst, 0.0, worst, worst, 0.1)
    assert result.score == 0.1 and remembered == [0.0, 0.1]
    search = Diverging(chain(), Budget(flops_reduction=0.5), bad=[nan] * 3)
    with pytest.raises(ValueError, match="No episode had a finite score: 'toy'"):
        search.run(None, episodes=3, random_episodes=1, verbose=0)


def test_it_does_not_if_rewards_are_turned_round():
    search = Toy(chain(), Budget(flops_reduction=0.5))
    search.sign = -1.0
    result = search.run(None, episodes=300, random_episodes=50, verbose=0)
    good = -np.array(result.scores)
    assert good[-50:].mean() < good[:50].mean() - 0.1


# On a model --------------------------------------------------------------------------


@pytest.fixture
def classifier():
    """A trained network, and data to score it on."""
    random = np.random.default_rng(0)
    x = random.normal(size=(256, 8)).astype("float32")
    y = (x[:, :2] > 0) @ [1, 2]
    model = keras.Sequential(
        [
            layers.Input((8,)),
            layers.Dense(24, "relu", name="fc0"),
            layers.Dense(24, "relu", name="fc1"),
            layers.Dense(4),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
    model.fit(x, y, epochs=20, batch_size=32, verbose=0)
    return model, (x, y)


def test_it_finds_masks_that_meet_the_budget(classifier, capsys):
    model, data = classifier
    before = [w.copy() for w in model.get_weights()]
    budget = Budget(flops_reduction=0.5, max_sparsity=0.8)
    search = AMC(model, budget)
    result = search.run(data, episodes=30, random_episodes=20)
    assert len(result.scores) == 30 and result.score == max(result.scores)
    assert result.metric == "accuracy" and "best" in capsys.readouterr().out
    small = tfprune.compact(model, result.masks)
    assert tfprune.cost(small).macs <= 0.5 * tfprune.cost(model).macs
    small.compile(loss=model.loss, metrics=["accuracy"])
    measured = small.evaluate(*data, verbose=0)[1]
    assert measured == pytest.approx(result.score, abs=1e-6)
    kept = {name: float(mask.mean()) for name, mask in result.masks.items()}
    assert kept == pytest.approx(result.keep_ratios)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    again = AMC(model, budget).run(data, 30, 20, verbose=0)
    assert again.scores == result.scores


def test_interrupted_it_returns_the_best_so_far(classifier):
    model, data = classifier
    calls = []

    def limited():
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return data

    result = AMC(model, Budget(flops_reduction=0.5)).run(limited, 30, 20, verbose=0)
    assert len(result.scores) == 4 and result.score == max(result.scores)


def test_bad_arguments(classifier):
    model, data = classifier
    for budget in (0.5, Budget(sparsity=0.5), Budget()):
        with pytest.raises(ValueError, match="`budget` must be"):
            AMC(model, budget)
    with pytest.raises(ValueError, match="at most 0.6"):
        AMC(model, Budget(flops_reduction=0.99, max_sparsity=0.5))
    with pytest.raises(ValueError, match="`random_episodes` must lie"):
        AMC(model, Budget(flops_reduction=0.5)).run(data, 10, 20)
    for seed in (-1, 1.5):
        with pytest.raises(ValueError, match=f"`seed` must be .*seed={seed}"):
            AMC(model, Budget(flops_reduction=0.5), seed=seed)
    with pytest.raises(ValueError, match="has no loss"):
        AMC(tfprune.strip(model), Budget(flops_reduction=0.5))
