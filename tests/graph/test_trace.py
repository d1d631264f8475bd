"""Models of every build: nested, shared, tied, many inputs and outputs, open sizes."""

import checker
import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import block, check, conv, head, image
from invariants import check_all, fingerprint, random_masks
from keras import layers, ops

import tfprune

# Nested models ------------------------------------------------------------------


def test_nested_functional():
    inputs = image()
    x = block(8, 3)(inputs)
    model = keras.Model(inputs, head(conv(6, "conv")(x)))
    graph, _, small = check(model, "block/conv", "block/bn", "conv")
    assert [g.name for g in graph.groups] == ["block/conv", "conv"]
    assert isinstance(small.get_layer("block"), keras.Model)


def test_nested_twice_deep():
    inner = keras.Sequential(
        [image(), conv(8, "conv"), layers.BatchNormalization(name="bn")], name="inner"
    )
    middle_input = image()
    x = conv(6, "conv")(inner(middle_input))
    middle = keras.Model(middle_input, x, name="middle")
    model = keras.Sequential([image(), middle, layers.Flatten(), layers.Dense(3)])
    _, masks, small = check(model, "middle/inner/conv", "middle/conv")
    kept = int(masks["middle/inner/conv"].sum())
    inner = small.get_layer("middle").get_layer("inner")
    assert inner.get_layer("conv").filters == kept


def test_nested_sequential_called_twice_at_different_sizes():
    shared = keras.Sequential(
        [layers.Input((None, None, 3)), conv(8, "conv"), layers.MaxPooling2D(2)],
        name="shared",
    )
    inputs = image(8)
    x, y = shared(inputs), shared(layers.UpSampling2D()(inputs))
    outputs = layers.Concatenate()([head(x, "a"), head(y, "b")])
    model = keras.Model(inputs, layers.Dense(2, name="logits")(outputs))
    check(model, "shared/conv")
    dense = {row.path: row.macs for row in tfprune.cost(model).layers}
    assert dense["shared/conv"] == (64 + 256) * 9 * 3 * 8


def test_shared_backbone_of_two_inputs():
    backbone = block(8, 3, "backbone")
    a, b = image(name="a"), image(name="b")
    x = layers.Subtract()([backbone(a), backbone(b)])
    check(keras.Model([a, b], head(conv(6, "conv")(x))), "backbone/conv", "conv")


def test_shared_backbone_on_pruned_and_plain_channels_keeps_what_it_reads():
    backbone = block(3, 3, "backbone")
    inputs = image()
    x = backbone(backbone(inputs))
    model = keras.Model(inputs, head(conv(6, "conv")(x)))
    check(model, "conv", keeps=["backbone/conv"])


def test_nested_model_with_dicts_inside_and_out():
    a, b = image(name="a"), image(name="b")
    x, y = conv(8, "left")(a), conv(6, "right")(b)
    nested = keras.Model({"a": a, "b": b}, {"x": x, "y": y}, name="nested")
    one, two = image(), image()
    outputs = nested({"a": one, "b": two})
    x = layers.Concatenate()([outputs["y"], outputs["x"]])
    model = keras.Model([one, two], head(conv(6, "conv")(x)))
    check(model, "nested/left", "nested/right", "conv")


@pytest.mark.filterwarnings("ignore:.* structure of `inputs`")
def test_nested_model_called_with_more_than_its_inputs():
    a, b = layers.Input((6,), name="b"), layers.Input((7,), name="a")
    x = layers.Concatenate()([layers.Dense(8, name="left")(a), b])
    nested = keras.Model({"b": a, "a": b}, x, name="nested")
    inputs = layers.Input((4,))
    sizes = {"c": 5, "b": 6, "a": 7}
    given = {k: layers.Dense(n, "relu", name=k)(inputs) for k, n in sizes.items()}
    model = keras.Model(inputs, layers.Dense(3, name="logits")(nested(given)))
    _, masks, small = check(model, "a", "b", "nested/left")
    left = small.get_layer("nested").get_layer("left")
    assert left.kernel.shape[0] == masks["b"].sum()


