"""Costs: by hand for every layer type, as TensorFlow's profiler counts, under masks."""

import checker
import keras
import numpy as np
import pytest
from invariants import random_masks
from keras import layers, ops

import tfprune
from tfprune import reports
from tfprune.callbacks import PruneToBudget


def macs_of(shape, layer) -> int:
    inputs = layers.Input(shape)
    return tfprune.cost(keras.Model(inputs, layer(inputs))).macs


def _of_itself(attention):
    return lambda x: attention([x, x])


BY_HAND = {
    "dense": ((3,), lambda: layers.Dense(4), 3 * 4),
    "dense_sequence": ((5, 3), lambda: layers.Dense(4), 5 * 3 * 4),
    "dense_image": ((5, 6, 3), lambda: layers.Dense(4), 30 * 3 * 4),
    "conv1d": ((8, 3), lambda: layers.Conv1D(4, 3), 6 * 3 * 3 * 4),
    "conv1d_causal": ((8, 3), lambda: layers.Conv1D(4, 3, padding="causal"), 8 * 36),
    "conv2d": ((8, 8, 3), lambda: layers.Conv2D(4, 3, padding="same"), 64 * 9 * 12),
    "conv2d_valid": ((8, 8, 3), lambda: layers.Conv2D(4, (1, 3)), 48 * 3 * 12),
    "conv2d_strided": ((9, 9, 3), lambda: layers.Conv2D(4, 3, 2), 16 * 9 * 12),
    "conv2d_dilated": (
        (9, 9, 3),
        lambda: layers.Conv2D(4, 3, dilation_rate=2),
        25 * 9 * 12,
    ),
    "conv2d_grouped": ((6, 6, 4), lambda: layers.Conv2D(8, 3, groups=2), 16 * 9 * 16),
    "conv3d": ((4, 4, 4, 2), lambda: layers.Conv3D(3, 2), 27 * 8 * 6),
    "depthwise": ((6, 6, 4), lambda: layers.DepthwiseConv2D(3), 16 * 9 * 4),
    "depthwise_multiplier": (
        (6, 6, 4),
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
        16 * 9 * 8,
    ),
    "depthwise_1d": ((6, 4), lambda: layers.DepthwiseConv1D(3), 4 * 3 * 4),
    "separable": (
        (6, 6, 4),
        lambda: layers.SeparableConv2D(5, 3, depth_multiplier=2),
        16 * (9 * 8 + 8 * 5),
    ),
    "transposed": (
        (4, 4, 3),
        lambda: layers.Conv2DTranspose(5, 3, 2),
        16 * 9 * 3 * 5,
    ),
    "transposed_1d": ((4, 3), lambda: layers.Conv1DTranspose(5, 3), 4 * 3 * 3 * 5),
    "attention": ((7, 5), lambda: _of_itself(layers.Attention()), 7 * 7 * (5 + 5)),
    "additive_attention": (
        (7, 5),
        lambda: _of_itself(layers.AdditiveAttention()),
        7 * 7 * (5 + 5),
    ),
    "embedding": ((4,), lambda: layers.Embedding(10, 5), 0),
    "normalization": ((4, 4, 3), lambda: layers.BatchNormalization(), 0),
    "pooling": ((4, 4, 3), lambda: layers.MaxPooling2D(2), 0),
    "activation": ((4, 4, 3), lambda: layers.ReLU(), 0),
}


@pytest.mark.parametrize("name", sorted(BY_HAND))
def test_by_hand(name):
    shape, make, expected = BY_HAND[name]
    assert macs_of(shape, make()) == expected


def test_params_flops_and_rows():
    inputs = layers.Input((4, 4, 3))
    x = layers.Conv2D(5, 3, name="conv")(inputs)
    x = layers.BatchNormalization(name="bn")(x)
    model = keras.Model(inputs, layers.Dense(2, name="out")(layers.Flatten()(x)))
    cost = tfprune.cost(model)
    assert cost.params == model.count_params() == 9 * 15 + 5 + 20 + 40 + 2
    assert cost.macs == 4 * 9 * 15 + 40 and cost.flops == 2 * cost.macs
    rows = {row.path: row for row in cost.layers}
    assert rows["conv"].output_shape == (None, 2, 2, 5)
    assert (rows["conv"].type, rows["conv"].params) == ("Conv2D", 140)
    assert [row.path for row in cost.layers] == ["conv", "bn", "flatten", "out"]
    assert sum(row.macs for row in cost.layers) == cost.macs
    assert sum(row.params for row in cost.layers) == cost.params


def test_masks_by_hand():
    inputs = layers.Input((4, 4, 3))
    x = layers.Conv2D(4, 3, name="a")(inputs)
    x = layers.Conv2D(5, 2, name="b")(x)
    model = keras.Model(inputs, layers.GlobalMaxPooling2D()(x))
    masks = {"a": np.array([True, False, True, True])}
    cost = tfprune.cost(model, masks)
    assert cost.macs == 4 * 9 * 3 * 3 + 1 * 4 * 3 * 5
    assert cost.params == 27 * 3 + 3 + 4 * 15 + 5


