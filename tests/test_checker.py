"""The outside checker sees the errors it is there for."""

import checker
import keras
import numpy as np
import pytest
from checker import check_slices, randomize
from keras import layers

import tfprune


@pytest.fixture
def pair(make_residual):
    model = randomize(make_residual())
    return model, tfprune.prune(model, 0.5)


def test_passes_a_right_model_and_recovers_its_indices(pair):
    model, small = pair
    graph = tfprune.Graph(model)
    masks = tfprune.select(graph, "magnitude", tfprune.Budget(flops_reduction=0.5))
    kept = check_slices(model, small)
    for path, mask in graph.layer_masks(masks).items():
        if path.endswith("_conv"):
            assert kept[path, 0][-1].tolist() == np.flatnonzero(mask).tolist()


def _one_wrong(index, size):
    """The same number of indices, one of them another one."""
    free = sorted(set(range(size)) - set(index.tolist()))
    return np.sort(np.append(index[1:], free[0]))


def test_sees_one_wrong_input_channel(pair):
    model, small = pair
    old, new = (m.get_layer("block2_b_conv").kernel for m in (model, small))
    kept = checker.kept_indices(model, small)["block2_b_conv", 0]
    wrong = _one_wrong(kept[2], old.shape[2])
    new.assign(old.numpy()[np.ix_(kept[0], kept[1], wrong, kept[3])])
    with pytest.raises(AssertionError, match="off by"):
        check_slices(model, small)


def test_sees_the_beta_of_another_channel(pair):
    model, small = pair
    old, new = (m.get_layer("stem_bn").beta for m in (model, small))
    kept = checker.kept_indices(model, small)["stem_bn", 1]
    new.assign(old.numpy()[_one_wrong(kept[0], old.shape[0])])
    with pytest.raises(AssertionError, match="off by"):
        check_slices(model, small)


def test_sees_a_scaled_value(pair):
    model, small = pair
    kernel = small.get_layer("block1_a_conv").kernel
    value = kernel.numpy()
    value[0, 0, 0, 0] *= 1.001
    kernel.assign(value)
    with pytest.raises(AssertionError, match="altered"):
        check_slices(model, small)


def test_sees_swapped_values(pair):
    model, small = pair
    beta = small.get_layer("stem_bn").beta
    beta.assign(beta.numpy()[::-1])
    with pytest.raises(AssertionError, match="out of order"):
        check_slices(model, small)


def test_is_not_content_with_an_unchanged_model(make_residual):
    model = randomize(make_residual())
    with pytest.raises(AssertionError, match="blind"):
        check_slices(model, model)


def test_is_not_content_with_a_constant_output(make_vgg):
    model = randomize(make_vgg())
    model.get_layer("logits").kernel.assign(model.get_layer("logits").kernel * 0)
    with pytest.raises(AssertionError, match=r"repeat|blind"):
        check_slices(model, tfprune.prune(model, 0.5))


def test_profiler_counts_what_is_counted_by_hand():
    inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same")(inputs)
    x = layers.DepthwiseConv2D(3)(x)
    model = keras.Model(inputs, layers.Dense(5)(layers.Flatten()(x)))
    expected = 64 * 9 * 3 * 4 + 36 * 9 * 4 + 36 * 4 * 5
    assert checker.profiled_macs(model) == expected
