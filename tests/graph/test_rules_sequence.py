"""Sequences: embeddings with masks, recurrent layers, wrappers, products of tensors."""

import checker
import keras
import numpy as np
import pytest
from invariants import random_masks
from keras import layers, ops
from table import Table

import tfprune

TABLE = Table()


def tokens():
    return layers.Input((6,), dtype="int32")


def steps(width=4):
    return layers.Input((6, width))


def head(inputs, x):
    if len(x.shape) == 3:
        x = layers.GlobalMaxPooling1D()(x)
    x = layers.Dense(7, "tanh", name="last")(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(x))


@TABLE.row("embedding", "dense", "last")
def _mask_reaches_a_pooling():
    inputs = tokens()
    x = layers.Embedding(10, 8, mask_zero=True, name="embedding")(inputs)
    x = layers.Dense(6, "relu", name="dense")(x)
    return head(inputs, layers.GlobalAveragePooling1D()(x))


@TABLE.row("embedding", "last")
def _mask_reaches_a_recurrent_layer():
    inputs = tokens()
    x = layers.Embedding(10, 8, mask_zero=True, name="embedding")(inputs)
    return head(inputs, layers.LSTM(5, name="lstm")(x))


@TABLE.row("dense", "last")
def _masking():
    inputs = steps()
    x = layers.Masking()(inputs)
    x = layers.Dense(8, "relu", name="dense")(x)
    return head(inputs, layers.GRU(5)(x))


@TABLE.row("dense", "last")
def _simple_rnn():
    inputs = steps()
    x = layers.Dense(8, "relu", name="dense")(inputs)
    return head(inputs, layers.SimpleRNN(5)(x))


@TABLE.row("dense", "last")
def _lstm_stack():
    inputs = steps()
    x = layers.Dense(8, "relu", name="dense")(inputs)
    x = layers.LSTM(6, return_sequences=True)(x)
    return head(inputs, layers.LSTM(5, go_backwards=True)(x))


@TABLE.row("dense", "last")
def _recurrent_layer_with_a_given_state():
    inputs = steps()
    x = layers.Dense(8, "relu", name="dense")(inputs)
    state = layers.Dense(5, name="state")(layers.GlobalMaxPooling1D()(x))
    return head(inputs, layers.GRU(5)(x, initial_state=state))


@TABLE.row("dense", "last")
def _recurrent_layer_that_returns_its_state():
    inputs = steps()
    x = layers.Dense(8, "relu", name="dense")(inputs)
    x, h, c = layers.LSTM(5, return_sequences=True, return_state=True)(x)
    return head(inputs, layers.Concatenate()([layers.GlobalMaxPooling1D()(x), h, c]))


@TABLE.row("dense", "last")
def _bidirectional_and_time_distributed():
    inputs = steps()
    x = layers.Dense(8, "relu", name="dense")(inputs)
    x = layers.Bidirectional(layers.GRU(5, return_sequences=True))(x)
    return head(inputs, layers.TimeDistributed(layers.Dense(6, "relu"))(x))


@TABLE.row("tokens", "last")
def _time_distributed_over_steps_that_are_masked():
    inputs = layers.Input((6,), dtype="int32")
    x = layers.Embedding(9, 8, mask_zero=True, name="tokens")(inputs)
    for each in (layers.PReLU(), layers.Reshape((4, 2)), layers.Flatten()):
        x = layers.TimeDistributed(each)(x)
    return head(inputs, layers.GRU(5)(x))


@TABLE.row("dense", "last")
def _attention():
    inputs = steps()
    x = layers.Dense(8, "relu", name="dense")(inputs)
    y = layers.MultiHeadAttention(2, 4)(x, x)
    return head(inputs, layers.Dense(6, name="mix")(layers.Add()([x, y])))


@TABLE.row("dense", "last")
def _einsum_dense():
    inputs = steps()
    x = layers.Dense(8, "relu", name="dense")(inputs)
    return head(inputs, layers.EinsumDense("abc,cd->abd", (None, 5))(x))


