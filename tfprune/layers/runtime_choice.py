"""RuntimeChoice: what a runtime gate and its agent decide, in few operations."""

import keras
import numpy as np
import tensorflow as tf

from tfprune.layers.runtime_masks import block_means, deployed_ratios, kept

_KINDS = ("fixed", "gaussian", "groups", "given")


@keras.saving.register_keras_serializable("tfprune")
class RuntimeChoice(keras.layers.Layer):
    """Predicts how much channels matter for one image, and how many blocks stay.

    It computes what a `RuntimeGate` and its policy do: the weights of both, with
    products that share an operand made one. Made by `of`.

    Args:
        channels: int. Channels of what is looked at.
        predicts: int. Channels to predict for; 0 where their order is given.
        rectify: bool. Whether predictions below zero are zero.
        block: int. Channels of a block.
        kind: how the count is found: `"fixed"`, by an agent's mean ratio (`"gaussian"`)
            or best group (`"groups"`), or from a ratio that is handed on (`"given"`).
        cell: bool. Whether the agent has a recurrent cell.
        units: int. What the agent's layers have.
        counts: list of ints: the fixed count, or that of each group.
        limits: list of two floats: what the agent says is clipped to these.
        total: int. Blocks that a ratio is of.
        blocks: int. Blocks that there are.
        limit: int. The most that may stay.
    """

    def __init__(
        self,
        channels,
        predicts=0,
        rectify=False,
        block=1,
        kind="fixed",
        cell=False,
        units=0,
        counts=(),
        limits=(0.1, 1.0),
        total=1,
        blocks=1,
        limit=1,
        **kwargs,
    ):
        super().__init__(**{**kwargs, "dtype": "float32"})
        if kind not in _KINDS:
            raise ValueError(f"`kind` must be one of {_KINDS}. Received: {kind!r}")
        self._config = {
            "channels": channels,
            "predicts": predicts,
            "rectify": rectify,
            "block": block,
            "kind": kind,
            "cell": cell,
            "units": units,
            "counts": list(counts),
            "limits": list(limits),
            "total": total,
            "blocks": blocks,
            "limit": limit,
        }
        vars(self).update(self._config)
        self._has_agent = kind in ("gaussian", "groups")
        # Rectified predictions cannot be summed up before they are known.
        self._is_linear = predicts > 0 and not rectify
        self.sizes = (predicts, blocks if self._is_linear else 0, units)
        if sum(self.sizes):
            self.look = self._add("look", (channels, sum(self.sizes)))
            self.offset = self._add("offset", (sum(self.sizes),))
        if predicts and rectify:
            self.closed = self._add("closed", (blocks,))
        if self._has_agent:
            heads = len(counts) if kind == "groups" else 1
            self.mix = None
            if predicts and rectify:
                self.mix = self._add("mix", (predicts, units))
            if cell:
                self.recurrent = self._add("recurrent", (2 * units, units))
                self.recurrent_bias = self._add("recurrent_bias", (units,))
            self.head = self._add("head", (units, heads))
            self.head_bias = self._add("head_bias", (heads,))
        self.built = True

    def _add(self, name, shape):
        settings = {"initializer": "zeros", "trainable": False, "autocast": False}
        return self.add_weight(name=name, shape=shape, dtype="float32", **settings)

    def call(self, pooled, hidden=None):
        """Returns what was found: `(predictions, scores, count, hidden)`.

        Predictions of channels and scores of blocks have shapes `(channels,)` and
        `(blocks,)`, and are None where the order of channels is given.

        Args:
            pooled: float32 tensor of shape `(1, channels)`.
            hidden: float32 tensor: what the choice before handed on.
        """
        predicted = scores = code = None
        if sum(self.sizes):
            seen = _product(pooled, self.look) + self.offset
            predicted, scores, code = tf.split(seen, self.sizes)
        if self.predicts and self.rectify:
            predicted = tf.nn.relu(predicted)
            scores = block_means(predicted, self.block) + self.closed
        count, hidden = self._count(predicted, code, hidden)
        if not self.predicts:
            predicted = scores = None
        return predicted, scores, count, hidden

    def _count(self, predicted, code, hidden):
        if self.kind == "fixed":
            return self.counts[0], None
        if self.kind == "given":
            return self._of_ratio(hidden[0]), hidden
        if self.mix is not None:
            code = code + _product(predicted[None], self.mix)
        code = tf.nn.relu(code)
        if self.cell:
            hidden = tf.zeros_like(code) if hidden is None else hidden
            both = tf.concat([code, hidden], axis=-1)
            told = _product(both[None], self.recurrent) + self.recurrent_bias
            code = hidden = tf.tanh(told)
        said = _product(code[None], self.head) + self.head_bias
        if self.kind == "groups":
            number = tf.argmax(said, output_type="int32")
            ratio = (tf.cast(number, "float32") + 1) / len(self.counts)
            count = tf.gather(self.counts, number)
        else:
            ratio = tf.clip_by_value(tf.reshape(said, ()), *self.limits)
            count = self._of_ratio(ratio)
        return count, hidden if self.cell else ratio[None]

    def _of_ratio(self, ratio):
        if self.cell:
            # The agent's head says the count itself, within limits of its own.
            return tf.cast(tf.round(ratio), "int32")
        return kept(ratio, self.total, self.limit)

    @property
    def hidden_size(self) -> int:
        """How many numbers are handed on, 0 for none."""
        if self.kind == "fixed":
            return 0
        return self.units if self.cell else 1

    def numbered(self):
        """Returns a copy that gives the number of the best group, and no count."""
        numbers = list(range(len(self.counts)))
        twin = type(self)(**{**self.get_config(), "counts": numbers})
        twin.set_weights(self.get_weights())
        return twin

    def get_config(self):
        return {**super().get_config(), **self._config}

    @classmethod
    def of(cls, gate):
        """Returns the choice that a gate and its policy make.

        Args:
            gate: built `RuntimeGate` that stores all of its channels.
        """
        policy, predicts = gate.policy, gate.channels if gate.predicts else 0
        settings = {
            "channels": gate.source_channels,
            "predicts": predicts,
            "rectify": gate.rectify,
            "block": gate.block,
            "total": gate.total,
            "blocks": gate.units,
            "limit": int(gate.limit),
        }
        if policy is None or policy.agent is None:
            choice = cls(kind="fixed", counts=[gate.expected_count], **settings)
        elif policy.per_network and gate.number:
            choice = cls(kind="given", **settings)
        else:
            choice = cls(**_agent_settings(gate), **settings)
        choice._take_over(gate)
        return choice

    def _take_over(self, gate):
        """Takes over the weights of a gate and its agent."""
        look, offset = [], []
        if self.predicts:
            phi, rho = gate.phi.numpy(), gate.rho.numpy()
            look.append(phi)
            offset.append(rho)
            closed = np.where(gate.stored_blocks(), 0, -np.inf).astype("float32")
            if self._is_linear:
                # The mean of predictions is one, of the mean of their weights.
                look.append(block_means(tf.constant(phi), gate.block).numpy())
                offset.append(block_means(tf.constant(rho), gate.block) + closed)
            else:
                self.closed.assign(closed)
        if self._has_agent:
            kernel, bias = self._take_agent(gate)
            known, predicted = np.split(kernel, [self.channels])
            if self.predicts:
                predicted = predicted * gate.stored.numpy()[:, None]
            if self.mix is not None:
                self.mix.assign(predicted)
            elif self.predicts:
                known, bias = known + phi @ predicted, bias + rho @ predicted
            look.append(known)
            offset.append(bias)
        if look:
            self.look.assign(np.concatenate(look, axis=-1))
            self.offset.assign(np.concatenate(offset))

    def _take_agent(self, gate) -> tuple:
        """Takes over what comes behind an agent's encoder; returns the encoder's."""
        agent, number = gate.policy.agent, gate.number
        budget = np.float32(getattr(agent, "budget", 0.0))
        if self.kind == "groups":
            self.head.assign(agent.worth.kernel.numpy())
            self.head_bias.assign(agent.worth.bias.numpy())
        else:
            scale, shift = _scale(gate) if self.cell else (1.0, 0.0)
            self.head.assign(agent.mean.kernel.numpy() * scale)
            self.head_bias.assign((agent.mean.bias.numpy() + budget) * scale + shift)
        if self.cell:
            rows = agent.cell.kernel.numpy()
            recurrent = agent.cell.recurrent_kernel.numpy()
            self.recurrent.assign(np.concatenate([rows[: self.units], recurrent]))
            told = rows[self.units :].sum(axis=0) * budget
            self.recurrent_bias.assign(agent.cell.bias.numpy() + told)
        encoder = agent.encoders[number]
        return encoder.kernel.numpy(), encoder.bias.numpy()


