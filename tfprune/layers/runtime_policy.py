"""RuntimePolicy: what the runtime gates of a model decide together."""

import contextlib
from dataclasses import dataclass, field

import keras
import tensorflow as tf
from keras import layers, ops

from tfprune.layers.agents import Agent, GroupAgent

_AGENTS = ("gaussian", "groups")


@dataclass
class Recorder:
    """What is decided while a policy records, gate after gate."""

    generator: object = None
    decisions: list = field(default_factory=list)


@dataclass(frozen=True)
class WarmUp:
    """What decides instead of agents, while the network learns to do with less.

    Attributes:
        ratio: float32 `tf.Variable`: that stays, where agents say ratios.
        generator: `tf.random.Generator` that draws, where they choose groups.
    """

    ratio: tf.Variable
    generator: tf.random.Generator


@keras.saving.register_keras_serializable("tfprune")
class RuntimePolicy(keras.layers.Layer):
    """Says how many channels stay, for each image, at each gate or at all of them.

    Gates of one model share one policy, also after saving and loading. Its agents are
    not trained by `fit`: `tfprune.callbacks.PolicyTraining` does that between epochs.

    Args:
        state_sizes: list of ints: how many numbers the state of each gate has.
        widths: list of floats: what the static agent is told of each gate.
        keep_ratio: float in (0, 1]. Ratio of channels to begin with; not for groups.
        runtime_ratio: float in [0, 1]. How much of the pruning depends on the image: 1
            for all of it, without a static agent.
        agent: `"gaussian"`, which says a ratio, or `"groups"`, which says how many of
            `groups` groups of channels are computed.
        per_network: whether there is one decision for each image, at the first gate.
        groups: int.
        learns: bool. Whether it has optimizers, which are saved with the model.

    Source: Chen et al., "Storage efficient and dynamic flexible runtime channel pruning
    via deep reinforcement learning", 2020, author response; Lin et al., "Runtime neural
    pruning", 2017, for groups.
    """

    def __init__(
        self,
        state_sizes,
        widths,
        keep_ratio,
        runtime_ratio=1.0,
        agent="gaussian",
        per_network=False,
        groups=4,
        learns=False,
        **kwargs,
    ):
        super().__init__(**{**kwargs, "dtype": "float32"})
        if agent not in _AGENTS:
            raise ValueError(f"`agent` must be one of {_AGENTS}. Received: {agent!r}")
        if runtime_ratio < 1 and (per_network or agent == "groups"):
            raise ValueError(
                "A static agent goes with one Gaussian decision for each layer. "
                f"Received: runtime_ratio={runtime_ratio}, agent={agent!r}, "
                f"per_network={per_network}. Use runtime_ratio=1."
            )
        self._settings = {
            "state_sizes": list(state_sizes),
            "widths": list(widths),
            "keep_ratio": keep_ratio,
            "runtime_ratio": runtime_ratio,
            "agent": agent,
            "per_network": per_network,
            "groups": groups,
        }
        self.agent_type, self.groups = agent, groups
        self.widths, self.per_network = list(widths), per_network
        self.keep_ratio, self.runtime_ratio = keep_ratio, float(runtime_ratio)
        self.agent = self.static_agent = self.importance = None
        cell = "none" if per_network else "rnn"
        if agent == "groups":
            self.agent = GroupAgent(state_sizes, groups, cell, name="agent")
        elif runtime_ratio > 0:
            self.agent = Agent(state_sizes, keep_ratio, cell, name="agent")
        if runtime_ratio < 1:
            ones = [1] * len(widths)
            self.static_agent = Agent(ones, keep_ratio, "lstm", name="static_agent")
            self._build_importance()
        for each in self.agents:
            each.trainable = False
        # Whether what is stored is chosen for good, and no longer image by image.
        self.settled = self._add("settled", (), "bool")
        # Phases of learning so far, batches in them, and the mean of their losses.
        self.memory = self._add("memory", (3,), "float32")
        self.optimizers = []
        if learns:
            self.make_optimizers()
        self._recorder = Recorder()
        self._is_recording = False
        # A `WarmUp` while agents leave the network time to learn.
        self.warming_up = None
        self.built = True

    def _add(self, name, shape, dtype):
        settings = {"initializer": "zeros", "trainable": False, "autocast": False}
        return self.add_weight(name=name, shape=shape, dtype=dtype, **settings)

    def _build_importance(self):
        # One for every channel, so that outputs are what they were, until it is told
        # of filters: those far from others, large and sensitive are worth more. Were
        # all alike, the last ones would be closed, and never learn.
        rising = keras.initializers.RandomUniform(0.0, 0.5)
        somewhat = keras.initializers.Constant(1e-2)
        hidden = layers.Dense(100, "selu", kernel_initializer=rising, dtype="float32")
        last = layers.Dense(
            1, kernel_initializer=somewhat, bias_initializer="ones", dtype="float32"
        )
        self.importance = keras.Sequential([layers.Input((4,)), hidden, last])

    @property
    def agents(self) -> list:
        """The agents there are: of images, and the static one."""
        return [each for each in (self.agent, self.static_agent) if each is not None]

    @property
    def expected_keep(self) -> float:
        """The ratio of images, as far as is known without one."""
        if self.agent_type == "groups":
            return (self.groups + 1) / (2 * self.groups)
        return 1.0 if self.agent is None else self.keep_ratio

    @property
    def hidden_size(self) -> int:
        """How many numbers of each image go from gate to gate."""
        return int(self.begin(1).shape[-1])

    def make_optimizers(self) -> list:
        """Returns an optimizer for each agent, made at the first time."""
        if not self.optimizers:
            for agent in self.agents:
                optimizer = keras.optimizers.Adam(global_clipnorm=0.5)
                optimizer.build(agent.weights)
                self.optimizers.append(optimizer)
        return list(self.optimizers)

    def begin(self, samples):
        """Returns what the first gate is given."""
        if self.per_network:
            return ops.ones((samples, 1))
        hidden = [each for agent in self.agents for each in agent.begin(samples)]
        return ops.concatenate(hidden, axis=-1)

    def decide(self, number: int, state, hidden, training=False) -> tuple:
        """Returns the ratios that stay at a gate, and what the next gate is given.

        Args:
            number: int: which gate.
            state: float32 tensor of shape `(samples, state_sizes[number])`.
            hidden: what the gate before returned, or `begin`.
            training: whether the network is being trained.

        Returns:
            `(ratios of images, ratios of the layer, hidden)`, the ratios of shape
            `(samples,)`.
        """
        if self.per_network and number:
            return hidden[:, 0], ops.ones_like(hidden[:, 0]), hidden
        parts = self._parts(hidden)
        decision = {"number": number, "state": state}
        ratios = []
        for agent, part in zip((self.agent, self.static_agent), parts, strict=True):
            if agent is None:
                ratios.append(ops.ones_like(state[:, 0]))
                continue
            if agent is self.static_agent:
                state = ops.full_like(state[:, :1], self.widths[number])
                decision["static_state"] = state
            heads, part[:] = agent.step(number, state, part)
            kind = "actions" if agent is self.agent else "static_actions"
            decision[kind], ratio = self._act(agent, heads, training)
            ratios.append(ratio)
        decision["ratios"], decision["static_ratios"] = ratios
        if self._is_recording:
            self._recorder.decisions.append(decision)
        if self.per_network:
            return *ratios, ratios[0][:, None]
        return *ratios, ops.concatenate([x for part in parts for x in part], axis=-1)

    def _parts(self, hidden) -> list:
        """Returns what each agent's cell remembers, as lists of tensors."""
        if self.per_network:
            return [[], []]
        counts = [len(agent.begin(1)) for agent in self.agents]
        tensors = tf.split(hidden, sum(counts), axis=-1)
        own = len(self.agent.begin(1)) if self.agent is not None else 0
        return [tensors[:own], tensors[own:]]

    def _act(self, agent, heads, training):
        if self._is_recording:
            return agent.act(heads, self._recorder.generator)
        if training and self.warming_up is not None:
            return agent.warm_up(heads, self.warming_up)
        return agent.act(heads)

    @contextlib.contextmanager
    def recording(self, generator=None):
        """Lets agents explore, and yields a `Recorder` of what is decided.

        In a `tf.function` that is traced inside, decisions are tensors to return.

        Args:
            generator: `tf.random.Generator`; None for what the agents hold best.
        """
        self._recorder = Recorder(generator)
        self._is_recording = True
        try:
            yield self._recorder
        finally:
            self._is_recording = False

    def get_config(self):
        learns = bool(self.optimizers)
        return {**super().get_config(), **self._settings, "learns": learns}
