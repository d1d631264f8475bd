"""How the agents of a model learn: what they do on batches, and what it earns."""

import numpy as np
import tensorflow as tf

from tfprune.graph.nodes import as_functional, get_loss
from tfprune.layers.runtime_masks import deployed_ratios
from tfprune.layers.swapping import replaced
from tfprune.runtime.budgets import budget_reward, running_mean
from tfprune.runtime.ppo import PPO, rollout_of
from tfprune.runtime.q_learning import QLearning, rewards_of
from tfprune.runtime.work import GateCosts

# How hard ratios are pulled back into their limits: of images, and the static ones.
_OUTSIDE = (100.0, 1e-3)


class Learner:
    """Trains the agents of a model's policy; the network stands still.

    Args:
        model: compiled model with gates of one policy.
        gates: its gates, in the order in which they decide.
        learning_rate: float.
        penalty: float below 0: what a further group of channels costs an agent that
            chooses groups.
        seed: int.
    """

    def __init__(self, model, gates, learning_rate, penalty, seed):
        self._model, self._gates, self._penalty = model, gates, penalty
        self._policy, self._seed = gates[0].policy, seed
        self._losses_of = _losses_of_samples(model)
        self._generator = tf.random.Generator.from_seed(seed)
        self._rollout = tf.function(self._run, reduce_retracing=True, autograph=False)
        self._costs = GateCosts(model)
        # What gates had before the model was compacted: shares and budgets are of that.
        self._whole = np.array([gate.total / gate.units for gate in gates])
        self._caps = self.caps
        self._learners = []
        optimizers = self._policy.make_optimizers()
        for agent, optimizer in zip(self._policy.agents, optimizers, strict=True):
            optimizer.learning_rate.assign(learning_rate)
            if self._policy.agent_type == "groups":
                self._learners.append(QLearning(agent, optimizer))
                continue
            outside = _OUTSIDE[agent is self._policy.static_agent]
            self._learners.append(PPO(agent, optimizer, outside))

    @property
    def caps(self) -> dict:
        """The shares of multiply-accumulates and weights that are to be kept."""
        keep, part = self._policy.keep_ratio, self._policy.runtime_ratio
        stored, kept = deployed_ratios(keep, keep, part)
        return {
            count: self._costs.cap(count, ratio * self._whole) / self._all(count)
            for count, ratio in (("macs", kept), ("params", stored))
        }

    def _all(self, count: str) -> float:
        """What gates had before the model was compacted, as a share of what it has."""
        return self._costs.cap(count, self._whole)

    def _run(self, x, y):
        with self._policy.recording(self._generator) as recorder:
            losses = self._losses_of(y, self._model(x, training=False))
        decisions = [
            {key: value for key, value in each.items() if key != "number"}
            for each in recorder.decisions
        ]
        return losses, decisions

    def phase(self, batches) -> dict:
        """Lets agents act on batches and learn from them; returns what came of it.

        Args:
            batches: iterable of `(x, y)`.
        """
        policy = self._policy
        phases, count, mean = policy.memory.numpy().tolist()
        self._generator.reset_from_seed(self._seed + 7919 * int(phases))
        for learner in self._learners:
            learner.random = np.random.default_rng([self._seed, int(phases)])
        found = []
        for x, y in batches:
            losses, decisions = self._rollout(x, y)
            losses = losses.numpy()
            count += 1
            mean = running_mean(mean, int(count), losses)
            decisions = [{k: v.numpy() for k, v in each.items()} for each in decisions]
            found.append(self._learn(losses / mean, decisions))
            found[-1]["agent_loss"] = losses.mean()
        policy.memory.assign([phases + 1, count, mean])
        return {name: float(np.mean([f[name] for f in found])) for name in found[0]}

    def _learn(self, losses, decisions) -> dict:
        """Lets each agent learn from what it did; returns means over the batch."""
        policy, shares = self._policy, self._shares(decisions)
        logs = {f"kept_{count}": share.mean() for count, share in shares.items()}
        if policy.agent_type == "groups":
            actions = _columns(decisions, "actions")
            rewards = rewards_of(actions, losses, self._penalty, 1.0)
            states = [each["state"] for each in decisions]
            self._learners[0].learn(states, actions, rewards)
            return {**logs, "agent_reward": rewards.sum(axis=1).mean()}
        earned = {
            count: budget_reward(shares[count], cap, bonus=count == "macs")
            for count, cap in self._caps.items()
        }
        for learner in self._learners:
            is_static = learner.agent is policy.static_agent
            if is_static and bool(policy.settled.numpy()):
                continue
            state, kind, count = "state", "actions", "macs"
            if is_static:
                state, kind, count = "static_state", "static_actions", "params"
            actions = _columns(decisions, kind)
            rewards = np.zeros_like(actions)
            rewards[:, -1] = earned[count] - losses
            states = [each[state] for each in decisions]
            heads = learner.agent.compiled([tf.constant(each) for each in states])
            learner.learn(rollout_of(states, actions, heads), rewards)
            name = "static_reward" if is_static else "agent_reward"
            logs[name] = rewards[:, -1].mean()
        return logs

    def _shares(self, decisions) -> dict:
        """Returns the shares of multiply-accumulates and weights, one per image."""
        kept, stored = [], []
        for gate in self._gates:
            own = decisions[min(gate.number, len(decisions) - 1)]
            static = own["static_ratios"]
            if gate.static_keep is not None and bool(self._policy.settled.numpy()):
                static = np.full_like(static, gate.static_keep.numpy())
            both = deployed_ratios(own["ratios"], static, gate.runtime_ratio)
            for found, each in zip((stored, kept), both, strict=True):
                blocks = np.clip(np.round(each * gate.total), 1, int(gate.limit))
                found.append(blocks / gate.units)
        return {
            count: self._costs(count, np.stack(each, axis=-1)) / self._all(count)
            for count, each in (("macs", kept), ("params", stored))
        }


def _columns(decisions, kind) -> np.ndarray:
    return np.stack([each[kind] for each in decisions], axis=-1)


def _losses_of_samples(model):
    """Returns the function from labels and predictions to the loss of each sample.

    What `fit` takes for a sample alone, with the ranks and types of Keras's losses.
    """
    loss, outputs = getattr(model, "loss", None), len(as_functional(model).outputs)
    if outputs > 1 or not (callable(loss) or isinstance(loss, str)):
        raise ValueError(
            "Agents learn from the loss of each image, and the model needs one loss, of "
            f"one output. Received: loss={loss!r}, {outputs} outputs. Call "
            "`model.compile(optimizer, loss)` on a model with one output."
        )

    def losses(y, predictions):
        function = get_loss(loss, y, predictions)
        with replaced(function, "reduction", None):
            found = function(y, predictions)
        if not len(found.shape):
            raise ValueError(
                "Agents learn from the loss of each image, and the model needs a loss "
                f"of each image. Received: loss={loss!r}, which returns one number for "
                "a batch. Return one for each image, and Keras takes their mean."
            )
        places = list(range(1, len(found.shape)))
        return tf.reduce_mean(found, places) if places else found

    return losses