def _agent_settings(gate) -> dict:
    agent, groups = gate.policy.agent, gate.policy.groups
    settings = {
        "kind": gate.policy.agent_type,
        "cell": agent.cell is not None,
        "units": agent.encoders[0].kernel.shape[-1],
    }
    if gate.policy.agent_type == "groups":
        ratios = (np.arange(groups, dtype=np.float32) + 1) / np.float32(groups)
        return {**settings, "counts": gate.count(ratios).numpy().tolist()}
    scale, shift = _scale(gate)
    limits = np.multiply(agent.limits, scale) + shift if settings["cell"] else None
    if limits is None:
        return {**settings, "limits": agent.limits}
    limits = np.clip(limits, 1, gate.limit).tolist()
    return {**settings, "limits": limits}


def _scale(gate) -> tuple[np.float32, np.float32]:
    """Returns what an agent's ratio times and plus which is how many blocks stay."""
    static = 1.0 if gate.static_keep is None else float(gate.static_keep)
    _, (shift, whole) = deployed_ratios(np.array([0, 1]), static, gate.runtime_ratio)
    return np.float32((whole - shift) * gate.total), np.float32(shift * gate.total)


def _product(vector, matrix):
    """Returns the product of a vector `(1, n)` and a matrix, of shape `(m,)`.

    A bias that is added to a vector is not fused with the product, which takes longer.
    """
    return tf.reshape(tf.matmul(vector, matrix), (-1,))