@pytest.mark.parametrize("beside", [False, True])
def test_nested_model_of_a_list_called_with_a_dict(beside):
    a, b = layers.Input((6,), name="z"), layers.Input((7,), name="a")
    x, y = layers.Dense(8, name="left")(a), layers.Dense(5, name="right")(b)
    nested = keras.Model([a, b], layers.Concatenate()([x, y]), name="nested")
    inputs = layers.Input((4,))
    one = layers.Dense(6, "relu", name="one")(inputs)
    given = {"z": one, "a": layers.Dense(7, "relu", name="two")(inputs)}
    x = nested(given | {"m": one} if beside else given)
    model = keras.Model(inputs, layers.Dense(3, name="logits")(x))
    graph, masks, small = check(model, "one", "two", "nested/left", "nested/right")
    left = small.get_layer("nested").get_layer("left")
    assert left.kernel.shape[0] == masks["one"].sum()


def test_nested_model_called_with_training_false():
    backbone = block(8, 3, "backbone")
    inputs = image()
    x = backbone(inputs, training=False)
    model = keras.Model(inputs, head(conv(6, "conv")(x)))
    _, masks, small = check(model, "backbone/conv", "conv")
    for twin in (small, tfprune.apply_masks(model, masks), tfprune.prune_wrap(model)):
        (node,) = twin.get_layer("backbone")._inbound_nodes[-1:]
        assert node.arguments.kwargs["training"] is False


def test_one_output_of_a_nested_model_is_unused():
    inputs = image()
    x = conv(8, "used")(inputs)
    nested = keras.Model(inputs, [x, conv(6, "unused")(x)], name="nested")
    other = image()
    model = keras.Model(other, head(conv(6, "conv")(nested(other)[0])))
    check(model, "nested/used", "conv")


def test_truncated_model_shares_layers_with_a_longer_one():
    inputs = image()
    x = conv(8, "a")(inputs)
    y = conv(6, "b")(x)
    long = keras.Model(inputs, head(conv(6, "c")(y)))
    short = keras.Model(inputs, layers.Dense(2, name="d")(head(y)))
    before = fingerprint(long)
    check(short, "a", "b")
    after = fingerprint(long)
    assert before["variables"] == after["variables"]
    assert before["nodes"] == after["nodes"]


# Shared layers ------------------------------------------------------------------


def test_layer_shared_between_branches():
    inputs = image()
    shared = conv(8, "shared")
    x, y = conv(6, "a")(inputs), conv(6, "b")(inputs)
    x = layers.Concatenate()([shared(x), shared(y)])
    graph, masks, _ = check(keras.Model(inputs, head(conv(6, "c")(x))), "a", "b", "c")
    # What the shared layer reads has to be the same channels in both branches.
    assert {"a", "b"} in [set(group.layers) for group in graph.groups]
    assert "shared" in graph.layer_masks(masks)


def test_shared_layer_with_one_use_on_the_input():
    inputs = image()
    shared = conv(8, "shared")
    x = layers.Add()([shared(inputs), shared(conv(3, "a")(inputs))])
    model = keras.Model(inputs, head(conv(6, "b")(x)))
    check(model, "shared", "b", keeps=["a"])


def test_shared_activation_does_not_tie_its_uses():
    inputs = image()
    relu = layers.ReLU(name="relu")
    x = relu(layers.Conv2D(8, 3, name="a")(inputs))
    x = relu(layers.Conv2D(8, 3, name="b")(x))
    graph, _, _ = check(keras.Model(inputs, head(x)), "a", "b")
    assert len(graph.groups) == 2