@TABLE.row("value", "last")
def _scores_of_two_tensors():
    inputs = steps()
    query, key = layers.Dense(8)(inputs), layers.Dense(8)(inputs)
    value = layers.Dense(8, name="value")(inputs)
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 1))) / 8**0.5
    return head(inputs, ops.matmul(ops.softmax(scores), value))


def _heads(number, inputs, name=None):
    return layers.EinsumDense("abc,cde->abde", (6, number, 4), name=name)(inputs)


def _from_heads(inputs, x):
    return head(inputs, layers.EinsumDense("abde,def->abf", (6, 8))(x))


@TABLE.row("last")
def _attention_of_heads():
    inputs = steps()
    query, key, value = (_heads(5, inputs, name) for name in ("query", "key", "value"))
    mask = np.tril(np.ones((6, 6), bool))[None, None]
    x = ops.dot_product_attention(query, key, value, mask=mask, is_causal=True)
    return _from_heads(inputs, x)


@TABLE.row("last", skipped=["dot_product_attention"])
def _attention_of_heads_that_share_keys():
    inputs = steps()
    query, key, value = (_heads(size, inputs) for size in (4, 2, 2))
    return _from_heads(inputs, ops.dot_product_attention(query, key, value, scale=0.3))


@TABLE.row("last")
def _attention_of_heads_with_a_bias_each():
    inputs = steps()
    query, key, value = (_heads(3, inputs) for _ in range(3))
    bias = np.random.default_rng(0).normal(size=(1, 3, 6, 6)).astype("float32")
    return _from_heads(inputs, ops.dot_product_attention(query, key, value, bias))


@TABLE.row("last")
def _dot():
    inputs = steps()
    pair = [layers.Dense(8)(inputs), layers.Dense(8)(inputs)]
    return head(inputs, layers.Dot((2, 2))(pair))


@TABLE.row("query", "value")
def _additive_attention():
    inputs = steps()
    query = layers.BatchNormalization()(layers.Dense(8, name="query")(inputs))
    key, value = layers.Dense(8)(inputs), layers.Dense(6, name="value")(inputs)
    return head(inputs, layers.AdditiveAttention()([query, value, key]))


@TABLE.row("value", keeps=["query"])
def _additive_attention_without_a_scale():
    inputs = steps()
    query, key = layers.Dense(8, name="query")(inputs), layers.Dense(8)(inputs)
    value = layers.Dense(6, name="value")(inputs)
    return head(inputs, layers.AdditiveAttention(use_scale=False)([query, value, key]))


@TABLE.row("over", "last")
def _recurrent_layer_on_every_step():
    inputs = layers.Input((4, 5, 3))
    x = layers.TimeDistributed(layers.LSTM(6), name="over")(inputs)
    return head(inputs, x)


@TABLE.row("over", "last")
def _recurrent_layer_of_two_directions_on_every_step():
    inputs = layers.Input((4, 5, 3))
    x = layers.Bidirectional(layers.GRU(5))
    return head(inputs, layers.TimeDistributed(x, name="over")(inputs))


@TABLE.row("last", keeps=["rnn"])
def _recurrent_layer_with_an_activation_that_mixes():
    inputs = steps()
    x = layers.SimpleRNN(5, activation="softmax", return_sequences=True, name="rnn")
    return head(inputs, x(inputs))


@TABLE.row("last", keeps=["lstm"])
def _recurrent_layer_with_gates_that_mix():
    inputs = steps()
    x = layers.LSTM(5, recurrent_activation="softmax", name="lstm")(inputs)
    return head(inputs, x)


@TABLE.row("last", keeps=["lstm"])
def _convolutional_recurrent_layer_with_an_activation_that_mixes():
    inputs = layers.Input((3, 8, 2))
    x = layers.ConvLSTM1D(5, 3, activation="softmax", name="lstm")(inputs)
    return head(inputs, x)


