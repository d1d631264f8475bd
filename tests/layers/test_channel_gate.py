"""ChannelGate as a layer of its own: arithmetic by eye, config, gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfprune.layers import GATED_TYPES, ChannelGate, ChannelMask


def ones(*shape):
    return np.ones(shape, "float32")


def test_dense_by_eye():
    dense = layers.Dense(3, "relu", kernel_initializer="ones", bias_initializer="ones")
    dense.build((None, 2))
    gate = ChannelGate(dense)
    gate.gate.assign([1.0, 2.0, -1.0])
    assert gate(ones(1, 2)).numpy().tolist() == [[3.0, 6.0, 0.0]]
    gate.output_mask.mask.assign([True, False, True])
    assert gate(ones(1, 2)).numpy().tolist() == [[3.0, 0.0, 0.0]]


def test_normalization_by_eye():
    """gate * mask * (base * x_hat + shift)"""
    normalization = layers.BatchNormalization(epsilon=0.0)
    normalization.build((None, 3))
    normalization.gamma.assign([2.0, 0.0, -1.0])
    normalization.beta.assign([4.0, 5.0, 1.0])
    gate = ChannelGate(normalization)
    assert gate(ones(1, 3)).numpy().tolist() == [[6.0, 5.0, 0.0]]
    assert normalization.gamma.numpy().tolist() == [2.0, 1.0, -1.0]
    gate.output_mask.mask.assign([True, False, True])
    assert gate(ones(1, 3)).numpy().tolist() == [[6.0, 0.0, 0.0]]
    normalization.gamma.assign([4.0, 1.0, -1.0])
    assert gate(ones(1, 3)).numpy().tolist() == [[12.0, 0.0, 0.0]]


def test_input_mask_by_eye():
    dense = layers.Dense(2, kernel_initializer="ones")
    dense.build((None, 3))
    mask = ChannelMask(3)
    gate = ChannelGate(dense, mask=False, input_masks={"_kernel:0": mask})
    mask.mask.assign([True, False, False])
    assert gate(np.array([[1.0, 10.0, np.float32(100)]])).numpy().tolist() == [[1, 1]]
    assert gate.gate is None and gate.output_mask is None


def make(kind):
    """A built layer of a gated type and an input for it."""
    spatial = 3 if "3D" in kind else 1 if "1D" in kind else 2
    x = np.random.default_rng(0).normal(size=(2, *[5] * spatial, 4)).astype("float32")
    if "Depthwise" in kind:
        layer = layers.__dict__[kind](2, depth_multiplier=3, bias_initializer="ones")
    elif "Conv" in kind:
        layer = layers.__dict__[kind](6, 2, bias_initializer="ones")
    elif kind == "Dense":
        layer = layers.Dense(6, bias_initializer="ones")
    else:
        layer = layers.BatchNormalization(beta_initializer="ones")
    layer.build(x.shape)
    return layer, x


KINDS = sorted({each.__name__ for each in GATED_TYPES})


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_closes_exactly_its_channels(kind):
    layer, x = make(kind)
    expected = layer(x).numpy()
    gate = ChannelGate(layer)
    np.testing.assert_allclose(gate(x).numpy(), expected, rtol=1e-6, atol=1e-6)
    closed = np.arange(gate.num_channels) % 2 == 1
    gate.output_mask.mask.assign(~closed)
    received = gate(x).numpy()
    assert not received[..., closed].any()
    np.testing.assert_allclose(
        received[..., ~closed], expected[..., ~closed], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_has_its_own_variables_back_after_a_call(kind):
    layer, x = make(kind)
    gate = ChannelGate(layer)
    before = [id(v) for v in layer.variables]
    gate(x)
    with pytest.raises((ValueError, tf.errors.OpError)):
        gate(x[..., :1])
    assert [id(v) for v in layer.variables] == before
    assert all(isinstance(v, keras.Variable) for v in layer.variables)
    assert not any(isinstance(v, tf.Tensor) for v in vars(layer).values())


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_survives_serialization(kind):
    layer, x = make(kind)
    gate = ChannelGate(layer)
    twin = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(gate)
    )
    assert type(twin.layer) is type(layer) and twin.name == gate.name
    twin(x)
    shapes = [{v.name: tuple(v.shape) for v in each.variables} for each in (gate, twin)]
    assert shapes[0] == shapes[1]
    assert not (gate.get_config().keys() ^ twin.get_config().keys())


def test_order_of_the_variables_does_not_depend_on_who_made_the_mask():
    layer, _ = make("Dense")
    own, twin = ChannelGate(layer), layers.Dense(6)
    twin.build((None, 4))
    given = ChannelGate(twin, mask=ChannelMask(6, name="output_mask"))
    assert [v.name for v in own.variables] == [v.name for v in given.variables]


def test_gradient_reaches_the_gate_and_not_what_is_closed():
    layer, x = make("Conv2D")
    gate = ChannelGate(layer)
    gate.output_mask.mask.assign(np.arange(6) != 2)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(gate(x) ** 2)
    slope, kernel = tape.gradient(loss, [gate.gate.value, layer.kernel.value])
    assert slope[2] == 0 and np.all(np.delete(slope.numpy(), 2) != 0)
    assert not kernel.numpy()[..., 2].any() and kernel.numpy()[..., 1].any()


def test_trainable_variables():
    layer, _ = make("BatchNormalization")
    gate = ChannelGate(layer)
    assert [v.name for v in gate.trainable_variables] == ["gamma", "beta"]
    assert {v.name for v in gate.non_trainable_variables} >= {"base", "mask"}
    layer, _ = make("Dense")
    names = {v.name for v in ChannelGate(layer).trainable_variables}
    assert names == {"kernel", "bias", "gate"}


def test_statistics_and_losses_of_the_layer_inside_work():
    normalization = layers.BatchNormalization(
        gamma_regularizer=keras.regularizers.L2(1.0)
    )
    normalization.build((None, 2))
    gate = ChannelGate(normalization)
    gate(np.array([[0.0, 2.0], [4.0, 2.0]], "float32"), training=True)
    assert normalization.moving_mean.numpy()[0] == pytest.approx(0.02)
    assert len(gate.losses) == 1 and float(gate.losses[0]) == 2.0


def test_looks_like_the_layer_inside():
    layer, x = make("Conv2D")
    gate = ChannelGate(layer)
    assert gate.name == layer.name
    assert gate.compute_output_shape(x.shape) == layer.compute_output_shape(x.shape)
    assert gate.dtype_policy == layer.dtype_policy


def test_mixed_precision_keeps_masters_in_float32():
    layer = layers.Conv2D(4, 3, dtype="mixed_float16")
    layer.build((None, 5, 5, 3))
    gate = ChannelGate(layer)
    assert gate.gate.dtype == "float32"
    assert gate(ones(1, 5, 5, 3)).dtype == "float16"


def test_other_layers_are_refused():
    with pytest.raises(ValueError, match="`layer` must be one of"):
        ChannelGate(layers.LayerNormalization())