def test_shared_reshape_at_two_widths():
    inputs = layers.Input((4,))
    reshape = layers.Reshape((-1, 4), name="reshape")
    x = reshape(layers.Dense(8, "relu", name="a")(inputs))
    y = reshape(layers.Dense(16, "relu", name="b")(inputs))
    x = layers.Concatenate(axis=1)([x, y])
    x = layers.Dense(6, "relu", name="c")(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalMaxPooling1D()(x)))
    check(model, "c")


def test_layer_tied_across_nested_models():
    tied = conv(8, "tied")

    def nested(name):
        inputs = image()
        return keras.Model(inputs, layers.BatchNormalization()(tied(inputs)), name=name)

    inputs = image()
    x = layers.Add()([nested("one")(inputs), nested("two")(inputs)])
    model = keras.Model(inputs, head(conv(6, "c")(x)))
    _, _, small = check(model, "one/tied", "c")
    one, two = (small.get_layer(name).get_layer("tied") for name in ("one", "two"))
    assert one is two


def test_recurrent_layer_that_goes_on_from_its_own_state():
    a, b = layers.Input((4, 3), name="a"), layers.Input((4, 3), name="b")
    shared = layers.LSTM(8, return_state=True, name="lstm")
    _, *states = shared(a)
    x, *_ = shared(b, initial_state=states)
    check(keras.Model([a, b], layers.Dense(2, name="logits")(x)), "lstm")


def test_attention_shared_by_one_sequence_and_two():
    a, b = layers.Input((4, 6), name="a"), layers.Input((5, 6), name="b")
    shared = layers.MultiHeadAttention(4, 2, name="attention")
    x = shared(layers.Dense(6, "relu", name="first")(a), a)
    x = shared(x, b, key=layers.Dense(6, name="key")(b))
    x = layers.Dense(2, name="logits")(layers.GlobalAveragePooling1D()(x))
    check(keras.Model([a, b], x), "attention")


def test_reshape_shared_by_maps_and_sequences():
    inputs = image()
    shared = layers.Reshape((-1,))
    x = conv(8, "a", strides=4)(inputs)
    y = layers.Conv1D(6, 3, name="b")(layers.Reshape((64, 3))(inputs))
    x, y = shared(x), shared(y)
    graph, *_ = check(
        keras.Model(inputs, layers.Dense(2)(layers.Concatenate()([x, y]))), "a", "b"
    )
    assert len(graph.groups) == 2


def test_batch_normalization_shared_by_two_branches():
    inputs = image()
    shared = layers.BatchNormalization(name="bn")
    x, y = shared(conv(6, "a")(inputs)), shared(conv(6, "b")(inputs))
    x = layers.Concatenate()([x, y])
    graph, _, _ = check(keras.Model(inputs, head(conv(6, "c")(x))), "a", "b", "bn")
    assert {"a", "b", "bn"} in [set(group.layers) for group in graph.groups]


def test_tied_embedding_and_transposed_use():
    tokens = layers.Input((6,), dtype="int32")
    embedding = layers.Embedding(10, 8, name="embedding")
    x = layers.Dense(8, "relu", name="dense")(embedding(tokens))
    scores = ops.matmul(x, ops.transpose(embedding.embeddings))
    model = checker.randomize(keras.Model(tokens, scores))
    graph = tfprune.Graph(model)
    assert not graph.groups or check_all(model)


# Inputs and outputs -------------------------------------------------------------


def test_inputs_and_outputs_as_dicts():
    a, b = image(name="a"), layers.Input((4,), name="b")
    x = layers.Concatenate()([layers.Flatten()(conv(8, "conv")(a)), b])
    x = layers.Dense(10, "relu", name="dense")(x)
    outputs = {"z": layers.Dense(2, name="z")(x), "a": layers.Dense(3, name="y")(x)}
    model = keras.Model({"b": b, "a": a}, outputs)
    _, _, small = check(model, "conv", "dense", keeps=["z", "y"])
    assert small(checker.make_inputs(model)).keys() == {"a", "z"}


