"""From scores and ratios to the channels that stay, for each image."""

import numpy as np
import tensorflow as tf


def top_mask(scores, count):
    """Returns a mask of the highest scores: exactly so many, whatever ties there are.

    Args:
        scores: float tensor of shape `(..., channels)`.
        count: int tensor of shape `(...)`, or one int: how many stay, one at least. Of
            equal scores those stay that come first.

    Returns:
        A bool tensor like `scores`.

    Example:

    >>> top_mask(tf.constant([0.0, 2.0, 2.0, 2.0]), 2).numpy().tolist()
    [False, True, True, False]
    """
    order = tf.argsort(scores, direction="DESCENDING", stable=True)
    ranks = tf.argsort(order)
    return ranks < tf.maximum(tf.convert_to_tensor(count), 1)[..., None]


def block_means(scores, block: int):
    """Returns the mean score of every block, a tensor of shape `(..., blocks)`.

    Args:
        scores: float tensor of shape `(..., channels)`.
        block: int. Channels of a block; the last one may have fewer.
    """
    if block == 1:
        return scores
    channels = scores.shape[-1]
    blocks, missing = -(-channels // block), -channels % block
    padding = [[0, 0]] * (len(scores.shape) - 1) + [[0, missing]]
    shape = tf.concat([tf.shape(scores)[:-1], [blocks, block]], axis=0)
    sums = tf.reduce_sum(tf.reshape(tf.pad(scores, padding), shape), axis=-1)
    sizes = np.full(blocks, block, np.float32)
    sizes[-1] -= missing
    # A vectorized division is rounded otherwise than that of what is left over, so
    # that equal blocks would differ.
    return tf.ensure_shape(sums * (1 / sizes), (*scores.shape[:-1], blocks))


def spread(mask, channels: int, block: int):
    """Returns a mask of channels from one of blocks, `(..., blocks)`."""
    if block == 1:
        return mask
    return tf.gather(mask, np.arange(channels) // block, axis=-1)


def kept(ratio, channels: int, limit: int | None = None):
    """Returns how many channels a ratio keeps: rounded, one at least.

    Args:
        ratio: float tensor.
        channels: int: what the ratio is of.
        limit: int: how many there are to keep, by default `channels`.
    """
    count = tf.cast(tf.round(ratio * channels), "int32")
    return tf.clip_by_value(count, 1, limit or channels)


def traded_off(runtime_scores, static_scores, runtime_keep, static_keep, runtime_ratio):
    """Returns the masks of images and of the layer whose product meets both ratios.

    Channels that both would remove are removed by both; what is left to remove is
    divided between them, so that `R * runtime_keep + (1 - R) * static_keep` stays, with
    R for `runtime_ratio`, however far the two agree. Where they have nothing in common,
    an image also keeps the best of what the layer keeps, so that one channel stays.

    Args:
        runtime_scores: float tensor of shape `(images, channels)`.
        static_scores: float tensor of shape `(channels,)`.
        runtime_keep: float tensor of shape `(images,)`: ratios that the agent of images
            says.
        static_keep: float: the ratio that the static agent says.
        runtime_ratio: float in [0, 1]: 1 for what depends on the image alone, 0 for
            what does not depend on it.

    Returns:
        Two bool tensors of shape `(images, channels)`: of the images, of the layer.

    Source: Chen et al., "Storage efficient and dynamic flexible runtime channel pruning
    via deep reinforcement learning", 2020, author response and code.
    """
    channels = runtime_scores.shape[-1]
    static_scores = tf.broadcast_to(static_scores, tf.shape(runtime_scores))
    static_keep = tf.broadcast_to(static_keep, tf.shape(runtime_keep))
    by_image = top_mask(runtime_scores, kept(runtime_keep, channels))
    by_layer = top_mask(static_scores, kept(static_keep, channels))
    neither = tf.logical_not(tf.logical_or(by_image, by_layer))
    gone = tf.reduce_mean(tf.cast(neither, "float32"), axis=-1)
    lowest = tf.constant(float("-inf"))

    def shared(scores, keep, part):
        left = 1 - gone - part * (1 - keep - gone)
        count = kept(tf.clip_by_value(left, 0.0, 1.0), channels)
        return top_mask(tf.where(neither, lowest, scores), count)

    by_image = shared(runtime_scores, runtime_keep, runtime_ratio)
    by_layer = shared(static_scores, static_keep, 1 - runtime_ratio)
    both = tf.reduce_any(tf.logical_and(by_image, by_layer), axis=-1, keepdims=True)
    best = tf.argmax(tf.where(by_layer, runtime_scores, lowest), axis=-1)
    is_best = tf.one_hot(best, channels, True, False, dtype="bool")
    return tf.logical_or(by_image, tf.logical_and(is_best, ~both)), by_layer


def deployed_ratios(runtime_keep, static_keep, runtime_ratio):
    """Returns the ratio that is stored, and that at which images keep, of all channels.

    What is stored does not depend on the image, and is compacted; every image keeps as
    many in all as `traded_off` lets it.

    Args:
        runtime_keep: float or tensor.
        static_keep: float.
        runtime_ratio: float in [0, 1].
    """
    stored = runtime_ratio + (1 - runtime_ratio) * static_keep
    return stored, runtime_ratio * runtime_keep + (1 - runtime_ratio) * static_keep
