"""Masks on single weights, in layers of every type."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfprune
from tfprune.layers import TrainableMask, WeightMask
from tfprune.layers.kernels import kernels_of
from tfprune.surgery import set_masks

# How to make a layer of each class that has weights, and what it is called on.
SEQUENCE, IMAGE, VOLUME = (6, 4), (6, 6, 4), (6, 6, 6, 4)
MADE = {
    "AdditiveAttention": (lambda c: c(), [SEQUENCE, SEQUENCE]),
    "BatchNormalization": (lambda c: c(), IMAGE),
    "Bidirectional": (lambda c: c(layers.LSTM(3)), SEQUENCE),
    "Conv1D": (lambda c: c(5, 2), SEQUENCE),
    "Conv1DTranspose": (lambda c: c(5, 2), SEQUENCE),
    "Conv2D": (lambda c: c(5, 2), IMAGE),
    "Conv2DTranspose": (lambda c: c(5, 2), IMAGE),
    "Conv3D": (lambda c: c(5, 2), VOLUME),
    "Conv3DTranspose": (lambda c: c(5, 2), VOLUME),
    "ConvLSTM1D": (lambda c: c(3, 2), (4, 6, 2)),
    "ConvLSTM2D": (lambda c: c(3, 2), (4, 6, 6, 2)),
    "ConvLSTM3D": (lambda c: c(3, 2), (4, 6, 6, 6, 2)),
    "Dense": (lambda c: c(5), SEQUENCE),
    "DepthwiseConv1D": (lambda c: c(2), SEQUENCE),
    "DepthwiseConv2D": (lambda c: c(2), IMAGE),
    "EinsumDense": (lambda c: c("abc,cd->abd", (6, 5)), SEQUENCE),
    "Embedding": (lambda c: c(7, 5), (6,)),
    "GRU": (lambda c: c(3), SEQUENCE),
    "GroupNormalization": (lambda c: c(2), IMAGE),
    "GroupQueryAttention": (lambda c: c(3, 4, 2), [SEQUENCE, SEQUENCE]),
    "LSTM": (lambda c: c(3), SEQUENCE),
    "LayerNormalization": (lambda c: c(), SEQUENCE),
    "MultiHeadAttention": (lambda c: c(2, 3), [SEQUENCE, SEQUENCE]),
    "Normalization": (lambda c: c(), SEQUENCE),
    "PReLU": (lambda c: c(), SEQUENCE),
    "RMSNormalization": (lambda c: c(), SEQUENCE),
    "RNN": (lambda c: c([layers.GRUCell(3), layers.LSTMCell(2)]), SEQUENCE),
    "ReversibleEmbedding": (lambda c: c(7, 5), (6,)),
    "SeparableConv1D": (lambda c: c(5, 2), SEQUENCE),
    "SeparableConv2D": (lambda c: c(5, 2), IMAGE),
    "SimpleRNN": (lambda c: c(3), SEQUENCE),
    "SpectralNormalization": (lambda c: c(layers.Dense(5)), SEQUENCE),
    "TimeDistributed": (lambda c: c(layers.Conv1D(3, 2)), (3, 6, 4)),
}
# Layers whose weights cannot be masked; `Graph.skipped` says why.
SKIPPED = {
    "AdditiveAttention": "no kernels",
    "BatchNormalization": "no kernels",
    "GroupNormalization": "no kernels",
    "LayerNormalization": "no kernels",
    "Normalization": "no kernels",
    "PReLU": "no kernels",
    "RMSNormalization": "no kernels",
    "SpectralNormalization": "writes to its kernel",
}
# Run by another layer; abstract, or around code of other frameworks.
CELLS = {"GRUCell", "LSTMCell", "SimpleRNNCell", "StackedRNNCells"}
OTHERS = {"FlaxLayer", "JaxLayer", "Layer", "TFSMLayer", "TorchModuleWrapper"}
OTHERS |= {"Attention", "InputLayer", "Lambda", "Wrapper"}
# Without weights, by the beginning of their names.
WEIGHTLESS = """
Activ Adaptive Add AlphaDropout AugMix AutoContrast Average CategoryEncoding
CenterCrop Concatenate Contrast Cropping CutMix Discretization Dot Dropout ELU
Equalization Flatten Gaussian Global Hash Identity IntegerLookup LeakyReLU Masking Max
MelSpectrogram Minimum MixUp Multiply Permute Pipeline Rand ReLU Repeat Rescaling Reshape
Resizing STFT Softmax Solarization SpatialDropout StringLookup Subtract
TextVectorization UnitNormalization UpSampling ZeroPadding
""".split()


def made(name):
    """A model around a layer of this class, and inputs for it."""
    make, shapes = MADE[name]
    shapes = shapes if isinstance(shapes, list) else [shapes]
    inputs = [keras.Input(shape) for shape in shapes]
    layer = make(getattr(layers, name))
    x = layer(*inputs) if "Query" in name or "Multi" in name else None
    if x is None:
        x = layer(inputs[0] if len(inputs) == 1 else inputs)
    random = np.random.default_rng(0)
    scale = 3 if "Embedding" in name else 1
    arrays = [
        (scale * random.random((4, *shape))).astype("float32") for shape in shapes
    ]
    x = layers.Dense(2, name="logits")(layers.Flatten()(x))
    if len(inputs) == 1:
        inputs, arrays = inputs[0], arrays[0]
    return keras.Model(inputs, x), arrays


def test_every_class_is_known_here():
    """New classes in Keras fail here: add them to the table above."""
    own = inspect.getmembers(layers, inspect.isclass)
    # Some have several names: their own is the one they are known by, if it is one.
    named = {c: n for n, c in own if issubclass(c, layers.Layer)}
    names = {c.__name__ if hasattr(layers, c.__name__) else n for c, n in named.items()}
    known = {n for n in names - MADE.keys() if n.startswith(tuple(WEIGHTLESS))}
    weighted = names - known - CELLS - OTHERS
    assert weighted - MADE.keys() == set() and MADE.keys() - weighted == set()


@pytest.mark.parametrize("name", sorted(MADE))
def test_every_layer_reaches_its_sparsity_or_says_why_not(name):
    model, x = made(name)
    graph = tfprune.Graph(model, unit="weight")
    layer = model.layers[-3]
    assert type(layer) is getattr(layers, name)
    if name in SKIPPED:
        assert SKIPPED[name] in graph.skipped[layer.name]
    else:
        assert layer.name not in graph.skipped
        own = {id(v) for v in kernels_of(layer).values()}
        assert own == {
            id(v) for v in layer.weights if v.name.endswith(("kernel", "embeddings"))
        }
    gated = tfprune.prune_wrap(model, WeightMask)
    np.testing.assert_array_equal(gated(x), model(x))
    # A few steps are taken sooner than they are traced.
    gated.compile("adam", "mse", run_eagerly=True)
    prune = tfprune.callbacks.PruneToBudget(
        "magnitude",
        tfprune.Budget(sparsity=0.5),
        tfprune.schedules.OneShot(2),
        scope="uniform",
    )
    gated.fit(x, np.ones((4, 2)), epochs=3, batch_size=2, verbose=0, callbacks=[prune])
    masked = tfprune.Graph(gated, unit="weight")
    for kernel in masked.kernels.values():
        values = kernel.variable.numpy()
        assert np.count_nonzero(values == 0) == -(-values.size // 2)
    plain = tfprune.strip(gated)
    np.testing.assert_array_equal(plain(x), gated(x))
    assert tfprune.read_masks(tfprune.Graph(plain, unit="weight")) == (
        tfprune.read_masks(gated)
    )


@pytest.mark.parametrize("gate", [WeightMask, TrainableMask])
@pytest.mark.parametrize(
    "name", ["Dense", "Bidirectional", "MultiHeadAttention", "RNN"]
)
def test_saved_with_its_masks(tmp_path, gate, name):
    model, x = made(name)
    gated = tfprune.prune_wrap(model, gate)
    graph = tfprune.Graph(gated, unit="weight")
    random = np.random.default_rng(0)
    masks = {g.name: random.random(g.size) < 0.5 for g in graph.groups}
    set_masks(graph, masks)
    assert not np.array_equal(gated(x), model(x))
    gated.save(tmp_path / "gated.keras")
    loaded = keras.models.load_model(tmp_path / "gated.keras")
    np.testing.assert_array_equal(loaded(x), gated(x))
    assert tfprune.read_masks(loaded) == masks
    # What the loaded model holds at zero, training does not bring back.
    loaded.compile("adam", "mse")
    loaded.fit(x, np.ones((4, 2)), verbose=0)
    assert tfprune.read_masks(loaded) == masks
    assert tfprune.read_masks(tfprune.Graph(tfprune.strip(loaded), unit="weight")) == (
        masks
    )


def test_masked_dense_by_eye():
    dense = layers.Dense(2, kernel_initializer="ones", use_bias=False)
    dense.build((None, 3))
    gate = WeightMask(dense)
    gate.set_mask(0, np.array([[True, False], [True, True], [False, True]]))
    x = np.array([[1.0, 10.0, 100.0]], "float32")
    assert gate(x).numpy().tolist() == [[11.0, 110.0]]
    assert dense.kernel.numpy().tolist() == [[1, 0], [1, 1], [0, 1]]
    with tf.GradientTape() as tape:
        y = tf.reduce_sum(gate(x))
    assert tape.gradient(y, dense.kernel.value).numpy().tolist() == [
        [1, 0],
        [10, 10],
        [0, 100],
    ]


def test_the_users_constraint_comes_first_and_stays_the_layers_own():
    dense = layers.Dense(2, kernel_constraint="non_neg")
    dense.build((None, 2))
    gate = WeightMask(dense)
    gate.set_mask(0, np.array([[True, False], [True, True]]))
    held = dense.kernel.constraint(np.array([[-1.0, 2.0], [3.0, -4.0]], "float32"))
    assert held.numpy().tolist() == [[0, 0], [3, 0]]
    assert type(dense.kernel_constraint).__name__ == "NonNeg"
    assert layers.deserialize(layers.serialize(gate)).layer.kernel_constraint


def test_statistics_and_seeds_inside_keep_moving():
    class Block(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = layers.Dense(3)
            self.normalization = layers.BatchNormalization()
            self.dropout = layers.Dropout(0.5, seed=1)

        def build(self, shape):
            self.dense.build(shape)
            self.normalization.build((None, 3))
            self.built = True

        def call(self, x, training=None):
            x = self.normalization(self.dense(x), training=training)
            return self.dropout(x, training=training)

    block = Block()
    block.build((None, 4))
    gate = WeightMask(block)
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    mean = block.normalization.moving_mean.numpy()
    outputs = [gate(x, training=True).numpy() for _ in range(3)]
    assert not np.array_equal(block.normalization.moving_mean.numpy(), mean)
    assert not np.array_equal(outputs[0], outputs[1])


@pytest.mark.parametrize("gate", [WeightMask, TrainableMask])
def test_activity_losses_and_tied_kernels(gate):
    shared = layers.Dense(4, activity_regularizer="l2", name="shared")
    x = keras.Input((4,))
    model = keras.Model(x, shared(shared(x)))
    gated = tfprune.prune_wrap(model, gate)
    data = np.ones((2, 4), "float32")
    expected = (model(data), model.losses)
    found = (gated(data), gated.losses)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1])
    assert len(tfprune.Graph(gated, unit="weight").groups) == 1


def test_chosen_kernels_only():
    model, _ = made("LSTM")
    gated = tfprune.prune_wrap(model, WeightMask, layers=["*/recurrent_kernel"])
    kernels = tfprune.Graph(gated, unit="weight").kernels
    assert [k.gate is not None for k in kernels.values()] == [False, True, False]


def test_what_cannot_be_wrapped_is_refused():
    dense = layers.Dense(2)
    dense.build((None, 2))
    with pytest.raises(ValueError, match="kernels are \\['_kernel'\\]"):
        WeightMask(dense, kernels=["bias"])
    model = keras.Sequential([keras.Input((4,)), layers.LayerNormalization()])
    with pytest.raises(ValueError, match="no kernels to mask.*gamma, beta"):
        tfprune.prune_wrap(model, WeightMask)
    with pytest.raises(ValueError, match="names no group"):
        tfprune.prune_wrap(made("Dense")[0], WeightMask, layers=["nothing"])


class Product(layers.Layer):
    """A layer of a user's own: one kernel, read as a weight or as a variable."""

    def __init__(self, needs_variable=False, **kwargs):
        super().__init__(**kwargs)
        self.needs_variable = needs_variable

    def build(self, shape):
        self.kernel = self.add_weight((shape[-1], 8), name="kernel")

    def call(self, x):
        return ops.matmul(x, self.kernel.value if self.needs_variable else self.kernel)

    def get_config(self):
        return {**super().get_config(), "needs_variable": self.needs_variable}


