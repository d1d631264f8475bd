"""Models of every build: nested, shared, tied, many inputs, open sizes, policies."""

import checker
import keras
import numpy as np
import pytest
from invariants import check_all, fingerprint, random_masks
from keras import layers, ops

import tfprune


def image(size=8, channels=3, **kwargs):
    return layers.Input((size, size, channels), **kwargs)


def conv(width, name, size=3, **kwargs):
    return layers.Conv2D(
        width, size, padding="same", activation="relu", name=name, **kwargs
    )


def head(x, name="logits"):
    return layers.Dense(3, name=name)(layers.GlobalAveragePooling2D()(x))


def check(model, *loses, keeps=(), **options):
    checker.randomize(model, size=options.get("size", 16))
    graph, masks, small = check_all(model, **options)
    lost = graph.layer_masks(masks)
    assert set(loses) <= set(lost), (lost.keys(), graph.locked)
    assert not set(keeps) & set(lost), lost.keys()
    assert not graph.skipped, graph.skipped
    return graph, masks, small


def block(width, channels, name="block"):
    """A nested Functional model: conv - BN - ReLU."""
    inputs = layers.Input((None, None, channels))
    x = layers.Conv2D(width, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    return keras.Model(inputs, x, name=name)


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
    graph, masks, small = check(model, "middle/inner/conv", "middle/conv")
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
    graph, masks, small = check(model, "shared/conv")
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
        assert {p: x.trainable for p, x in checker.layers_by_path(twin).items()} == flags
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
    model = keras.Sequential([conv(8, "a"), layers.Flatten(), layers.Dense(2, name="b")])
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


@pytest.mark.xfail(strict=True, reason="B8")
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
        assert isinstance(
            twin.get_layer("a").kernel.regularizer, keras.regularizers.L2
        )
    for twin in (small, tfprune.strip(wrapped)):
        assert isinstance(
            twin.get_layer("a").bias.constraint, keras.constraints.NonNeg
        )
        assert isinstance(
            twin.get_layer("b").kernel_constraint, keras.constraints.MaxNorm
        )
    assert len(wrapped.losses) == len(model.losses) == 1
    assert float(wrapped.losses[0]) == pytest.approx(float(model.losses[0]), rel=1e-5)


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
    graph, masks, _ = check_all(_around(_Centered(name="mix")))
    assert "a" not in graph.layer_masks(masks)
    assert "_Centered" in graph.skipped["mix"]


def test_custom_layer_with_weights_keeps_channels():
    graph, masks, small = check_all(_around(_Weighted(name="weighted")))
    assert "a" not in graph.layer_masks(masks)
    assert "_Weighted" in graph.skipped["weighted"]
    assert type(small.get_layer("weighted")) is _Weighted


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


def test_lambda_that_fixes_the_width_keeps_channels():
    fixed = layers.Lambda(lambda x: ops.reshape(x, (-1, 8, 8, 2, 4))[..., 0, :], name="f")
    graph, masks, _ = check_all(_around(fixed))
    assert "f" in graph.skipped and "a" not in graph.layer_masks(masks)


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
    before, optimizer = fingerprint(model), [v.numpy() for v in model.optimizer.variables]
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
