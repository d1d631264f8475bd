"""What a rebuilt model carries along: policies, flags, classes, custom layers, files."""

import checker
import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import block, check, conv, head, image
from invariants import check_all, fingerprint, random_masks
from keras import layers, ops
from own import check_own

import tfprune
from tfprune.surgery import rebuild

# What a model carries -----------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "tolerance"),
    [("mixed_bfloat16", 0.1), ("mixed_float16", 1e-2), ("float64", 1e-12)],
)
def test_dtype_policy(make_residual, policy, tolerance):
    keras.config.set_dtype_policy(policy)
    model = make_residual(8)
    _, _, small = check(model, "stem_conv", "block2_a_conv", tolerance=tolerance)
    assert all(x.dtype_policy.name == policy for x in small.layers[1:])


def test_dtype_policy_of_a_single_layer():
    inputs = image()
    x = conv(8, "half", dtype="mixed_float16")(inputs)
    x = layers.BatchNormalization(dtype="float32")(x)
    model = keras.Model(inputs, head(conv(6, "b")(x)))
    _, _, small = check(model, "half", "b", tolerance=1e-2)
    assert small.get_layer("half").compute_dtype == "float16"


def test_dtype_policy_of_models():
    inputs = layers.Input((8, 8, 3))
    keras.config.set_dtype_policy("mixed_float16")
    inner = keras.Sequential([layers.Input((8, 8, 8)), conv(6, "b")], name="inner")
    model = keras.Model(inputs, head(inner(conv(8, "a")(inputs))))
    keras.config.set_dtype_policy("float32")
    small = tfprune.prune(model, 0.3)
    for each in (small, small.get_layer("inner")):
        assert each.dtype_policy.name == "mixed_float16"


COPIES = {
    "masked": lambda model: tfprune.apply_masks(model, {}),
    "wrapped": tfprune.prune_wrap,
    "wrapped at run time": lambda model: tfprune.prune_wrap(
        model, tfprune.layers.RuntimeGate, keep_ratio=0.5
    ),
    "stripped": lambda model: tfprune.strip(tfprune.prune_wrap(model)),
    "compact": lambda model: tfprune.compact(model, fold=True),
    "faster": lambda model: tfprune.compact(model, optimize=True),
    "drawn": lambda model: tfprune.compact(model, {}, reinitialize=True),
    "half as wide": lambda model: tfprune.scale_width(model, 0.5),
}


@pytest.mark.parametrize("kind", COPIES)
def test_initializers_survive(kind):
    """Weights that are drawn anew some day are those that their user asked for."""
    inputs = image()
    x = layers.Conv2D(8, 3, kernel_initializer="he_normal", name="a")(inputs)
    x = layers.BatchNormalization(gamma_initializer="ones", name="norm")(x)
    x = conv(6, "b", kernel_initializer="he_normal")(layers.ReLU()(x))
    model = keras.Model(inputs, head(x))
    copy = COPIES[kind](model)
    found = checker.layers_by_path(copy)
    for path, layer in checker.layers_by_path(model).items():
        copied = getattr(found[path], "layer", found[path])
        for name in ("kernel_initializer", "moving_variance_initializer"):
            if hasattr(copied, name):
                assert type(getattr(copied, name)) is type(getattr(layer, name))
    # What has no config cannot be cloned.
    keras.models.clone_model(copy)


def test_frozen_flags_survive():
    backbone, other = block(8, 3, "backbone"), block(6, 8, "other")
    inputs = image()
    x = conv(6, "frozen")(other(backbone(inputs)))
    model = keras.Model(inputs, head(conv(6, "free")(x)))
    backbone.trainable = False
    other.get_layer("bn").trainable = False
    model.get_layer("frozen").trainable = False
    checker.randomize(model)
    _, masks, small = check_all(model)
    flags = {p: x.trainable for p, x in checker.layers_by_path(model).items()}
    for twin in (small, tfprune.apply_masks(model, masks), tfprune.prune_wrap(model)):
        assert {
            p: x.trainable for p, x in checker.layers_by_path(twin).items()
        } == flags
        assert twin.get_layer("backbone").trainable is False
        assert twin.get_layer("other").trainable is True