def test_nested_structure_of_inputs_and_outputs():
    a, b, c = image(), layers.Input((4,)), image()
    x = layers.Add()([conv(8, "one")(a), conv(8, "two")(c)])
    y = layers.Dense(8, "relu", name="dense")(b)
    z = layers.Multiply()([layers.GlobalAveragePooling2D()(x), y])
    outputs = (layers.Dense(2, name="p")(z), {"q": [layers.Dense(3, name="q")(z)]})
    model = keras.Model([a, {"b": (b, c)}], outputs)
    check(model, "one", "two", "dense")


def test_output_in_the_middle_is_kept_whole():
    inputs = image()
    x = conv(8, "a")(inputs)
    y = conv(6, "b")(x)
    model = keras.Model(inputs, [y, head(conv(4, "c")(y))])
    check(model, "a", "c", keeps=["b"])


def test_input_is_also_an_output():
    inputs = image()
    model = keras.Model(inputs, [inputs, head(conv(8, "a")(conv(8, "b")(inputs)))])
    check(model, "a", "b")


def test_same_tensor_is_two_outputs():
    inputs = image()
    x = head(conv(8, "a")(conv(8, "b")(inputs)))
    check(keras.Model(inputs, [x, x]), "a", "b")


def test_input_that_nothing_reads():
    a, b = image(name="a"), image(name="b")
    model = keras.Model([a, b], head(conv(8, "x")(conv(8, "y")(a))))
    check(model, "x", "y")


def test_optional_input():
    class AddIfGiven(layers.Layer):
        def call(self, x, bias=None):
            return x if bias is None else x + bias

    a, b = image(name="a"), layers.Input((1, 1, 4), name="b", optional=True)
    x = AddIfGiven(name="add")(conv(8, "x")(conv(8, "y")(a)), layers.Dense(8)(b))
    model = keras.Model({"a": a, "b": b}, head(x))
    inner = checker.randomize(model)
    small = tfprune.compact(inner, random_masks(tfprune.Graph(inner)))
    inputs = checker.make_inputs(inner)
    checker.check_slices(inner, small, inputs)
    assert small.input["b"]._keras_history.operation.optional


def test_open_sizes():
    inputs = layers.Input((None, None, 3))
    x = layers.SeparableConv2D(8, 3, activation="relu", name="a")(inputs)
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3, name="dw")(x))
    model = keras.Model(inputs, head(conv(6, "b")(x)))
    graph, _, small = check(model, "a", "dw", "b", wrap=False)
    assert graph.assumed_shapes
    assert small.input_shape == (None, None, None, 3)


def test_length_that_an_unknown_layer_leaves_open():
    class Pairs(layers.Layer):
        def build(self, shape):
            self.shift = self.add_weight(shape=(2 * shape[-1],), name="shift")

        def call(self, x):
            pairs = ops.reshape(x, (ops.shape(x)[0], -1, 2 * x.shape[-1]))
            return ops.cumsum(pairs + self.shift, axis=-1)

    inputs = layers.Input((12, 5))
    x = layers.Dense(4)(Pairs(name="pairs")(inputs))
    x = layers.Dense(4)(Pairs(name="more")(x))
    assert x.shape == (None, None, 4)
    x = layers.Dense(3)(layers.GlobalAveragePooling1D()(x))
    assert tfprune.cost(keras.Model(inputs, x)).macs == 6 * 10 * 4 + 3 * 8 * 4 + 12


def test_sizes_that_a_model_cannot_take():
    """224 are assumed where a size is open, unless there are but 100."""
    inputs = layers.Input((None, 6))
    x = layers.Dense(8, "relu", name="a")(inputs)
    x = x + ops.convert_to_tensor(np.ones((1, 64, 8), "float32"))
    x = layers.Dense(3)(layers.GlobalAveragePooling1D()(layers.Dense(8, name="b")(x)))
    model = checker.randomize(keras.Model(inputs, x))
    graph = tfprune.Graph(model)
    assert list(graph.assumed_shapes.values()) == [(None, 64, 6)]
    small = tfprune.compact(model, random_masks(graph))
    inputs = np.random.default_rng(0).normal(size=(4, 64, 6))
    checker.check_slices(model, small, inputs)


