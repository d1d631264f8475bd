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