def test_frozen_whole_model_survives(make_vgg):
    model = checker.randomize(make_vgg())
    model.trainable = False
    small = tfprune.prune(model, 0.5)
    assert small.trainable is False and not small.trainable_variables


def test_random_layers_keep_their_seeds():
    inputs = image()
    x = layers.RandomFlip(seed=4)(inputs)
    x = layers.Dropout(0.5, seed=5, name="dropout")(conv(8, "a")(x))
    x = layers.GaussianNoise(0.5, seed=6)(x)
    model = keras.Model(inputs, head(conv(8, "b")(x)))
    model(checker.make_inputs(model), training=True)
    _, _, small = check(model, "a", "b")
    old, new = (m.get_layer("dropout").seed_generator for m in (model, small))
    assert np.array_equal(old.state.numpy(), new.state.numpy())


def test_model_loaded_from_a_file(make_residual, tmp_path):
    make_residual(8).save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    check(model, "stem_conv", "block1_a_conv", "block2_a_conv")


def test_sequential_without_input_layer():
    model = keras.Sequential(
        [conv(8, "a"), layers.Flatten(), layers.Dense(2, name="b")]
    )
    model.build((None, 8, 8, 3))
    check(model, "a", keeps=["b"])


def test_sequential_that_starts_with_a_model():
    model = keras.Sequential([block(8, 3), conv(6, "a"), layers.GlobalMaxPooling2D()])
    model.add(layers.Dense(2))
    check(model, "block/conv", "a")


class _Halved(keras.Model):
    """A Functional model with a training step of its own."""

    def train_step(self, data):
        x, y = data
        return super().train_step((x * 0.5, y))


def test_functional_subclass_keeps_its_class():
    inputs = image()
    model = _Halved(inputs, head(conv(8, "a")(conv(8, "b")(inputs))))
    _, masks, small = check(model, "a", "b")
    for twin in (small, tfprune.apply_masks(model, masks), tfprune.prune_wrap(model)):
        assert type(twin) is _Halved


def test_regularizers_and_constraints_survive():
    inputs = image()
    x = conv(8, "a", kernel_regularizer="l2", bias_constraint="non_neg")(inputs)
    model = keras.Model(inputs, head(conv(6, "b", kernel_constraint="max_norm")(x)))
    checker.randomize(model)
    masks = random_masks(tfprune.Graph(model))
    small = tfprune.compact(model, masks)
    wrapped = tfprune.prune_wrap(model)
    for twin in (small, tfprune.apply_masks(model, masks), tfprune.strip(wrapped)):
        assert isinstance(twin.get_layer("a").kernel.regularizer, keras.regularizers.L2)
    for twin in (small, tfprune.strip(wrapped)):
        assert isinstance(twin.get_layer("a").bias.constraint, keras.constraints.NonNeg)
        assert isinstance(
            twin.get_layer("b").kernel_constraint, keras.constraints.MaxNorm
        )
    assert len(wrapped.losses) == len(model.losses) == 1
    assert float(wrapped.losses[0]) == pytest.approx(float(model.losses[0]), rel=1e-5)


@pytest.mark.parametrize("kind", [*COPIES, "single weights", "gated twice"])
def test_what_was_set_on_variables_survives(kind):
    inputs = image()
    x = layers.Conv2D(8, 3, kernel_regularizer="l1", name="a")(inputs)
    x = layers.BatchNormalization()(x)
    model = keras.Model(inputs, head(conv(6, "b", bias_constraint="non_neg")(x)))
    kernel = model.get_layer("a").kernel
    kernel.regularizer = keras.regularizers.L2(0.1)
    kernel.constraint = keras.constraints.MaxNorm(1.0)
    model.get_layer("b").bias.constraint = None

    def kernel_gated(model):
        return tfprune.prune_wrap(model, tfprune.layers.WeightMask)

    copies = COPIES | {
        "single weights": lambda m: tfprune.strip(kernel_gated(m)),
        "gated twice": lambda m: tfprune.strip(rebuild.copy_model(kernel_gated(m))),
    }
    found = checker.layers_by_path(copies[kind](model))
    a, b = (getattr(found[name], "layer", found[name]) for name in ("a", "b"))
    assert type(a.kernel.regularizer) is keras.regularizers.L2
    assert type(a.kernel.constraint) is keras.constraints.MaxNorm
    assert b.bias.constraint is None


