"""Layers whose `call` computes with sizes that are open are looked into, too."""

import checker
import keras
import numpy as np
import pytest
from keras import layers, ops
from own import Chain, Own, around, check_own, register

import tfprune
from tfprune.graph.any_size import _BATCH, _LENGTH
from tfprune.graph.call import Tensor
from tfprune.graph.shapes import closed_shapes


@register
class Tokens(Own):
    """An image as a sequence of patches, behind a token for each sample."""

    def __init__(self, width=8, spread="tile", **kwargs):
        super().__init__(width, **kwargs)
        self.spread = spread
        self.patches = layers.Conv2D(width, 2, 2, name="patches")
        self.mix = layers.Dense(width, "relu", name="mix")

    def build(self, shape):
        self.patches.build(shape)
        self.mix.build((None, None, self.width))
        self.token = self.add_weight(shape=(1, 1, self.width), name="token")

    def compute_output_shape(self, shape):
        return (shape[0], 1 + shape[1] * shape[2] // 4, self.width)

    def call(self, x):
        x = self.patches(x)
        batch = ops.shape(x)[0]
        x = ops.reshape(x, (batch, -1, self.width))
        if self.spread == "tile":
            tokens = ops.tile(self.token, (batch, 1, 1))
        else:
            tokens = ops.broadcast_to(self.token, (batch, 1, self.width))
        return self.mix(ops.concatenate([tokens, x], axis=1))

    def get_config(self):
        return {**super().get_config(), "spread": self.spread}


@register
class Windows(Own):
    """Windows of a map, folded into the batch, mixed, and put back."""

    def __init__(self, width=8, **kwargs):
        super().__init__(width, **kwargs)
        self.inner = layers.Dense(width, "relu", name="inner")
        self.outer = layers.Dense(8, name="outer")

    def call(self, x):
        batch, height, width, size = ops.shape(x)
        shape = (batch, height // 2, 2, width // 2, 2, size)
        x = ops.transpose(ops.reshape(x, shape), (0, 1, 3, 2, 4, 5))
        x = self.outer(self.inner(ops.reshape(x, (-1, 4, size))))
        folded = ops.shape(x)[0]
        batch = folded // (height * width // 4)
        x = ops.reshape(x, (batch, height // 2, width // 2, 2, 2, size))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (batch, height, width, size))

    def compute_output_shape(self, shape):
        return shape


@register
class Cached(layers.MultiHeadAttention):
    """Attention that can be given more than Keras's, and is not."""

    def call(self, query, value, attention_mask=None, cache=None):
        assert cache is None
        return super().call(query, value, attention_mask=attention_mask)


@register
class Decoder(Own):
    """Attends to what came before, with a mask for each sample."""

    def __init__(self, width=8, **kwargs):
        super().__init__(width, **kwargs)
        self.attention = Cached(4, 2, name="attention")
        self.inner = layers.Dense(width, "relu", name="inner")
        self.outer = layers.Dense(8, name="outer")

    def build(self, shape):
        self.attention.build(shape, shape)
        self.inner.build(shape)
        self.outer.build((*shape[:-1], self.width))

    def compute_output_shape(self, shape):
        return shape

    def call(self, x):
        batch, steps, _ = ops.shape(x)
        mask = ops.arange(steps)[:, None] >= ops.arange(steps)[None]
        mask = ops.broadcast_to(mask, (batch, steps, steps))
        x = x + self.attention(query=x, value=x, attention_mask=mask, cache=None)
        return x + self.outer(self.inner(x))


def _sequence(*own, steps=6):
    inputs = layers.Input((steps, 5))
    x = layers.Dense(8, "relu", name="a")(inputs)
    for layer in own:
        x = layer(x)
    x = layers.GlobalMaxPooling1D()(layers.Dense(6, name="b")(x))
    return checker.randomize(keras.Model(inputs, layers.Dense(3, name="logits")(x)))


@pytest.mark.parametrize("spread", ["tile", "broadcast_to"])
def test_a_token_for_each_sample(spread):
    inputs = layers.Input((6, 6, 3))
    x = layers.Dense(6, "relu", name="a")(Tokens(10, spread, name="own")(inputs))
    x = layers.Dense(3, name="logits")(layers.GlobalAveragePooling1D()(x))
    model = checker.randomize(keras.Model(inputs, x))
    small = check_own(model, "own/patches", "own/token", "own/mix", "a")
    for size in (1, 3, _BATCH):
        x = np.random.default_rng(size).normal(size=(size, 6, 6, 3))
        masks = tfprune.Masks({})
        assert len(small(x)) == size
        same = tfprune.compact(model, masks)
        assert checker.relative_error(model(x), same(x)) <= 1e-5


def test_windows_in_the_batch():
    check_own(around(Windows(12, name="own")), "own/inner")


@pytest.mark.parametrize("steps", [6, None])
def test_masks_for_each_sample_and_arguments_that_are_none(steps):
    model = _sequence(Decoder(12, name="own"), steps=steps)
    small = check_own(model, "a", "own/inner")
    assert small.input_shape == (None, steps, 5)
    same = tfprune.compact(model, tfprune.Masks({}))
    for size in (1, 3, _BATCH):
        for length in (1, 9, _LENGTH) if steps is None else (steps,):
            x = np.random.default_rng(size).normal(size=(size, length, 5))
            assert checker.relative_error(model(x), same(x)) <= 1e-5
            assert len(small(x)) == size


@register
class Placed(Own):
    """Numbers of places, looked up and counted with."""

    def __init__(self, width=8, **kwargs):
        super().__init__(width, **kwargs)
        self.places = layers.Embedding(300, 8, name="places")
        self.inner = layers.Dense(width, "relu", name="inner")
        self.outer = layers.Dense(8, name="outer")

    def build(self, shape):
        self.places.build((shape[1],))
        self.inner.build(shape)
        self.outer.build((*shape[:-1], self.width))

    def call(self, x):
        numbers = ops.arange(ops.shape(x)[1])
        x = x + self.places(numbers) + ops.cast(numbers, "float32")[None, :, None]
        return x + self.outer(self.inner(x))

    def compute_output_shape(self, shape):
        return shape


def test_numbers_of_places_of_an_open_length():
    check_own(_sequence(Placed(12, name="own"), steps=None), "a", "own/inner")


def test_constants_of_an_open_length_keep_a_layer_whole():
    @register
    class Backwards(Placed):
        def call(self, x):
            numbers = ops.arange(ops.shape(x)[1], dtype="float32")
            return super().call(x + ops.flip(numbers)[:, None])

    @register
    class Longer(Placed):
        def call(self, x):
            return super().call(x) * ops.shape(x)[1]

    for kind in (Backwards, Longer):
        check_own(_sequence(kind(name="odd"), steps=None), "b", skipped=["odd"])


@pytest.mark.parametrize("masked", [False, True])
def test_sequences_of_two_open_lengths_keep_a_layer_whole(masked):
    """Also if one of them comes with a mask, which has to be as long as it is."""

    @register
    class Crossed(Decoder):
        def build(self, shape):
            super().build(shape[0])

        def call(self, several):
            x, y, *weights = several
            mask = ops.arange(ops.shape(x)[1])[:, None] >= ops.arange(ops.shape(y)[1])
            for each in weights:
                x = x * each[:, :, None]
            x = x + self.attention(query=x, value=y, attention_mask=mask[None])
            return x + self.outer(self.inner(x))

        def compute_output_shape(self, shapes):
            return shapes[0]

    inputs = [layers.Input((None, 8)), layers.Input((None, 8))]
    inputs += [layers.Input((None,))] * masked
    x = layers.Dense(6, "relu", name="b")(Crossed(name="odd")(inputs))
    x = layers.Dense(3, name="logits")(layers.GlobalMaxPooling1D()(x))
    model = checker.randomize(keras.Model(inputs, x))
    check_own(model, "b", skipped=["odd"])


def test_parts_of_one_size_only_keep_a_layer_whole():
    @register
    class Gathered(Chain):
        def call(self, x, training=None):
            rows = ops.arange(ops.shape(x)[0])
            return super().call(ops.take(x, rows, axis=0), training)

        def compute_output_shape(self, shape):
            return (*shape[:-1], self.out)

    check_own(around(Gathered(name="odd")), "b", skipped=["odd"])


def test_parts_that_cannot_be_made_again_keep_a_layer_whole():
    class Rolled(layers.Layer):
        def __init__(self, filters=8, **kwargs):
            super().__init__(**kwargs)
            self.conv = layers.Conv2D(filters, 1, name="conv")

        def build(self, shape):
            self.conv.build(shape)

        def call(self, x):
            y = self.conv(x)
            return y if ops.shape(x)[0] is None else ops.roll(y, ops.shape(x)[0], -1)

        def compute_output_shape(self, shape):
            return (*shape[:-1], 8)

        def get_config(self):
            return {**super().get_config(), "made": "up"}

    @register
    class Holding(Own):
        def __init__(self, width=8, **kwargs):
            super().__init__(width, **kwargs)
            self.conv = layers.Conv2D(width, 1, name="conv")
            self.odd = Rolled(name="odd")

        def call(self, x):
            return self.odd(ops.relu(self.conv(x)))

    model = around(Holding(name="own"))
    assert "neither anew nor of parts" in tfprune.Graph(model).skipped["own"]
    check_own(model, "b", skipped=["own"])


def test_what_a_layer_says_of_its_shape_counts_where_its_call_does_not_run():
    class Odd(layers.Layer):
        def call(self, x):
            raise NotImplementedError

        def compute_output_shape(self, shape):
            return (shape[0], None if shape[0] is None else 3 * shape[0], None)

    x = keras.Input((4,))
    node = Odd()(x)._keras_history.operation._inbound_nodes[0]
    found = closed_shapes(node, [(None, None, None)], {id(x): Tensor(x.shape)})
    assert found == [[None, 6, 224]]
