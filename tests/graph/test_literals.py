"""Arrays and raw variables in functional graphs: one row per way of using them."""

import checker
import keras
import numpy as np
import pytest
import tensorflow as tf
from invariants import check_costs, random_masks
from keras import layers, ops
from table import Table, conv, head, image

import tfprune
from tfprune.surgery import has_gates

TABLE = Table()
RANDOM = np.random.default_rng(7)


def _values(*shape):
    return RANDOM.uniform(0.5, 1.5, shape).astype("float32")


KINDS = {
    "array": lambda values: values,
    "tensor": tf.constant,
    "keras_variable": keras.Variable,
    "tf_variable": tf.Variable,
}


def _between(function):
    inputs = image()
    return head(inputs, conv(function(conv(inputs)), 6, "conv2"))


for name, kind in KINDS.items():
    TABLE.add(
        f"scale_{name}",
        lambda kind=kind: _between(lambda x: x * kind(_values(8))),
        "conv",
        "conv2",
    )
    TABLE.add(
        f"shift_{name}",
        lambda kind=kind: _between(lambda x: ops.tanh(ops.add(kind(_values(1, 8)), x))),
        "conv",
        "conv2",
    )


@TABLE.row("conv", "conv2")
def _literals_on_other_axes_stay():
    # As long as the channel axis, and along another one.
    return _between(lambda x: x * keras.Variable(_values(8, 1)) + _values(8, 8, 8))


@TABLE.row("conv", "conv2")
def _several_literals():
    limits = keras.Variable(-_values(8)), tf.constant(_values(1, 1, 8))
    return _between(lambda x: ops.where(x > 0.3, x / limits[1], limits[0]))


@TABLE.row("conv", "matmul", "conv2", wrap=False)
def _matmul_with_a_variable():
    kernel, bias = keras.Variable(_values(8, 10) - 1), keras.Variable(_values(10))
    return _between(lambda x: ops.relu(ops.matmul(x, kernel) + bias))


@TABLE.row("conv", wrap=False)
def _einsum_with_a_tensor():
    kernel = tf.constant(_values(8, 5, 2) - 1)
    return head(
        inputs := image(),
        layers.Reshape((8, 8, 10))(ops.einsum("bhwc,cde->bhwde", conv(inputs), kernel)),
    )


@TABLE.row("conv2", keeps=["conv"], skipped=["matmul"])
def _array_in_a_product_is_kept_and_listed():
    return _between(lambda x: ops.matmul(x, _values(8, 10) - 1))


@pytest.mark.parametrize("name", TABLE.names)
def test_row(name):
    TABLE.check(name)


def test_models_share_no_variable():
    kernel = keras.Variable(_values(8, 10))
    before = kernel.numpy()
    model = checker.randomize(_between(lambda x: ops.matmul(x, kernel)))
    graph = tfprune.Graph(model)
    masks = tfprune.select(graph, "magnitude", scope={"*": 0.5})
    small, masked = tfprune.compact(model, masks), tfprune.apply_masks(model, masks)
    values = []
    for twin in (masked, small):
        (node,) = twin.get_layer("conv2")._inbound_nodes
        (node,) = node.parent_nodes
        values.append(node.arguments.args[1])
    assert isinstance(values[0], keras.Variable)
    assert np.count_nonzero(values[0].numpy()) == 4 * 5
    assert tuple(values[1].shape) == (4, 5)
    assert np.array_equal(kernel.numpy(), before)
    assert not has_gates(model)


def test_variable_used_twice():
    # A checker from outside cannot zero what Keras does not show.
    kernel = keras.Variable(_values(8, 8) - 1)
    inputs = image()
    x = ops.tanh(ops.matmul(conv(inputs), kernel))
    x = ops.tanh(ops.matmul(x, kernel))
    model = checker.randomize(head(inputs, conv(x, 6, "conv2")))
    graph = tfprune.Graph(model)
    assert [(group.name, group.size) for group in graph.groups][0] == ("conv", 8)
    masks = random_masks(graph)
    small, masked = tfprune.compact(model, masks), tfprune.apply_masks(model, masks)
    outputs = [
        checker.outputs_of(x, checker.make_inputs(model)) for x in (masked, small)
    ]
    assert checker.relative_error(*outputs) <= 1e-5
    check_costs(model, small, masks)
    assert tfprune.read_masks(masked) == masks


def test_constants_and_literals():
    kernel = keras.Variable(_values(8, 6) - 1)
    inputs = image()
    x = layers.BatchNormalization(name="bn")(conv(inputs, activation=None))
    x = ops.matmul(ops.relu(x * _values(8)), kernel)
    model = checker.randomize(head(inputs, conv(x, 6, "conv2")))
    bn = model.get_layer("bn")
    bn.gamma.assign(np.where(np.arange(8) < 4, 0, bn.gamma))
    for fold in (False, True):
        small = tfprune.compact(model, fold=fold)
        pair = [
            checker.outputs_of(m, checker.make_inputs(model)) for m in (model, small)
        ]
        assert checker.relative_error(*pair) <= 1e-5
    assert small.get_layer("conv").filters < 8
