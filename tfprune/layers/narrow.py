"""Narrow maps: tensors with the channels that were computed, and no others."""

import dataclasses

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Narrow:
    """How a narrow map of one image relates to the whole one.

    Attributes:
        channels: int. Channels of the whole map.
        block: int. Channels of a block. Numbers of blocks go with the narrow map; a
            last block that is not full is filled with zeros. 0 where the narrow map has
            the first channels, in the order of `places`.
        places: tuple of ints: the place of each channel in that order, empty for
            blocks.
    """

    channels: int
    block: int = 0
    places: tuple = ()

    @property
    def padded(self) -> int:
        """Channels of all blocks together."""
        return self.channels + -self.channels % max(self.block, 1)

    @property
    def axes(self) -> tuple:
        """The axes that an axis of channels is laid out along in a kernel."""
        if not self.block:
            return (1, self.channels)
        return (self.padded // self.block, self.block)

    def whole(self, values, numbers):
        """Returns values of all channels, zero where nothing was computed.

        Args:
            values: float tensor of shape `(1, ..., computed channels)`.
            numbers: int tensor with the numbers of the blocks in it, or None.
        """
        if not self.block:
            missing = self.channels - tf.shape(values)[-1]
            before = [[0, 0]] * (len(values.shape) - 1)
            padded = tf.pad(values, [*before, [0, missing]])
            return tf.gather(padded, self.places, axis=-1)
        blocks = self.padded // self.block
        if len(values.shape) == 2:
            by_block = tf.reshape(values, (-1, self.block))
            found = tf.scatter_nd(numbers[:, None], by_block, (blocks, self.block))
            found = tf.reshape(found, (1, self.padded))
            return found[:, : self.channels] if self.padded > self.channels else found
        shape = tf.concat([tf.shape(values)[:-1], [-1, self.block]], axis=0)
        by_block = tf.reshape(values, shape)
        inverse = tf.scatter_nd(
            numbers[:, None], tf.range(1, tf.size(numbers) + 1), [blocks]
        )
        empty = tf.zeros_like(by_block[..., :1, :])
        chosen = tf.gather(tf.concat([empty, by_block], axis=-2), inverse, axis=-2)
        shape = tf.concat([tf.shape(values)[:-1], [self.padded]], axis=0)
        return tf.reshape(chosen, shape)[..., : self.channels]

    def sorted(self, values: np.ndarray, axis: int) -> np.ndarray:
        """Returns weights with an axis of channels laid out along `axes`."""
        if self.block:
            padding = np.zeros((values.ndim, 2), int)
            padding[axis, 1] = self.padded - self.channels
            values = np.pad(values, padding)
        elif self.places:
            values = np.take(values, np.argsort(self.places), axis)
        axis %= values.ndim
        shape = (*values.shape[:axis], *self.axes, *values.shape[axis + 1 :])
        return values.reshape(shape)

    def as_config(self) -> dict:
        return {**dataclasses.asdict(self), "places": list(self.places)}

    @classmethod
    def of_config(cls, config):
        return config and cls(**{**config, "places": tuple(config["places"])})