def test_layers_of_ones_own_are_masked():
    model = keras.Sequential([keras.Input((10,)), Product(name="own"), layers.Dense(3)])
    graph = tfprune.Graph(model, unit="weight")
    masks = tfprune.select(graph, "magnitude", tfprune.Budget(sparsity=0.7))
    masked = tfprune.apply_masks(graph, masks)
    assert masks["own/kernel"].any() and not masks["own/kernel"].all()
    assert tfprune.read_masks(masked) == masks
    expected = np.where(masks["own/kernel"].reshape(10, 8), model.weights[0], 0)
    np.testing.assert_array_equal(tfprune.strip(masked).weights[0], expected)
    gated = tfprune.prune_wrap(model, WeightMask)
    gated.compile("sgd", "mse")
    callback = tfprune.callbacks.PruneToBudget(
        "magnitude", tfprune.Budget(sparsity=0.7)
    )
    gated.fit(np.ones((8, 10)), np.ones((8, 3)), verbose=0, callbacks=[callback])
    assert tfprune.read_masks(gated).density() == pytest.approx(0.3, abs=0.01)


def test_layers_of_ones_own_that_need_their_variable_are_kept():
    own = Product(needs_variable=True, name="own")
    model = keras.Sequential([keras.Input((10,)), own, layers.Dense(3)])
    with pytest.warns(UserWarning, match="'own' .Product. keeps all its weights"):
        gated = tfprune.prune_wrap(model, WeightMask)
    kinds = [type(layer) for layer in gated.layers]
    assert kinds == [Product, WeightMask]