ATTENTIONS = {
    "heads": lambda **given: layers.MultiHeadAttention(4, 4, name="attention", **given),
    "groups": lambda: layers.GroupQueryAttention(4, 4, 2, name="attention"),
}


def _attended(layer, **given):
    inputs = steps()
    x = layers.Dense(8, "relu", name="dense")(inputs)
    x = layer(x, x, **given)
    return head(inputs, layers.Reshape((6, -1))(x))


for _kind in ATTENTIONS:

    def _mask_of_all_heads(kind=_kind):
        mask = np.tril(np.ones((1, 1, 6, 6), bool))
        return _attended(ATTENTIONS[kind](), attention_mask=mask)

    def _mask_of_each_head(kind=_kind):
        mask = np.random.default_rng(0).uniform(size=(1, 4, 6, 6)) < 0.7
        return _attended(ATTENTIONS[kind](), attention_mask=mask)

    TABLE.add(f"{_kind}_that_share_a_mask", _mask_of_all_heads, "dense", "last")
    TABLE.add(f"{_kind}_with_a_mask_each", _mask_of_each_head, "dense", "last")


@TABLE.row("last", keeps=["dense", "attention"], skipped=["attention"])
def _attention_with_features_on_two_axes():
    return _attended(ATTENTIONS["heads"](output_shape=(4, 6)))


@pytest.mark.parametrize("name", TABLE.names)
def test_row(name):
    TABLE.check(name)


def test_heads_of_attention_go_together():
    graph = tfprune.Graph(_attention_of_heads())
    masks = tfprune.select(graph, "magnitude", scope={"query": 0.4})
    small = tfprune.compact(graph, masks)
    shapes = [small.get_layer(x).kernel.shape for x in ("query", "key", "value")]
    assert shapes == [(4, 3, 4)] * 3


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_heads_go_where_they_have_one_mask(kind):
    name = f"{kind}_that_share_a_mask"
    build = {k: v[0] for k, v in TABLE._rows.items()}
    free, kept = (
        tfprune.Graph(build[each]()) for each in (name, f"{kind}_with_a_mask_each")
    )
    own = {group.name for group in free.groups} - {group.name for group in kept.groups}
    assert own


def test_what_additive_attention_compares_is_alive_on_either_side():
    """The tanh of a sum: of zero and of something else is not zero."""
    inputs = steps()
    query, key = layers.Dense(8, name="query")(inputs), layers.Dense(8, name="key")
    x = layers.AdditiveAttention()([query, layers.Dense(6)(inputs), key(inputs)])
    model = checker.randomize(head(inputs, x))
    for name in ("query", "key"):
        layer = model.get_layer(name)
        values = layer.get_weights()
        layer.set_weights([each * (np.arange(8) > 3) for each in values])
        assert tfprune.read_masks(model)["query"].all()
        tfprune.compact(model)
        layer.set_weights(values)


@pytest.mark.parametrize(
    ("kind", "alter"), [("heads", "lora"), ("groups", "lora"), ("heads", "int8")]
)
def test_attention_with_other_kernels_stays_whole(kind, alter):
    model = _attended(ATTENTIONS[kind]())
    attention = model.get_layer("attention")
    if alter == "lora":
        for dense in (attention._query_dense, attention._value_dense):
            dense.enable_lora(2)
    else:
        # One, as XLA compiles each for seconds, anew in each model.
        attention._query_dense.quantize("int8")
    checker.randomize(model)
    graph = tfprune.Graph(model)
    assert "attention" in graph.skipped
    masks = random_masks(graph)
    small, masked = tfprune.compact(graph, masks), tfprune.apply_masks(graph, masks)
    x = checker.make_inputs(model)
    np.testing.assert_allclose(small(x), masked(x), atol=1e-5)
    assert small.get_layer("last").units < 7