def test_open_sequence_length():
    inputs = layers.Input((None,), dtype="int32")
    x = layers.Embedding(10, 8, name="a")(inputs)
    x = layers.Conv1D(6, 3, padding="causal", activation="relu", name="b")(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalMaxPooling1D()(x)))
    check(model, "a", "b")


def test_static_batch_size():
    inputs = image(batch_size=3)
    x = ops.reshape(conv(8, "a")(inputs), (3, 64, 8))
    x = layers.Dense(6, "relu", name="b")(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    _, _, small = check(model, "a", "b")
    assert small.input_shape == (3, 8, 8, 3)


def test_constant_of_an_operation():
    inputs = image()
    x = conv(8, "a")(inputs) + np.ones((1, 8, 8, 1), "float32")
    x = layers.Concatenate()([x, ops.zeros_like(x)])
    check(keras.Model(inputs, head(conv(6, "b")(x))), "b")


def test_data_format_channels_first():
    kwargs = {"data_format": "channels_first", "padding": "same"}
    # Keras adds biases to the wrong axis where an image is as wide as its channels.
    inputs = layers.Input((3, 11, 11))
    x = layers.Conv2D(8, 3, name="a", **kwargs)(inputs)
    x = layers.ReLU()(layers.BatchNormalization(axis=1, name="bn")(x))
    x = layers.ZeroPadding2D(1, data_format="channels_first")(x)
    x = layers.Conv2D(6, 3, activation="relu", name="b", **kwargs)(x)
    y = layers.Conv2D(6, 1, name="c", **kwargs)(inputs)
    x = layers.Concatenate(axis=1)([x, layers.ZeroPadding2D(1, "channels_first")(y)])
    x = layers.GlobalAveragePooling2D("channels_first")(x)
    model = keras.Model(inputs, layers.Dense(3)(x))
    check(model, "a", "bn", "b", "c")


def test_data_format_channels_first_flattened():
    kwargs = {"data_format": "channels_first", "activation": "relu"}
    inputs = layers.Input((3, 7, 7))
    x = layers.Conv2D(8, 3, name="a", **kwargs)(inputs)
    x = layers.Flatten(data_format="channels_first")(x)
    x = layers.Dense(6, "relu", name="b")(x)
    check(keras.Model(inputs, layers.Dense(3)(x)), "a", "b")


def test_reshape_that_is_shared_with_what_has_no_channels():
    inputs = layers.Input((8, 8, 3))
    shared = layers.Reshape((64, 8), name="shared")
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="a")(inputs)
    x = layers.Conv1D(8, 1, name="b")(shared(x))
    x = layers.Lambda(
        lambda x: tf.reshape(tf.sort(x), (-1, 8, 8, 8)), (8, 8, 8), name="sorted"
    )(x)
    x = layers.Conv1D(4, 1, name="c")(shared(x))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
    graph, _, _ = check_all(checker.randomize(model))
    assert [group.name for group in graph.groups] == ["c"]


def test_a_rule_that_does_not_cover_a_layer_is_not_said_to_be_none():
    inputs = keras.Input((5, 8))
    attention = layers.MultiHeadAttention(2, 4, name="attention")
    x, _ = attention(inputs, inputs, return_attention_scores=True)
    skipped = tfprune.Graph(keras.Model(inputs, layers.Dense(3)(x))).skipped
    assert "the rule for MultiHeadAttention does not cover" in skipped["attention"]
    x = layers.RNN([layers.LSTMCell(4), layers.LSTMCell(4)], name="stacked")(inputs)
    skipped = tfprune.Graph(keras.Model(inputs, layers.Dense(3)(x))).skipped
    assert "no rule for RNN" in skipped["stacked"]