class Logits(layers.Layer):
    """The scores of words, by the embedding that the model begins with."""

    def __init__(self, embedding, **kwargs):
        super().__init__(**kwargs)
        self.embedding = embedding

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.embedding.embeddings))

    def get_config(self):
        layer = keras.saving.serialize_keras_object(self.embedding)
        return {**super().get_config(), "embedding": layer}

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config.pop("embedding"))
        return cls(layer, **config)


def tied():
    words = keras.Input((7,), dtype="int32")
    embedding = layers.Embedding(12, 8, name="words")
    x = layers.Dense(8)(layers.Dense(16, activation="relu", name="d")(embedding(words)))
    return keras.Model(words, Logits(embedding, name="logits")(x))


def test_a_layer_inside_another_ones_config_stays_that_layer():
    model = tied()
    graph = tfprune.Graph(model)
    assert [group.name for group in graph.groups] == ["d"]
    assert "logits" in graph.skipped
    small = tfprune.prune(model, 0.3)
    regularizer = tfprune.regularizers.NetworkSlimming(1e-4)
    copies = [
        small,
        tfprune.prune_wrap(model),
        tfprune.prune_wrap(model, WeightMask),
        tfprune.apply_masks(model, {}),
        tfprune.regularize(model, regularizer),
        tfprune.strip(tfprune.prune_wrap(model)),
    ]
    for copy in copies:
        words = copy.get_layer("words")
        words = getattr(words, "layer", words)
        assert copy.get_layer("logits").embedding is words
    assert small.count_params() == tfprune.cost(small).params


def test_a_kernel_of_two_layers_is_kept_whole():
    graph = tfprune.Graph(tied(), unit="weight")
    assert graph.skipped == {"words/embeddings": "shared by words and logits"}
    assert [group.name for group in graph.groups] == ["d/kernel", "dense/kernel"]
