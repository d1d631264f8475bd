"""Agents that say, layer by layer, which fraction of the channels stays."""

import abc

import keras
import tensorflow as tf
from keras import layers, ops

_UNITS = 128
# A standard deviation of 0.018: ratios move little from what the mean says.
_LOG_DEVIATION = -4.0
# Executed ratios are no lower, unless the budget is.
_LOWEST = 0.1
# The share of choices of groups that are drawn at random to learn from.
_EXPLORATION = 0.1
_CELLS = {"rnn": layers.SimpleRNNCell, "lstm": layers.LSTMCell, "none": None}


def _dense(units, name, **settings):
    # With a name of its own: TensorFlow adds gradients up in an order that goes by
    # names, and a name that Keras makes up is another one after loading.
    return layers.Dense(units, dtype="float32", name=name, **settings)


class Walker(keras.layers.Layer):
    """Base of agents: a recurrent network that walks through the layers of another.

    At each layer an encoder of its own reads the state, the recurrent cell takes the
    code in, and heads say what comes of it.

    Args:
        state_sizes: list of ints: how many numbers the state of each layer has.
        cell: `"rnn"`, for states of images, `"lstm"`, for states that are the same for
            all, which one encoder reads, or `"none"`, for a single layer.
        extra: int: how many numbers the cell reads beside the code.
    """

    def __init__(self, state_sizes, cell="rnn", extra=0, **kwargs):
        # Also where what the agent looks at is computed in half precision.
        super().__init__(**{**kwargs, "dtype": "float32"})
        if cell not in _CELLS:
            raise ValueError(
                f"`cell` must be one of {list(_CELLS)}. Received: cell={cell!r}"
            )
        self.state_sizes, self.cell_type = list(state_sizes), cell
        self.encoders = [
            _dense(_UNITS, f"encoder_{number}", activation="relu")
            for number in range(1 if cell == "lstm" else len(self.state_sizes))
        ]
        self.cell = _CELLS[cell] and _CELLS[cell](_UNITS, dtype="float32", name="cell")
        for encoder, size in zip(self.encoders, self.state_sizes, strict=False):
            encoder.build((None, size))
        if self.cell is not None:
            self.cell.build((None, _UNITS + extra))
        self.extra = extra
        self.compiled = tf.function(self.call, reduce_retracing=True)

    @abc.abstractmethod
    def heads(self, output) -> tuple:
        """Returns what is said at a layer, given the cell's output there."""

    @abc.abstractmethod
    def act(self, heads, generator=None) -> tuple:
        """Returns `(actions, ratios)` of what the heads say.

        Args:
            heads: what they say, for each sample.
            generator: `tf.random.Generator` to explore with; None for the best.
        """

    @abc.abstractmethod
    def warm_up(self, heads, warm_up) -> tuple:
        """Returns `(actions, ratios)` from which the network learns at first.

        Args:
            heads: what the heads say, for each sample.
            warm_up: the policy's `WarmUp`.
        """

    def read(self, code):
        """Returns what the cell reads of an encoder's code."""
        return code

    def begin(self, samples):
        """Returns the cell's state before the first layer."""
        count = {"rnn": 1, "lstm": 2, "none": 0}[self.cell_type]
        return [ops.zeros((samples, _UNITS)) for _ in range(count)]

    def step(self, number: int, state, hidden):
        """Returns `(what the heads say, hidden)` at a layer.

        Args:
            number: int: which layer.
            state: float32 tensor of shape `(samples, state_sizes[number])`.
            hidden: what the last step returned, or `begin`.
        """
        encoder = self.encoders[number if len(self.encoders) > 1 else 0]
        output = self.read(encoder(state))
        if self.cell is not None:
            output, hidden = self.cell(output, hidden)
        return self.heads(output), hidden

    def call(self, states):
        """Returns what the heads say at all layers, each `(samples, steps, ...)`.

        Args:
            states: list with a float32 tensor of shape `(samples, size)` per layer.
        """
        hidden, found = self.begin(ops.shape(states[0])[0]), []
        for number, state in enumerate(states):
            heads, hidden = self.step(number, state, hidden)
            found.append(heads)
        return tuple(ops.stack(each, axis=1) for each in zip(*found, strict=True))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a walk for one image."""
        return sum(size * _UNITS + self.macs_of_cell for size in self.state_sizes)

    @property
    def macs_of_cell(self) -> int:
        """Multiply-accumulates of a step behind the encoder, to what is then done."""
        gates = {"rnn": 1, "lstm": 4, "none": 0}[self.cell_type]
        outputs = getattr(self, "groups", 1)
        return _UNITS * (gates * (2 * _UNITS + self.extra) + outputs)

    def get_config(self):
        return {
            **super().get_config(),
            "state_sizes": self.state_sizes,
            "cell": self.cell_type,
        }


@keras.saving.register_keras_serializable("tfprune")
class Agent(Walker):
    """Says which fraction of each layer's channels stays, as a normal distribution.

    Three heads say the mean of the ratio, its log standard deviation and the value. At
    first every mean is the budget.

    Args:
        state_sizes: list of ints: how many numbers the state of each layer has.
        budget: float: the ratio to begin with.
        cell: `"rnn"` or `"lstm"`, see `Walker`. An agent with `"rnn"` reads the budget
            at every layer.
        limits: two floats: executed ratios are clipped to these. By default 0.1, or
            a budget below that, and 1.

    Source: Chen et al., "Storage efficient and dynamic flexible runtime channel pruning
    via deep reinforcement learning", 2020, author response.
    """

    def __init__(self, state_sizes, budget, cell="rnn", limits=None, **kwargs):
        # Without a cell, what the encoder says goes to the heads as it is.
        super().__init__(state_sizes, cell, extra=int(cell == "rnn"), **kwargs)
        self.budget = float(budget)
        self.limits = tuple(limits or (min(_LOWEST, budget), 1.0))
        self.mean = _small_dense("mean")
        self.log_deviation = _small_dense("log_deviation", _LOG_DEVIATION)
        self.value = _dense(1, "value")
        for head in (self.mean, self.log_deviation, self.value):
            head.build((None, _UNITS))
        self.built = True

    def read(self, code):
        if not self.extra:
            return code
        budget = ops.full_like(code[:, :1], self.budget)
        return ops.concatenate([code, budget], axis=-1)

    def heads(self, output):
        mean = self.mean(output)[:, 0] + self.budget
        return mean, self.log_deviation(output)[:, 0], self.value(output)[:, 0]

    def act(self, heads, generator=None):
        actions, log_deviations, _ = heads
        if generator is not None:
            noise = generator.normal(ops.shape(actions))
            actions = actions + ops.exp(log_deviations) * noise
        return actions, self.clipped(actions)

    def warm_up(self, heads, warm_up):
        ratios = ops.ones_like(heads[0]) * warm_up.ratio
        return ratios, ratios

    def clipped(self, actions):
        """Returns the ratios that are carried out."""
        return ops.clip(actions, *self.limits)

    def get_config(self):
        config = {"budget": self.budget, "limits": list(self.limits)}
        return {**super().get_config(), **config}


def _small_dense(name, bias=0.0):
    """Returns a head that says the same of all states at first.

    At the paper's fifth of the usual size means stray from the budget by 0.2, and the
    network has to live with that long before the agent has learned.
    """
    return _dense(
        1,
        name,
        kernel_initializer=keras.initializers.VarianceScaling(1e-5, "fan_avg"),
        bias_initializer=keras.initializers.Constant(bias),
    )


@keras.saving.register_keras_serializable("tfprune")
class GroupAgent(Walker):
    """Says what it is worth to compute the first one, two, ... groups of channels.

    Args:
        state_sizes: list of ints: how many numbers the state of each layer has.
        groups: int: groups of each layer. The last action computes all of it.

    Attributes:
        exploration: float: the share of choices that are drawn at random when it
            explores.

    Source: Lin et al., "Runtime neural pruning", 2017.
    """

    def __init__(self, state_sizes, groups=4, cell="rnn", **kwargs):
        super().__init__(state_sizes, cell, **kwargs)
        self.groups = groups
        self.exploration = _EXPLORATION
        self.worth = _dense(groups, "worth")
        self.worth.build((None, _UNITS))
        self.built = True

    def heads(self, output):
        return (self.worth(output),)

    def act(self, heads, generator=None):
        (worth,) = heads
        actions = ops.argmax(worth, axis=-1)
        if generator is not None:
            drawn = self._drawn(heads, generator)
            explores = generator.uniform(ops.shape(actions)) < self.exploration
            actions = ops.where(explores, drawn, ops.cast(actions, "int32"))
        return actions, self._ratios(actions)

    def warm_up(self, heads, warm_up):
        drawn = self._drawn(heads, warm_up.generator)
        return drawn, self._ratios(drawn)

    def _drawn(self, heads, generator):
        shape = ops.shape(heads[0])[:-1]
        return generator.uniform(shape, maxval=self.groups, dtype="int32")

    def _ratios(self, actions):
        return (ops.cast(actions, "float32") + 1) / self.groups

    def get_config(self):
        return {**super().get_config(), "groups": self.groups}