def test_shared_layer_counts_every_use_and_its_weights_once():
    inputs = layers.Input((8,))
    shared = layers.Dense(8, name="shared")
    model = keras.Model(inputs, layers.Dense(2, name="out")(shared(shared(inputs))))
    cost = tfprune.cost(model)
    assert cost.macs == 2 * 64 + 16
    assert cost.params == 72 + 18
    assert [row.macs for row in cost.layers] == [128, 16]


def test_one_sample_is_counted_whatever_the_batch_size():
    inputs = layers.Input((8,), batch_size=5)
    assert tfprune.cost(keras.Model(inputs, layers.Dense(3)(inputs))).macs == 24


def test_open_sizes_are_assumed_and_said():
    inputs = layers.Input((None, None, 3), name="image")
    graph = tfprune.Graph(keras.Model(inputs, layers.Conv2D(2, 1)(inputs)))
    assert tfprune.cost(graph).macs == 224 * 224 * 6
    assert graph.assumed_shapes == {"image": (None, 224, 224, 3)}


def test_gates_cost_nothing(make_residual):
    model = make_residual(8)
    assert tfprune.cost(tfprune.prune_wrap(model)) == tfprune.cost(model)


def test_masks_of_another_model_are_refused(make_residual, make_vgg):
    masks = random_masks(tfprune.Graph(make_vgg()))
    with pytest.raises(ValueError, match="belong to another model"):
        tfprune.cost(make_residual(8), masks)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_cost_of_the_compacted_model(make_residual, seed):
    model = checker.randomize(make_residual(8))
    graph = tfprune.Graph(model)
    masks = random_masks(graph, fraction=0.2 + 0.3 * seed, seed=seed)
    small = tfprune.compact(model, masks)
    assert tfprune.cost(graph, masks) == tfprune.cost(small)
    assert tfprune.cost(graph, masks).layers == tfprune.cost(small).layers
    assert tfprune.cost(small).params == small.count_params()


def _mixed():
    inputs = layers.Input((9, 9, 3))
    x = layers.Conv2D(8, 3, 2, padding="same", name="a")(inputs)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2)(layers.BatchNormalization()(x))
    x = layers.SeparableConv2D(6, 3, padding="same")(layers.ReLU()(x))
    x = layers.Concatenate()([x, x[..., :2]])
    x = layers.Reshape((9, 8))(x)
    x = layers.Conv1D(5, 3, padding="causal")(x)
    x = layers.Dense(7)(x)
    return keras.Model(inputs, layers.Dense(4)(ops.reshape(x, (-1, 63))))


def test_equals_the_profiler_before_and_after():
    model = checker.randomize(_mixed())
    assert tfprune.cost(model).macs == checker.profiled_macs(model)
    small = tfprune.prune(model, 0.5)
    assert tfprune.cost(small).macs == checker.profiled_macs(small)
    assert checker.profiled_macs(small) <= 0.5 * checker.profiled_macs(model)


def test_equals_the_profiler_on_a_residual_network(make_residual):
    model = make_residual(8)
    assert tfprune.cost(model).macs == checker.profiled_macs(model)


def _windows(x):
    x = ops.reshape(x, (-1, 2, 3, 2, 3, 8))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 9, 8))


def _whole(x):
    x = ops.transpose(ops.reshape(x, (-1, 2, 2, 3, 3, 8)), (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, 6, 6, 8))


@keras.saving.register_keras_serializable("tfprune_tests")
class _Windows(layers.Layer):
    def call(self, x):
        return _windows(x)


@keras.saving.register_keras_serializable("tfprune_tests")
class _Whole(layers.Layer):
    def call(self, x):
        return _whole(x)


FOLDED = {
    "windows": (_windows, _whole),
    "layers of operations": (_Windows(), _Whole()),
    "places": (
        lambda x: ops.reshape(x, (-1, 8)),
        lambda x: ops.reshape(x, (-1, 6, 6, 8)),
    ),
    "lambda": (
        layers.Lambda(lambda x: ops.reshape(x, (-1, 8)), output_shape=(8,)),
        layers.Lambda(lambda x: ops.reshape(x, (-1, 6, 6, 8)), output_shape=(6, 6, 8)),
    ),
    "another axis first": (
        lambda x: ops.transpose(x, (1, 0, 2, 3)),
        lambda x: ops.transpose(x, (1, 0, 2, 3)),
    ),
    "another axis first, in one": (
        lambda x: ops.transpose(ops.reshape(x, (-1, 36, 8)), (1, 0, 2)),
        lambda x: ops.reshape(ops.transpose(x, (1, 0, 2)), (-1, 6, 6, 8)),
    ),
}