def test_new_weights_for_an_attention_with_lora():
    """Its config does not say so."""
    inputs, attention = layers.Input((5, 8)), layers.MultiHeadAttention(2, 4)
    model = keras.Model(inputs, attention(inputs, inputs))
    attention.query_dense.enable_lora(2)
    twin = tfprune.compact(model, {}, reinitialize=True)
    assert twin.layers[1].query_dense.lora_rank == 2


def test_a_term_made_for_one_shape_is_left_off_another():
    model = keras.Model(inputs := image(), head(conv(8, "a")(inputs)))
    kernel = model.get_layer("a").kernel
    kept = np.ones(kernel.shape, "float32")
    kernel.constraint = lambda w: w * kept
    kernel.regularizer = keras.regularizers.L2(0.1)
    with pytest.warns(UserWarning, match="constraint set on 'a/kernel' is left off"):
        small = tfprune.compact(model, {"a": np.arange(8) < 4})
    assert small.get_layer("a").kernel.constraint is None
    assert small.get_layer("a").kernel.regularizer is kernel.regularizer


# Custom layers ------------------------------------------------------------------


@keras.saving.register_keras_serializable("tfprune_tests")
class _Swish(layers.Layer):
    def call(self, x):
        return x * ops.sigmoid(x)


@keras.saving.register_keras_serializable("tfprune_tests")
class _Centered(layers.Layer):
    def call(self, x):
        return x - ops.mean(x, axis=-1, keepdims=True)


