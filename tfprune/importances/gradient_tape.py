"""What the data loss says of the channels of layers (TensorFlow's gradient tape)."""

import contextlib

import keras
import tensorflow as tf

from tfprune.layers import GATED_TYPES, ChannelGate
from tfprune.layers.swapping import replaced
from tfprune.losses import at_best_scale, loss_of, unscaled


def output_products(model: keras.Model, members: list):
    """Returns a function of a batch: output times gradient, per sample and channel.

    Removing a channel from one sample changes its loss by `-sum(gradient * output)`
    over the places of the map, in first order.

    Args:
        model: compiled model.
        members: the layers to look at. A fused activation comes after the output.

    Returns:
        A compiled function `(x, y, sample_weight) -> {path: [(products, places), ...]}`
        with an entry for each call of a layer: the products summed over places, float32
        of shape `(batch, channels)`, for the loss of each sample, and the number of
        places.
    """

    @tf.function(reduce_retracing=True, autograph=False)
    def products(scale, x, y, sample_weight):
        with tf.GradientTape() as tape, _recorded(members, tape) as outputs:
            predictions = model(x, training=False)
            loss = loss_of(model, x, y, predictions, sample_weight)
            # The mean over the batch, as it is the loss that Keras takes.
            size = tf.shape(tf.nest.flatten(predictions)[0])[0]
            loss *= tf.cast(size, loss.dtype) * tf.cast(scale, loss.dtype)
        gradients = tape.gradient(
            loss, outputs, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return {
            member.path: [
                _summed(unscaled(gradient, scale), output, member.axis)
                for gradient, output in zip(
                    gradients[member.path], outputs[member.path], strict=True
                )
            ]
            for member in members
        }

    return at_best_scale(model, products)


def _summed(gradient, output, axis: int):
    product = gradient * tf.cast(output, tf.float32)
    places = [n for n in range(1, len(output.shape)) if n != axis % len(output.shape)]
    count = tf.reduce_prod(tf.gather(tf.shape(output), places)) if places else 1
    return tf.reduce_sum(product, places), tf.cast(count, tf.float32)


@contextlib.contextmanager
def _recorded(members: list, tape):
    """Records what layers put out while the context lasts, as `{path: [tensor]}`."""
    outputs = {member.path: [] for member in members}
    with contextlib.ExitStack() as stack:
        for member in members:
            is_gate = isinstance(member.layer, ChannelGate)
            layer = member.layer.layer if is_gate else member.layer
            hook = _hooked(layer, outputs[member.path], tape)
            stack.enter_context(hook)
        yield outputs


def _hooked(layer, outputs: list, tape):
    fused = isinstance(layer, GATED_TYPES) and "activation" in vars(layer)
    name = "activation" if fused else "call"
    function = getattr(layer, name)

    def before_activation(x):
        outputs.append(x)
        tape.watch(x)
        return x if function is None else function(x)

    def call(*args, **kwargs):
        output = function(*args, **kwargs)
        outputs.append(output)
        tape.watch(output)
        return output

    return replaced(layer, name, before_activation if fused else call)