# A `Lambda` that is told its output's shape is believed about a batch of a known size.
@pytest.mark.parametrize(
    ("name", "batch"),
    [(name, None) for name in FOLDED]
    + [(name, 3) for name in FOLDED if name != "lambda"],
)
def test_what_is_folded_into_the_batch_is_counted(name, batch):
    fold, unfold = FOLDED[name]
    inputs = layers.Input((6, 6, 4), batch_size=batch)
    inner = keras.Sequential([layers.Dense(8, name="b"), layers.Dense(8, name="c")])
    x = fold(layers.Dense(8, name="a")(inputs))
    x = unfold(layers.Dense(8, name="d")(inner(x)))
    x = layers.Conv2D(2, 6, name="e")(x)
    model = checker.randomize(keras.Model(inputs, x))
    counted = tfprune.cost(model).macs
    assert counted == 36 * (4 * 8 + 3 * 8 * 8 + 8 * 2)
    masks = random_masks(tfprune.Graph(model))
    small = tfprune.compact(model, masks)
    assert tfprune.cost(model, masks) == tfprune.cost(small)
    assert tfprune.cost(small).macs < counted


@pytest.mark.parametrize("batch", [None, 3])
def test_a_model_made_for_any_batch_in_one_of_a_fixed_one(batch):
    inputs = layers.Input((6, 6, 4), batch_size=batch)
    inner = keras.Sequential([layers.Input((4,)), layers.Dense(8), layers.Dense(4)])
    x = ops.reshape(inner(ops.reshape(inputs, (-1, 4))), (-1, 6, 6, 4))
    model = keras.Model(inputs, layers.Dense(2)(x))
    assert tfprune.cost(model).macs == 36 * (4 * 8 + 8 * 4 + 4 * 2)


def test_what_is_the_same_for_any_batch_is_counted_once():
    inputs = layers.Input((5, 8))
    table = ops.zeros_like(inputs[:1, :, :4]) + np.ones((1, 5, 4), "float32")
    constant = layers.Dense(3)(ops.reshape(ops.sum(table, axis=0), (5, 4)))
    model = keras.Model(inputs, layers.Dense(3)(inputs) + constant)
    assert tfprune.cost(model).macs == 5 * 8 * 3 + 5 * 4 * 3


def test_product_of_two_tensors_is_counted():
    a, b = layers.Input((4, 6)), layers.Input((6, 5))
    assert tfprune.cost(keras.Model([a, b], ops.matmul(a, b))).macs == 4 * 6 * 5


def test_a_budget_of_flops_says_what_it_is_without():
    cells = [layers.LSTMCell(8), layers.LSTMCell(8)]
    model = keras.Sequential(
        [
            keras.Input((6, 4)),
            layers.RNN(cells, name="rnn"),
            layers.Dense(8, activation="relu"),
            layers.Dense(2),
        ]
    )
    assert tfprune.cost(model).uncounted == ("rnn",)
    assert tfprune.cost(model).macs == 8 * 8 + 8 * 2
    table = reports.inspect_table(tfprune.Graph(model))
    macs = {column.header: [*column.cells] for column in table.columns}["MACs"]
    assert "not counted" in str(macs[0])
    with pytest.warns(UserWarning, match="are not: rnn .'rnn': no rule for RNN"):
        tfprune.prune(model, 0.5)
    model = tfprune.prune_wrap(model)
    model.compile("sgd", "mse")
    prune = PruneToBudget("magnitude", tfprune.Budget(flops_reduction=0.5))
    with pytest.warns(UserWarning, match="are not: rnn"):
        model.fit(np.zeros((4, 6, 4)), np.zeros((4, 2)), verbose=0, callbacks=[prune])


def test_products_without_a_rule_are_said():
    inputs = keras.Input((6, 4))
    x = ops.tensordot(layers.Dense(4)(inputs), np.ones((4, 3), "float32"), axes=1)
    assert tfprune.cost(keras.Model(inputs, x)).uncounted == ("tensordot",)
    table = layers.Embedding(10, 8)
    table.build()
    table.enable_lora(2)
    inputs = keras.Input((6,))
    assert tfprune.cost(keras.Model(inputs, table(inputs))).uncounted == ()


def test_heads_of_a_length_that_is_known():
    """Keras leaves open what its layers were told in `output_shape`."""
    inputs = keras.Input((16, 32))
    heads = layers.EinsumDense("abc,cde->abde", output_shape=(None, 4, 8))(inputs)
    x = layers.EinsumDense("abcd,cde->abe", output_shape=(None, 8))(heads)
    assert tfprune.cost(keras.Model(inputs, x)).macs == 16 * 32 * 32 + 16 * 32 * 8


def test_weights_are_all_counted_and_nothing_is_said(recwarn):
    inputs = keras.Input((6, 4))
    model = keras.Model(
        inputs, layers.LSTM(2)(layers.LSTM(8, return_sequences=True)(inputs))
    )
    tfprune.prune(model, 0.5)
    assert tfprune.cost(model).uncounted == ()
    assert not [each for each in recwarn if "counted" in str(each.message)]
