"""`compact(reinitialize=True)`: the control that is trained from scratch."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from own import Own, Residual, around, register

import tfprune


@register
class Projected(Own):
    """dense - matmul with a weight of its own, and one that is there from the start."""

    def __init__(self, width=8, **kwargs):
        super().__init__(width, **kwargs)
        self.dense = layers.Dense(width, activation="relu", name="dense")
        self.ready = self.add_weight(shape=(), initializer="ones", name="ready")

    def build(self, shape):
        self.dense.build(shape)
        self.down = self.add_weight(
            (self.width, shape[-1]), keras.initializers.HeNormal(), name="down"
        )

    def call(self, x):
        return self.ready * ops.matmul(self.dense(x), self.down)

    def compute_output_shape(self, shape):
        return shape


def control_of(model):
    graph = tfprune.Graph(model)
    masks = tfprune.select(graph, "magnitude", scope={"*": 0.5})
    control = tfprune.compact(model, masks, reinitialize=True)
    plain = tfprune.compact(model, masks)
    assert [v.shape for v in control.weights] == [v.shape for v in plain.weights]
    return control, plain


def test_weights_of_ones_own_are_drawn_by_their_own_initializer():
    model = around(Projected(64, name="own"), channels=32)
    control, plain = control_of(model)
    table = control.get_layer("own").get_layer("down")
    assert isinstance(table.embeddings_initializer, keras.initializers.HeNormal)
    values = table.embeddings.numpy()
    assert not np.array_equal(
        values, plain.get_layer("own").get_layer("down").embeddings
    )
    assert values.std() == pytest.approx(np.sqrt(2 / len(values)), rel=0.1)
    assert control.get_layer("own").get_layer("ready").embeddings.numpy() == 1
    again = keras.models.clone_model(control)
    assert np.abs(again.get_layer("own").get_layer("down").embeddings).max() > 0


def test_weights_of_a_layer_that_cannot_be_made_again_are_drawn_as_large():
    own = Residual(name="own")
    model = around(own)
    own.get_build_config = None
    control, plain = control_of(model)
    new, old = (x.get_layer("own").get_layer("gamma") for x in (control, plain))
    assert not np.array_equal(new.embeddings, old.embeddings)
    assert new.embeddings.numpy().std() == pytest.approx(
        own.gamma.numpy().std(), rel=0.9
    )


@pytest.mark.parametrize("attention", ["MultiHeadAttention", "GroupQueryAttention"])
def test_attention_is_drawn_anew(attention):
    heads = (4, 2) if attention == "GroupQueryAttention" else (2,)
    layer = getattr(layers, attention)(*([4, *heads] if len(heads) > 1 else [2, 4]))
    inputs = keras.Input((6, 8))
    x = layers.Dense(8)(inputs)
    model = keras.Model(inputs, layers.Dense(3)(layer(x, x)))
    control, plain = control_of(model)
    for new, old in zip(control.weights, plain.weights, strict=True):
        assert np.any(new.numpy() != old.numpy()) or not np.any(old.numpy()), new.path


def test_width_is_scaled_around_them():
    inputs = keras.Input((6, 8))
    x = layers.Dense(8)(inputs)
    x = Projected(16)(layers.MultiHeadAttention(2, 4)(x, x))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    half = tfprune.scale_width(model, 0.5)
    x = np.random.default_rng(0).normal(size=(4, 6, 8))
    assert np.abs(half(x)).max() > 0


@pytest.mark.parametrize("draw", [False, True])
def test_arrays_as_initializers(draw, tmp_path):
    """An embedding that begins with vectors of words, the usual way to write it."""
    table = np.random.default_rng(0).normal(2, 3, size=(50, 16)).astype("float32")
    given = keras.initializers.Constant(table)
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(50, 16, embeddings_initializer=given, name="table")(inputs)
    x = layers.Dense(4, bias_initializer=keras.initializers.Constant(np.ones(4)))(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))
    graph = tfprune.Graph(model)
    masks = tfprune.select(graph, "magnitude", scope={"table": 0.5})
    small = tfprune.compact(model, masks, reinitialize=draw)
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    found = loaded.get_layer("table").embeddings.numpy()
    assert found.shape == (50, 8)
    np.testing.assert_array_equal(found, small.get_layer("table").embeddings)
    if draw:
        assert abs(found.mean() - 2) < 0.5 and abs(found.std() - 3) < 0.5
    narrow = tfprune.scale_width(model, 0.5)
    assert narrow.get_layer("table").embeddings.shape == (50, 8)
    whole = tfprune.strip(model).get_layer("table").embeddings_initializer
    np.testing.assert_array_equal(whole.value, table)


@register
class Placed(Own):
    """x + a table of places, drawn by a function, + one that is given as an array."""

    def build(self, shape):
        places = shape[1:]
        self.drawn = self.add_weight(
            places, lambda shape, dtype=None: keras.random.normal(shape), name="drawn"
        )
        given = keras.initializers.Constant(np.ones((1, *places)))
        self.given = self.add_weight((1, *places), given, name="given")
        self.dense = layers.Dense(shape[-1], name="inside")
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x) + self.drawn + self.given


def test_what_draws_weights_of_ones_own_can_be_saved(tmp_path):
    inputs = keras.Input((5, 4))
    x = Placed()(layers.Dense(8, name="before")(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalMaxPooling1D()(x)))
    small = tfprune.prune(model, 0.4)
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
    np.testing.assert_array_equal(loaded(x), small(x))
    assert loaded.count_params() < model.count_params()