@keras.saving.register_keras_serializable("tfprune_tests")
class _Weighted(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")

    def call(self, x):
        return x * self.scale


def _around(layer):
    inputs = image()
    x = layer(conv(8, "a")(inputs))
    return checker.randomize(keras.Model(inputs, head(conv(6, "b")(conv(6, "c")(x)))))


def test_custom_elementwise_layer_passes_channels():
    check(_around(_Swish()), "a", "b", "c")


def test_custom_mixing_layer_keeps_channels():
    model = _around(_Centered(name="mix"))
    small = check_own(model, "b", "c")
    assert small.get_layer("a").filters == 8
    assert type(small.get_layer("mix")) is _Centered
    assert "reduced over the channels in 'mix/" in tfprune.Graph(model).locked["a"]


def test_custom_layer_keeps_its_class():
    model = _around(_Weighted(name="weighted"))
    _, masks, small = check(model, "a", "weighted", "b", "c")
    assert type(small.get_layer("weighted")) is _Weighted


def _shifted(faulty):
    """A layer that mixes its channels, with a config that its constructor refuses."""

    class Shifted(layers.Layer):
        def __init__(self, steps, **kwargs):
            super().__init__(**kwargs)
            if faulty == "config":
                self.steps = steps
            elif faulty == "weights":
                self.steps = layers.Dense(1)
            self.shift = steps

        def build(self, shape):
            self.bias = self.add_weight(shape=shape[1:], name="bias")

        def call(self, x):
            # The size of a batch keeps it from being taken apart.
            biases = ops.tile(self.bias[None], (ops.shape(x)[0], 1, 1, 1))
            return ops.roll(x + biases, self.shift, axis=-1)

        def get_config(self):
            if faulty == "nothing to save":
                raise NotImplementedError
            return {**super().get_config(), "computed": self.shift + 1}

    return Shifted


def test_layer_with_a_faulty_config_is_made_of_its_attributes():
    model = _around(_shifted("config")(3, name="shifted", dtype="mixed_float16"))
    masks = tfprune.select(tfprune.Graph(model), "magnitude", scope={"b": 0.5})
    for small in (tfprune.compact(model, masks), tfprune.apply_masks(model, masks)):
        old, new = (x.get_layer("shifted") for x in (model, small))
        assert new.steps == new.shift == 3
        assert new.compute_dtype == "float16"
        assert new.bias is not old.bias
        assert np.array_equal(new.bias, old.bias)


@pytest.mark.parametrize("faulty", ["no attribute", "nothing to save", "weights"])
def test_layer_that_cannot_be_made_again_is_named(faulty):
    model = _around(_shifted(faulty)(3, name="shifted"))
    masks = tfprune.select(tfprune.Graph(model), "magnitude", scope={"b": 0.5})
    before = fingerprint(model)
    with pytest.raises(ValueError, match="'shifted' cannot be rebuilt from its config"):
        tfprune.compact(model, masks)
    assert fingerprint(model) == before


def test_layer_made_with_what_keras_cannot_save(tmp_path):
    policy = keras.DTypePolicy("mixed_bfloat16")
    model = _around(layers.Identity(name="same", dtype=policy))
    with pytest.raises(NotImplementedError):
        model.save(tmp_path / "model.keras")
    small = tfprune.prune(model, 0.3)
    assert small.get_layer("same").dtype_policy == policy
    small.save(tmp_path / "small.keras")


def _twice_tanh(x):
    return 2 * ops.tanh(x)


class _Cubes(keras.regularizers.Regularizer):
    def __call__(self, x):
        return ops.sum(ops.abs(x) ** 3)

    def get_config(self):
        return {}


@pytest.mark.parametrize(
    "layer",
    [
        layers.LSTM(8, _twice_tanh, return_sequences=True, activity_regularizer="l2"),
        layers.GRU(8, kernel_regularizer=_Cubes(), return_sequences=True),
        layers.EinsumDense("abc,cd->abd", (6, 8), activation=_twice_tanh),
        layers.Conv1D(8, 1, activation=_twice_tanh, kernel_regularizer=_Cubes()),
    ],
)
def test_keras_layers_made_with_what_has_no_known_name(layer):
    inputs = layers.Input((6, 5))
    x = layers.Flatten()(layer(layers.Dense(5, name="a")(inputs)))
    model = checker.randomize(keras.Model(inputs, layers.Dense(2)(x)))
    small = tfprune.compact(model, random_masks(tfprune.Graph(model)))
    twin = small.get_layer(layer.name)
    assert twin.count_params() < layer.count_params()
    assert bool(twin.activity_regularizer) == bool(layer.activity_regularizer)
    assert bool(twin.variables[0].regularizer) == bool(layer.variables[0].regularizer)


def test_what_has_no_known_name_in_a_keras_layer_is_named():
    for function in (_twice_tanh, lambda x: 2 * ops.tanh(x)):
        layer = layers.RNN(layers.LSTMCell(8, function))
        model = keras.Sequential([layers.Input((6, 5)), layer])
        message = f"not know {function.__name__} by name.*register_keras"
        with pytest.raises(ValueError, match=message):
            tfprune.strip(model)


def test_terms_without_a_known_name_under_gates_and_wrappers():
    def penalty(w):
        return ops.sum(w * w)

    inputs = layers.Input((6, 5))
    x = layers.TimeDistributed(layers.Dense(8, _twice_tanh), name="a")(inputs)
    x = layers.Conv1D(8, 3, name="b")(x)
    x = layers.BatchNormalization(beta_regularizer=penalty, name="bn")(x)
    x = layers.Dense(2)(layers.Flatten()(x))
    model = checker.randomize(keras.Model(inputs, x))
    gated = tfprune.prune_wrap(model)
    masked = tfprune.apply_masks(gated, {})
    for twin in (tfprune.strip(model), tfprune.strip(gated), tfprune.strip(masked)):
        assert twin.get_layer("bn").beta.regularizer is penalty
        assert twin.get_layer("a").layer.activation is _twice_tanh


def test_activation_with_weights_beside_what_has_no_known_name_is_not_shared():
    def penalty(w):
        return ops.sum(w * w)

    layer = layers.Dense(6, layers.PReLU(), kernel_regularizer=penalty, name="a")
    model = keras.Sequential([layers.Input((5,)), layer, layers.Dense(2)])
    model(np.zeros((1, 5)))
    twin = tfprune.strip(model)
    assert twin.get_layer("a").kernel.regularizer is penalty
    assert not {id(v) for v in twin.variables} & {id(v) for v in model.variables}


def test_operation_made_with_what_keras_cannot_save(tmp_path):
    size = np.prod((4, 4, 4))
    model = _around(lambda x: ops.reshape(ops.reshape(x, (-1, size)), (-1, 4, 4, 4)))
    with pytest.raises(NotImplementedError):
        model.save(tmp_path / "model.keras")
    masks = tfprune.select(tfprune.Graph(model), "magnitude", scope={"b": 0.5})
    check_all(model, masks)
    small = tfprune.compact(model, masks)
    small.save(tmp_path / "small.keras")
    x = checker.make_inputs(model)
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    assert np.array_equal(loaded(x), small(x))


class _Applied(keras.Operation):
    """Keeps a function, which Keras cannot save, by its name, another, or another one."""

    def __init__(self, function, keep, *, name=None):
        super().__init__(name=name)
        self.keep = keep
        negated = lambda x: -function(x)  # noqa: E731
        self.applied = negated if keep == "another" else function
        if keep != "elsewhere":
            self.function = self.applied

    def call(self, x):
        return self.applied(x)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


@pytest.mark.parametrize("keep", ["as it is", "elsewhere", "another"])
def test_operation_that_keeps_a_function(keep):
    model = _around(_Applied(lambda x: ops.flip(x, axis=-1), keep))
    check_all(model, tfprune.select(tfprune.Graph(model), scope={"b": 0.5}))


def test_subclass_of_a_known_layer_is_not_trusted():
    class Doubled(layers.Dense):
        def call(self, x):
            return ops.concatenate([super().call(x)] * 2, axis=-1)

        def compute_output_shape(self, input_shape):
            return (*input_shape[:-1], 2 * self.units)

    inputs = layers.Input((4,))
    x = layers.Dense(8, "relu", name="a")(inputs)
    x = layers.Dense(8, "relu", name="b")(Doubled(6, name="doubled")(x))
    x = layers.Dense(8, "relu", name="c")(x)
    model = checker.randomize(keras.Model(inputs, layers.Dense(2)(x)))
    graph, masks, _ = check_all(model)
    assert "doubled" in graph.skipped and "a" not in graph.layer_masks(masks)


def test_lambda_that_fixes_the_width_is_opened():
    fixed = layers.Lambda(
        lambda x: ops.reshape(x, (-1, 8, 8, 2, 4))[..., 0, :], name="f"
    )
    small = check_own(_around(fixed), "a", "b", "c", saves=False)
    assert isinstance(small.get_layer("f"), keras.Model)


def test_lambda_that_cannot_be_followed_keeps_channels():
    def picked(x):
        return tf.reshape(x, (-1, 8, 8, 2, 4))[..., 0, :]

    graph, masks, _ = check_all(_around(layers.Lambda(picked, name="f")))
    assert "use those of `keras.ops`" in graph.skipped["f"]
    assert "a" not in graph.layer_masks(masks)


# The whole way ------------------------------------------------------------------


def test_pruning_twice(make_residual):
    model = checker.randomize(make_residual(16))
    once = tfprune.prune(model, 0.4)
    twice = tfprune.prune(once, 0.4)
    checker.check_slices(once, twice)
    checker.check_slices(model, twice, tolerance=np.inf)
    ratio = tfprune.cost(twice).macs / tfprune.cost(model).macs
    assert 0.3 < ratio <= 0.36


def test_training_goes_on_after_pruning(make_residual, images):
    small = tfprune.prune(checker.randomize(make_residual(8)), 0.5)
    small.compile("sgd", "mse")
    before = fingerprint(small)["weights"]
    x, y = images
    history = small.fit(x, np.eye(3)[y], epochs=1, batch_size=8, verbose=0)
    assert np.isfinite(history.history["loss"][0])
    assert fingerprint(small)["weights"] != before


def test_compiled_model_stays_compiled(make_residual, images):
    model = checker.randomize(make_residual(8))
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(*images, verbose=0)
    before, optimizer = (
        fingerprint(model),
        [v.numpy() for v in model.optimizer.variables],
    )
    masks = random_masks(tfprune.Graph(model))
    for twin in (
        tfprune.compact(model, masks),
        tfprune.apply_masks(model, masks),
        tfprune.strip(tfprune.prune_wrap(model)),
        tfprune.prune(model, 0.5),
    ):
        assert not twin.compiled
        assert not {id(v) for v in twin.variables} & set(before["variables"])
    assert fingerprint(model) == before
    for old, new in zip(optimizer, model.optimizer.variables, strict=True):
        assert np.array_equal(old, new.numpy())


# State that is no weight, and other corners --------------------------------------


@pytest.mark.parametrize("width", [3, 8])
def test_adapted_normalization_keeps_its_statistics(width):
    """On the input and on channels; `call` uses what `adapt` derives, not weights."""
    data = np.random.default_rng(0).normal(3, 5, size=(50, 8, 8, width))
    inputs = image()
    x = inputs if width == 3 else conv(8, "a")(inputs)
    normalization = layers.Normalization(name="normalization")
    x = conv(6, "c")(conv(8, "b")(normalization(x)))
    model = checker.randomize(keras.Model(inputs, head(x)))
    normalization.adapt(data.astype("float32"))
    graph, masks, small = check_all(model)
    assert {"b", "c"} <= set(graph.layer_masks(masks))
    assert np.array_equal(small.get_layer("normalization").mean, normalization.mean)


@pytest.mark.parametrize("mode", ["int8", "float8"])
def test_what_was_quantized_is_copied(mode):
    model = keras.Sequential([layers.Input((8,)), layers.Dense(6), layers.Dense(3)])
    model.quantize(mode)
    x = checker.make_inputs(model)
    np.testing.assert_allclose(tfprune.strip(model)(x), model(x), atol=1e-6)


def adapted(kind, data, **settings):
    layer = kind(**settings)
    layer.adapt(tf.constant(data))
    return layer


WORDS = [["a b"], ["b c"], ["b b d"]]
LOOKUPS = {
    "words": lambda: adapted(layers.StringLookup, WORDS, output_mode="multi_hot"),
    "numbers": lambda: adapted(
        layers.IntegerLookup, [[3], [5], [5]], output_mode="one_hot"
    ),
    "text": lambda: adapted(layers.TextVectorization, WORDS, output_mode="count"),
    "weighted": lambda: adapted(
        layers.TextVectorization,
        WORDS,
        output_mode="tf_idf",
        pad_to_max_tokens=True,
        max_tokens=9,
    ),
}


@pytest.mark.parametrize("kind", LOOKUPS)
def test_vocabulary_that_a_lookup_has_found_survives(kind, tmp_path):
    lookup = LOOKUPS[kind]()
    is_text = kind != "numbers"
    inputs = keras.Input((1,), dtype="string" if is_text else "int64")
    x = layers.Dense(8, activation="relu")(lookup(inputs))
    model = keras.Model(inputs, layers.Dense(2)(x))
    x = tf.constant([["b b d"], ["b c"], ["z"]] if is_text else [[5], [3], [9]])
    assert np.ptp(np.asarray(lookup(x)), axis=0).max() > 0
    masks = random_masks(tfprune.Graph(model))
    expected = tfprune.apply_masks(model, masks)(x)
    small = tfprune.compact(model, masks)
    np.testing.assert_allclose(small(x), expected, atol=1e-6)
    for copy in (tfprune.prune_wrap(model), tfprune.strip(model)):
        copy.save(tmp_path / "copy.keras")
        loaded = keras.models.load_model(tmp_path / "copy.keras")
        np.testing.assert_allclose(loaded(x), model(x), atol=1e-6)


def test_vocabulary_of_a_lookup_survives():
    tokens = layers.Input((6,), dtype="int64")
    x = layers.IntegerLookup(vocabulary=[1, 2, 5, 7])(tokens)
    x = layers.Embedding(10, 8, name="a")(x)
    x = layers.GlobalAveragePooling1D()(layers.Dense(6, "relu", name="b")(x))
    check(keras.Model(tokens, layers.Dense(2)(x)), "a", "b")


@pytest.mark.parametrize("called", [True, False])
def test_activation_that_is_a_layer_with_weights(called):
    inputs = image()
    prelu = layers.PReLU(shared_axes=[1, 2], alpha_initializer="random_normal")
    x = layers.Conv2D(8, 3, activation=prelu, name="a")(inputs)
    model = keras.Model(inputs, head(conv(6, "c")(conv(8, "b")(x))))
    if called:
        model(checker.make_inputs(model))
    tfprune.Graph(model)
    assert prelu.built is called
    model(checker.make_inputs(model))
    check_all(checker.randomize(model))


def test_activation_that_is_a_layer_without_weights():
    inputs = image()
    leaky = layers.LeakyReLU(negative_slope=0.3)
    x = layers.Conv2D(8, 3, activation=leaky, name="a")(inputs)
    check(keras.Model(inputs, head(conv(6, "b")(x))), "a", "b")


def test_layer_with_lora_is_left_alone():
    inputs = image()
    x = layers.Dense(8, name="lora")(conv(8, "a")(inputs))
    model = keras.Model(inputs, head(conv(6, "c")(conv(8, "b")(x))))
    model.get_layer("lora").enable_lora(2)
    checker.randomize(model)
    graph, _, small = check_all(model)
    assert "LoRA is enabled" in graph.skipped["lora"]
    assert small.get_layer("lora").lora_rank == 2


def test_no_mask_and_no_rewrite_for_what_has_lora():
    inputs = image()
    x = layers.BatchNormalization()(layers.Conv2D(8, 1, name="lora")(inputs))
    x = layers.Dense(8, name="dense")(conv(6, "b")(x))
    model = keras.Model(inputs, head(layers.BatchNormalization()(x)))
    for name in ("lora", "dense"):
        model.get_layer(name).enable_lora(2)
    checker.randomize(model)
    fast = tfprune.compact(model, {}, optimize=True)
    assert [fast.get_layer(name).lora_rank for name in ("lora", "dense")] == [2, 2]
    graph = tfprune.Graph(model, unit="weight")
    assert {"lora", "dense"} <= graph.skipped.keys()
    assert "lora/kernel" not in [group.name for group in graph.groups]


def test_layer_called_by_keyword():
    inputs = layers.Input((5,))
    x = layers.Dense(8, "relu", name="a")(inputs=inputs)
    x = layers.Dense(6, "relu", name="b")(inputs=x)
    check(keras.Model(inputs, layers.Dense(2)(x)), "a", "b")


def test_group_names_stay_unique_whatever_the_layers_are_called():
    inputs = layers.Input((6,))
    x = layers.Dense(6, name="a")(inputs)
    y = layers.Dense(2, name="b")(x[:, :2])
    z = layers.Dense(3, name="a:1")(x[:, 2:])
    model = keras.Model(inputs, layers.Dense(1)(layers.Concatenate()([y, z])))
    graph, _, _ = check(model, "a", "b", "a:1")
    assert len({group.name for group in graph.groups}) == len(graph.groups) == 4


def test_new_model_shares_no_variable_with_the_old(make_residual):
    model = checker.randomize(make_residual(8))
    own = {id(v) for v in model.variables}
    masks = random_masks(tfprune.Graph(model))
    wrapped = tfprune.prune_wrap(model)
    twins = [wrapped, tfprune.apply_masks(model, masks), tfprune.compact(model, masks)]
    for twin in [*twins, tfprune.strip(wrapped)]:
        assert not own & {id(v) for v in twin.variables}
        assert all(twin.get_layer(x.name) is not x for x in model.layers)


class Excitation(layers.Layer):
    """A layer whose parts have no names of their own, as most are written."""

    def build(self, shape):
        self.down = layers.Dense(shape[-1] // 2, activation="relu")
        self.up = layers.Dense(shape[-1], activation="sigmoid")
        self.down.build((None, shape[-1]))
        self.up.build((None, shape[-1] // 2))

    def call(self, x):
        return x * self.up(self.down(ops.mean(x, (1, 2), keepdims=True)))


def test_names_inside_layers_are_kept():
    inputs = image()
    x = Excitation(name="se")(conv(8, "a")(inputs))
    model = checker.randomize(keras.Model(inputs, head(conv(6, "b")(x))))
    graph = tfprune.Graph(model)
    masks = tfprune.select(graph, "magnitude", scope={"*": 0.5})
    names = [group.name for group in graph.groups]
    assert any(name.startswith("se/dense") for name in names)
    stripped = tfprune.strip(tfprune.prune_wrap(model))
    assert [group.name for group in tfprune.Graph(stripped).groups] == names
    small = tfprune.compact(stripped, masks)
    assert tfprune.cost(small) == tfprune.cost(tfprune.compact(model, masks))
    tfprune.compact(model, masks, fold=True)
