"""Masks of images: exact counts, and the identity of the trade-off."""

import numpy as np
import pytest
import tensorflow as tf

from tfprune.layers.runtime_masks import (
    block_means,
    deployed_ratios,
    kept,
    spread,
    top_mask,
    traded_off,
)


def test_exactly_so_many_stay_whatever_ties_there_are():
    zeros = tf.zeros((5, 12))
    counts = tf.constant([1, 3, 6, 11, 12])
    masks = top_mask(zeros, counts).numpy()
    assert masks.sum(axis=1).tolist() == counts.numpy().tolist()
    # Those that come first.
    assert masks[1].tolist() == [True] * 3 + [False] * 9
    assert top_mask(zeros, 0).numpy().sum() == 5


def test_the_highest_stay():
    scores = np.random.default_rng(0).normal(size=(20, 33)).astype("float32")
    scores[:, ::4] = 0
    masks = top_mask(scores, 10).numpy()
    assert (masks.sum(axis=1) == 10).all()
    for score, mask in zip(scores, masks, strict=True):
        assert score[mask].min() >= score[~mask].max()


@pytest.mark.parametrize(("channels", "block"), [(64, 16), (40, 16), (7, 3), (5, 1)])
def test_blocks_stay_or_go_as_a_whole(channels, block):
    scores = np.random.default_rng(0).normal(size=(6, channels)).astype("float32")
    blocks = top_mask(block_means(tf.constant(scores), block), 2)
    masks = spread(blocks, channels, block).numpy()
    starts = range(0, channels, block)
    for score, mask in zip(scores, masks, strict=True):
        parts = [mask[start : start + block] for start in starts]
        assert all(part.all() or not part.any() for part in parts)
        means = [score[start : start + block].mean() for start in starts]
        best = set(np.argsort(means)[-2:].tolist())
        assert {n for n, part in enumerate(parts) if part.all()} == best


@pytest.mark.parametrize("block", [3, 16])
def test_equal_blocks_have_equal_means_in_a_graph_too(block):
    means = tf.function(lambda x: block_means(x, block))(tf.ones((1, 12 * block)))
    assert len(np.unique(means)) == 1


def test_counts_are_rounded_and_one_at_least():
    ratios = tf.constant([0.0, 0.01, 0.5, 0.26, 1.0, 1.3])
    assert kept(ratios, 10).numpy().tolist() == [1, 1, 5, 3, 10, 10]


def test_as_much_stays_as_the_two_ratios_say_however_far_they_agree():
    random = np.random.default_rng(0)
    channels, images = 64, 50
    for draw in range(60):
        static = random.normal(size=channels).astype("float32")
        own = random.normal(size=(images, channels)).astype("float32")
        # From scores that agree to scores that are opposed.
        runtime = own + (draw % 7 - 3) * static
        runtime_keep = random.uniform(0.1, 1, images).astype("float32")
        static_keep, ratio = random.uniform(0.1, 1), random.uniform(0, 1)
        masks = traded_off(
            tf.constant(runtime), static, runtime_keep, static_keep, ratio
        )
        left = np.logical_and(*masks).mean(axis=1)
        expected = ratio * runtime_keep + (1 - ratio) * static_keep
        np.testing.assert_allclose(left, expected, atol=2 / channels)
        _, deployed = deployed_ratios(runtime_keep, static_keep, ratio)
        np.testing.assert_allclose(deployed, expected, rtol=1e-6)


def test_one_channel_stays_where_the_two_have_nothing_in_common():
    # The first image would keep what the layer does not, the second does the same.
    runtime, static = tf.constant([[1.0, 0.0], [0.0, 1.0]]), [0.0, 1.0]
    masks = traded_off(runtime, static, tf.constant([0.4, 0.4]), 0.4, 0.5)
    assert masks[0].numpy().tolist() == [[True, True], [False, True]]
    assert masks[1].numpy().tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize("channels", [2, 4])
def test_no_image_is_left_without_channels(channels):
    random = np.random.default_rng(0)
    compiled = tf.function(traded_off, jit_compile=True)
    runtime = random.normal(size=(2000, channels)).astype("float32")
    # Some are worth the same.
    runtime[::3, 0] = runtime[::3, 1]
    static = tf.constant(random.normal(size=channels).astype("float32"))
    keep = tf.constant(random.uniform(0.1, 0.6, 2000).astype("float32"))
    arguments = tf.constant(runtime), static, keep, tf.constant(0.2), 0.5
    masks = traded_off(*arguments)
    assert np.logical_and(*masks).any(axis=1).all()
    np.testing.assert_array_equal(masks, compiled(*arguments))


def test_what_agrees_is_removed_by_both():
    scores = np.random.default_rng(0).permutation(32).astype("float32")
    masks = traded_off(
        tf.constant(scores[None]), scores, tf.constant([0.5]), 0.5, tf.constant(0.3)
    )
    for mask in masks:
        np.testing.assert_array_equal(mask[0], scores >= 16)


def test_the_ends_of_the_trade_off():
    random = np.random.default_rng(0)
    runtime = random.normal(size=(9, 32)).astype("float32")
    static = random.normal(size=32).astype("float32")
    keep = np.full(9, 0.25, "float32")
    # Images alone: the plain choice of the highest scores.
    by_image, by_layer = traded_off(tf.constant(runtime), static, keep, 1.0, 1.0)
    assert by_layer.numpy().all()
    np.testing.assert_array_equal(by_image, top_mask(runtime, 8))
    # The layer alone: the same for every image.
    ones = np.ones(9, "float32")
    by_image, by_layer = traded_off(tf.constant(runtime), static, ones, 0.25, 0.0)
    assert by_image.numpy().all()
    np.testing.assert_array_equal(by_layer, np.tile(top_mask(static, 8), (9, 1)))


def test_what_is_stored():
    assert deployed_ratios(0.7, 0.7, 0.5) == pytest.approx((0.85, 0.7))
    assert deployed_ratios(0.5, 1.0, 1.0) == (1.0, 0.5)
    assert deployed_ratios(1.0, 0.5, 0.0) == (0.5, 0.5)
