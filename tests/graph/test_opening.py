"""Composite layers of a user's own: opened, pruned, gated, saved; or kept and listed."""

import checker
import keras
import numpy as np
import pytest
from keras import layers, ops
from own import Chain, Own, Residual, around, check_own, register

import tfprune
from tfprune.graph.following import NotOpened, first_line
from tfprune.graph.opening import open_layer


@register
class Twice(Own):
    """A composite layer inside another."""

    def __init__(self, width=8, **kwargs):
        super().__init__(width, **kwargs)
        self.inner = Chain(width, name="inner")
        self.last = layers.Conv2D(width, 1, activation="relu", name="last")

    def call(self, x):
        return self.last(ops.tanh(self.inner(x)))


@register
class Heads(Own):
    """Attention written by hand, with the batch size taken from the tensor."""

    def __init__(self, width=8, **kwargs):
        super().__init__(width, **kwargs)
        self.query, self.key, self.value = (
            layers.Dense(width, name=name) for name in ("query", "key", "value")
        )
        self.out = layers.Dense(width, name="out")

    def build(self, shape):
        for part in self._layers[:3]:
            part.build(shape)
        self.out.build((*shape[:-1], self.width))

    def call(self, x):
        batch, height, width, size = ops.shape(x)
        shape = (batch, height * width, 2, self.width // 2)
        q, k, v = (
            ops.transpose(ops.reshape(dense(x), shape), (0, 2, 1, 3))
            for dense in (self.query, self.key, self.value)
        )
        scores = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))))
        mixed = ops.transpose(ops.matmul(scores, v), (0, 2, 1, 3))
        return self.out(ops.reshape(mixed, (batch, height, width, self.width)))


@register
class Weights(Own):
    """Weights of its own, of every shape, used in every way."""

    def __init__(self, width=8, **kwargs):
        super().__init__(width, **kwargs)
        self.dense = layers.Dense(width, name="dense")

    def build(self, shape):
        super().build(shape)
        shapes = {"temperature": (), "place": (1, shape[1], shape[2], self.width)}
        shapes |= {"scale": (self.width,), "bias": (1, 1, self.width)}
        for name, each in shapes.items():
            setattr(self, name, self.add_weight(shape=each, name=name))

    def call(self, x):
        x = self.dense(x) * ops.reshape(self.scale, (1, 1, 1, -1)) + self.bias
        return ops.tanh((self.place + x) / (2 + self.temperature))


@register
class Positions(Own):
    """Adds an embedding of each position, looked up by constants."""

    def __init__(self, width=8, **kwargs):
        super().__init__(width, **kwargs)
        self.dense = layers.Dense(width, name="dense")
        self.places = layers.Embedding(64, width, name="places")

    def build(self, shape):
        self.dense.build(shape)
        self.places.build((64,))

    def call(self, x):
        steps = int(np.prod(ops.shape(x)[1:3]))
        x = ops.reshape(self.dense(x), (-1, steps, self.width))
        x = ops.gelu(x + self.places(ops.arange(steps)))
        return ops.reshape(x, (-1, 1, steps, self.width))


@register
class Excited(Own):
    """Squeeze and excitation; weightless parts are new in every call, or not built."""

    def __init__(self, width=8, **kwargs):
        super().__init__(width, **kwargs)
        self.conv = layers.Conv2D(width, 1, name="conv")
        self.squeeze = layers.Dense(4, "relu", name="squeeze")
        self.excite = layers.Dense(width, "sigmoid", name="excite")
        self.unused = layers.Dropout(0.5, name="unused")
        self.join = layers.Concatenate(name="join")

    def build(self, shape):
        self.conv.build(shape)
        self.squeeze.build((None, self.width))
        self.excite.build((None, 4))

    def compute_output_shape(self, shape):
        return (*shape[:-1], 2 * self.width)

    def call(self, x):
        x = self.conv(x)
        means = layers.GlobalAveragePooling2D()(x)
        scales = self.excite(self.squeeze(means))
        scaled = layers.multiply([x, layers.Reshape((1, 1, self.width))(scales)])
        batch, height, width, _ = ops.shape(x)
        rows = ops.reshape(self.join([x, scaled]), (batch, -1, 2 * self.width))
        return ops.reshape(rows, (batch, height, width, 2 * self.width))


# Opened --------------------------------------------------------------------------


def test_parts_are_pruned_under_their_paths():
    model = around(Chain(12, name="own"))
    small = check_own(model, "a", "own/one", "own/bn", "own/two", "b")
    assert small.get_layer("own").get_layer("one").filters == 6
    types = {type(each).__module__.split(".")[0] for each in small._flatten_layers()}
    assert types == {"keras"}


def test_own_weights_go_with_their_channels():
    small = check_own(around(Residual(10, name="own")), "own/gamma", "own/one", "a")
    assert small.get_layer("own").get_layer("gamma").embeddings.shape == (1, 4)


def test_parts_follow_training_that_is_not_passed_on():
    @register
    class Dropped(Chain):
        def __init__(self, width=8, **kwargs):
            super().__init__(width, **kwargs)
            self.dropout = layers.Dropout(0.9, name="dropout")

        def call(self, x):
            return self.dropout(self.two(ops.relu(self.bn(self.one(x)))))

    model = around(Dropped(name="own"))
    small = check_own(model, "own/one", "own/dropout")
    inputs = checker.make_inputs(model)
    before = small.get_layer("own").get_layer("bn").moving_mean.numpy()
    for net in (model, small):
        trained, inferred = (net(inputs, training=flag) for flag in (True, False))
        assert not np.allclose(trained, inferred)
    assert not np.array_equal(
        before, small.get_layer("own").get_layer("bn").moving_mean.numpy()
    )


def test_own_weights_still_train():
    model = around(Residual(10, name="own"))
    for new in (tfprune.compact(model, {}), tfprune.prune(model, 0.3)):
        before = [v.numpy() for v in new.trainable_variables]
        assert len(before) == len(model.trainable_variables)
        new.compile("adam", "mse")
        x = np.random.default_rng(0).normal(size=(8, 8, 8, 3))
        new.fit(x, np.ones((8, 3)), verbose=0)
        after = [v.numpy() for v in new.trainable_variables]
        assert not any(map(np.array_equal, before, after))


@pytest.mark.parametrize("kind", [Twice, Weights, Heads, Excited])
def test_composites_of_every_kind(kind):
    check_own(around(kind(name="own"), size=4), "b")


def test_weightless_parts_need_not_be_built():
    model = around(Excited(12, name="own"), size=4)
    assert not model.get_layer("own").join.built
    check_own(model, "own/conv", "own/squeeze")


def test_lengths_that_only_keras_leaves_open():
    @register
    class Halved(Own):
        def __init__(self, width=8, **kwargs):
            super().__init__(width, **kwargs)
            self.dense = layers.Dense(width, name="dense")

        def build(self, shape):
            self.dense.build((None, None, 2 * shape[-1]))

        def call(self, x):
            return self.dense(ops.reshape(x, (ops.shape(x)[0], -1, 2 * x.shape[-1])))

    inputs = layers.Input((8, 6))
    x = Halved(12, name="first")(inputs)
    x = layers.ReLU()(Halved(10, name="second")(x))
    assert x.shape == (None, None, 10)
    x = layers.GlobalAveragePooling1D()(x)
    model = checker.randomize(keras.Model(inputs, layers.Dense(3, name="logits")(x)))
    check_own(model, "first/dense", "second/dense")
    assert tfprune.cost(model).macs == 4 * 12 * 12 + 2 * 24 * 10 + 30


def test_lengths_no_longer_than_a_table_of_positions():
    @register
    class Placed(Own):
        def __init__(self, width=8, **kwargs):
            super().__init__(width, **kwargs)
            self.tokens = layers.Embedding(9, width, name="tokens")
            self.places = layers.Embedding(6, width, name="places")
            self.dense = layers.Dense(width, "relu", name="dense")

        def build(self, shape):
            self.tokens.build(shape)
            self.places.build(shape)
            self.dense.build((*shape, self.width))

        def call(self, tokens):
            places = ops.cumsum(ops.ones_like(tokens), axis=1) - 1
            return self.dense(self.tokens(tokens) + self.places(places))

    inputs = layers.Input((None,), dtype="int32")
    x = layers.Dense(8, "relu", name="a")(Placed(name="own")(inputs))
    x = layers.GlobalAveragePooling1D()(x)
    model = checker.randomize(keras.Model(inputs, layers.Dense(3, name="logits")(x)))
    tokens = np.random.default_rng(0).integers(0, 9, (4, 6))
    check_own(model, "own/tokens", "own/places", "own/dense", inputs=tokens)


def test_composite_in_a_composite():
    check_own(around(Twice(name="own")), "own/inner/one", "own/inner/two", "own/last")


def test_heads_lose_what_they_have_in_common():
    model = around(Heads(16, name="own"), size=4)
    check_own(model, "own/value", "own/out")


def test_own_weights_of_every_shape():
    model = around(Weights(name="own"), size=4)
    check_own(model, "own/dense", "own/scale", "own/place", "own/bias")


def test_layers_called_on_constants():
    def model(size):
        own = Positions(name="own")
        x = layers.ZeroPadding2D(((1, 1), (0, 0)))
        return around(own, x, size=size)

    check_own(model(4), "own/dense", "own/places")
    before = vars(model(4).get_layer("own").places)
    assert "call" not in before


def test_layer_without_a_config_is_always_taken_apart():
    class Lossy(Chain):
        def __init__(self, channels):
            super().__init__(channels, name="own")

        def get_config(self):
            return {"name": self.name}

    model = around(Lossy(10))
    small = check_own(model, "own/one")
    assert isinstance(small.get_layer("own"), keras.Model)
    masked = tfprune.apply_masks(model, {})
    assert isinstance(masked.get_layer("own"), keras.Model)


def test_layer_of_operations_without_a_config_is_taken_apart():
    class Squared(layers.Layer):
        def __init__(self):
            super().__init__(name="own")

        def call(self, x):
            return ops.square(x) / 2

    check_own(around(Squared()), "a", "b")


def test_tokens_in_an_input_of_floats():
    inputs = layers.Input((6,))
    x = layers.Embedding(9, 8, name="tokens")(inputs)
    x = layers.Dense(6, "relu", name="a")(layers.Flatten()(x))
    model = checker.randomize(keras.Model(inputs, layers.Dense(3, name="logits")(x)))
    tokens = np.random.default_rng(0).integers(0, 9, (4, 6))
    check_own(model, "tokens", "a", inputs=tokens)


def test_two_parts_of_one_name_keep_a_layer_whole():
    @register
    class Reaching(Own):
        def __init__(self, width=8, **kwargs):
            super().__init__(width, **kwargs)
            self.left, self.right = Chain(name="left"), Chain(name="right")

        def build(self, shape):
            self.left.build(shape)
            self.right.build(shape)

        def call(self, x):
            return self.left.one(x) + self.right.one(x)

    model = around(layers.Conv2D(8, 1, name="c"), Reaching(name="odd"))
    assert "odd" in tfprune.Graph(model).skipped
    check_own(model, "a", "b", skipped=["odd"])


def test_unchanged_layer_stays_whole():
    model = around(Chain(name="first"), Chain(name="second"))
    masks = tfprune.select(tfprune.Graph(model), "magnitude", scope={"second/one": 0.5})
    for function in (tfprune.compact, tfprune.apply_masks):
        new = function(model, masks)
        assert type(new.get_layer("first")) is Chain
        assert isinstance(new.get_layer("second"), keras.Model)
    wrapped = tfprune.prune_wrap(model, layers=["second/bn"])
    assert type(wrapped.get_layer("first")) is Chain


def test_parts_are_made_faster_too():
    model = around(Chain(12, name="own"))
    fast = tfprune.compact(model, optimize=True)
    own = fast.get_layer("own")
    assert type(own.get_layer("bn")) is layers.Identity
    outputs = [checker.outputs_of(x, checker.make_inputs(model)) for x in (model, fast)]
    assert checker.relative_error(*outputs) <= 1e-5


def test_constants_fold_into_parts():
    model = around(Residual(10, name="own"))
    bn = model.get_layer("own").bn
    bn.gamma.assign(np.where(np.arange(10) < 4, 0, bn.gamma))
    bn.beta.assign(np.abs(bn.beta))
    small = tfprune.compact(model, fold=True)
    assert small.get_layer("own").get_layer("one").filters in (6, 7)
    outputs = [
        checker.outputs_of(x, checker.make_inputs(model)) for x in (model, small)
    ]
    assert checker.relative_error(*outputs) <= 1e-5


def test_sequential_model_of_composites():
    model = keras.Sequential([layers.Input((8, 8, 3)), Chain(name="own")])
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(3, name="logits"))
    small = check_own(checker.randomize(model), "own/one", "own/two")
    assert isinstance(small, keras.Sequential)


def test_composite_used_twice_has_one_width():
    shared = Residual(name="own")
    small = check_own(around(shared, layers.ReLU(), shared), "own/one", "own/two")
    assert len([x for x in small.layers if x.name == "own"]) == 1


def test_tensors_in_lists_and_keywords():
    @register
    class Merge(Own):
        def __init__(self, width=8, **kwargs):
            super().__init__(width, **kwargs)
            self.one = layers.Conv2D(width, 1, name="one")

        def build(self, shape):
            self.one.build(shape[0])

        def call(self, pair, gate=None, scale=1.0):
            x, y = pair
            return {"sum": self.one(x + y) * gate, "rest": scale * x}

    inputs = layers.Input((8, 8, 3))
    x, y, z = (layers.Conv2D(8, 3, name=name)(inputs) for name in "xyz")
    merged = Merge(name="own")([x, y], gate=ops.sigmoid(z), scale=2.0)
    x = layers.Concatenate()([merged["sum"], merged["rest"]])
    x = layers.GlobalAveragePooling2D()(x)
    model = checker.randomize(keras.Model(inputs, layers.Dense(3, name="logits")(x)))
    check_own(model, "x", "y", "z", "own/one")


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = around(Residual(name="own"))
    graph = tfprune.Graph(model)
    assert not graph.skipped
    masks = tfprune.select(graph, "magnitude", scope={"*": 0.5})
    small = tfprune.compact(model, masks)
    assert tfprune.cost(small) == tfprune.cost(model, masks)
    assert small.get_layer("own").get_layer("gamma").compute_dtype == "bfloat16"


@pytest.mark.parametrize("policies", ["mixed_bfloat16 float32", "float32 bfloat16"])
def test_the_global_policy_says_nothing_of_a_model_that_is_made(policies):
    policy, other = policies.split()
    keras.config.set_dtype_policy(policy)
    model = around(Residual(name="own"))
    keras.config.set_dtype_policy(other)
    assert not tfprune.Graph(model).skipped


def test_flags_of_frozen_parts_are_copied():
    model = around(Residual(name="own"), Chain(name="frozen"))
    model.get_layer("own").bn.trainable = False
    model.get_layer("frozen").trainable = False
    small = tfprune.prune(model, 0.3)
    assert not small.get_layer("own").get_layer("bn").trainable
    assert small.get_layer("own").get_layer("one").trainable
    assert not small.get_layer("frozen").trainable_variables


def test_zeros_hold_in_further_training():
    model = around(Residual(name="own"))
    graph = tfprune.Graph(model)
    masks = tfprune.select(graph, "magnitude", scope={"*": 0.5})
    masked = tfprune.apply_masks(model, masks)
    masked.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(8, 8, 8, 3))
    masked.fit(x, np.ones((8, 3)), verbose=0)
    assert tfprune.read_masks(masked) == masks
    tfprune.compact(masked)


# Kept and listed ---------------------------------------------------------------------


def _ways(name):
    """A composite layer whose `call` does something that its parts alone do not."""

    @register
    class Odd(Chain):
        def build(self, shape):
            super().build(shape)
            self.count = self.add_weight(shape=(), trainable=False, name="count")
            self.seed = keras.random.SeedGenerator(1) if name == "random" else None

        def call(self, x, training=None):
            y = super().call(x, training=training) + self.count
            if name == "value" and ops.max(x) > 100:
                return x
            if name == "training" and training:
                return x
            if name == "state":
                self.count.assign(self.count + 1)
            if name == "loss":
                self.add_loss(ops.mean(y))
            if name == "random":
                return y + keras.random.normal(ops.shape(x)[1:], seed=self.seed)
            if name == "hidden":
                return y + ops.sum(self.one.kernel)
            if name == "fixed":
                return self.bn(self.two(x), training=False) + y
            if name == "loop":
                return ops.while_loop(_small, lambda n: (2 * n,), (y,))[0]
            return y

    return Odd


def _small(x):
    return ops.max(ops.abs(x)) < 100


REASONS = {
    "value": "cannot be followed",
    "training": "does something else in training",
    "state": "cannot be followed",
    "loss": "add_loss",
    "random": "changes its state",
    "hidden": "compute something else",
    "fixed": "fixes `training`",
    "loop": "does something else",
}


@pytest.mark.parametrize("name", sorted(REASONS))
def test_what_parts_alone_do_not_do_is_kept_and_listed(name):
    model = around(layers.Conv2D(8, 1, name="c"), _ways(name)(name="odd"))
    model.get_layer("odd").count.assign(0.0)
    losses = len(model.losses)
    graph = tfprune.Graph(model)
    assert graph.skipped.keys() == {"odd"}
    assert REASONS[name] in graph.skipped["odd"]
    assert [group.name for group in graph.groups] == ["a", "b"]
    assert len(model.losses) == losses
    if name not in ("random", "state"):
        check_own(model, "a", skipped=["odd"], wrap=False)


def test_regularized_outputs_and_masks_keep_a_layer_whole():
    model = around(Chain(name="odd", activity_regularizer="l2"))
    assert "activity regularizer" in tfprune.Graph(model).skipped["odd"]
    inputs = layers.Input((5,), dtype="int32")
    x = layers.Embedding(9, 8, mask_zero=True)(inputs)

    @register
    class Mixer(Own):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = layers.Dense(8, name="dense")
            self.supports_masking = True

        def call(self, x, mask=None):
            return self.dense(x)

    x = layers.LSTM(4)(Mixer(name="odd")(x))
    graph = tfprune.Graph(keras.Model(inputs, layers.Dense(2)(x)))
    assert "given a mask" in graph.skipped["odd"]


def test_layer_that_is_given_masks_of_several_lengths_stays_whole():
    @register
    class Plain(Own):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = layers.Dense(8, name="dense")
            self.supports_masking = True

        def call(self, x):
            return self.dense(x) + 1.0

    inputs = layers.Input((5,), dtype="int32"), layers.Input((3,), dtype="int32")
    tokens, own = layers.Embedding(9, 8, mask_zero=True), Plain(name="odd")
    x = layers.Add()([layers.LSTM(4)(own(tokens(each))) for each in inputs])
    graph = tfprune.Graph(keras.Model(inputs, layers.Dense(2)(x)))
    assert "given a mask" in graph.skipped["odd"]


def test_parts_with_weights_that_are_not_built_keep_a_layer_whole():
    @register
    class Late(Own):
        def __init__(self, width=8, **kwargs):
            super().__init__(width, **kwargs)
            self.part = layers.Conv2D(width, 1, name="part")

        def build(self, shape):
            pass

        def compute_output_shape(self, shape):
            return (*shape[:-1], self.width)

        def call(self, x):
            return self.part(x)

    layer = Late(name="odd")
    x = layers.Dense(3)(layer(layers.Input((8, 8, 3))))
    with pytest.raises(NotOpened, match="'part' in it is not built"):
        open_layer(layer, (x,), {})
    assert not layer.part.built
    assert not layer.variables


def test_weights_that_are_made_in_a_call_keep_a_layer_whole():
    @register
    class Renewed(Own):
        def __init__(self, width=8, **kwargs):
            super().__init__(width, **kwargs)
            self.part = layers.Conv2D(width, 1, name="part")

        def call(self, x):
            return self.part(x) + layers.Conv2D(self.width, 1, name="new")(x)

    layer = Renewed()
    layer.build((None, 8, 8, 3))
    with pytest.raises(NotOpened, match="does something else|not its own"):
        open_layer(layer, (layers.Input((8, 8, 3)),), {})


@register
class Joined(layers.Layer):
    """The decoder's step of a U-Net, which has no weights and no layers inside."""

    def call(self, x, skipped):
        return ops.concatenate([ops.repeat(ops.repeat(x, 2, 1), 2, 2), skipped], -1)


def test_layer_that_is_no_more_than_operations_is_opened():
    inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="a")(inputs)
    y = layers.Conv2D(6, 3, 2, padding="same", activation="relu", name="b")(x)
    x = layers.Conv2D(4, 3, name="c")(Joined(name="joined")(y, x))
    x = layers.Dense(3, name="logits")(layers.GlobalAveragePooling2D()(x))
    check_own(checker.randomize(keras.Model(inputs, x)), "a", "b", "c")


def _called_twice(shared, **arguments):
    """A model that calls a layer on a map and, with `arguments`, on half of it."""
    inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="a")(inputs)
    x, y = shared(x), shared(layers.MaxPooling2D()(x), **arguments)
    x, y = (layers.GlobalAveragePooling2D()(each) for each in (x, y))
    x = layers.Dense(6, "relu", name="b")(layers.Concatenate()([x, y]))
    return checker.randomize(keras.Model(inputs, layers.Dense(3, name="logits")(x)))


def test_layer_called_on_several_sizes_loses_channels():
    model = _called_twice(Chain(name="head"))
    assert tfprune.cost(model).macs == checker.profiled_macs(model)
    small = check_own(model, "a", "b", "head/one")
    assert type(small.get_layer("head")) is not Chain


def test_layer_called_in_several_ways_is_kept_whole_and_said_not_to_be_counted():
    @register
    class Optional(Chain):
        def call(self, x, twice=False):
            return super().call(x) * 2 if twice else super().call(x)

    model = _called_twice(Optional(name="odd"), twice=True)
    graph = tfprune.Graph(model)
    assert "several ways" in graph.skipped["odd"]
    assert tfprune.cost(graph).uncounted == ("odd",)
    small = check_own(model, "b", skipped=["odd"])
    assert type(small.get_layer("odd")) is Optional


def test_layer_of_operations_called_in_several_ways_is_kept_whole():
    @register
    class Skip(layers.Layer):
        def call(self, x, skipped=None):
            return ops.relu(x) if skipped is None else ops.concatenate([x, skipped], -1)

    shared = Skip(name="odd")
    inputs = layers.Input((8, 8, 3))
    x, y = (layers.Conv2D(8, 3, padding="same", name=name)(inputs) for name in "ab")
    x = shared(layers.Conv2D(8, 3, name="c")(shared(x, y)))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3, name="d")(x))
    model = checker.randomize(keras.Model(inputs, layers.Dense(3)(x)))
    assert "several ways" in tfprune.Graph(model).skipped["odd"]
    check_own(model, "d", skipped=["odd"])


def test_layer_that_asks_for_a_size_is_kept_whole_where_it_is_called_on_several():
    @register
    class Coarsest(Chain):
        def call(self, x, training=None):
            y = super().call(x, training=training)
            return 2 * y + 1 if x.shape[1] == 4 else y

    model = _called_twice(Coarsest(name="odd"))
    assert "several ways" in tfprune.Graph(model).skipped["odd"]
    check_own(model, "b", skipped=["odd"])


def test_weights_that_a_function_borrows_are_kept():
    """What is made of them is no constant: they still train."""
    inputs = layers.Input((7,), dtype="int32")
    table = layers.Embedding(11, 8, name="table")
    x = layers.Dense(6, "relu", name="a")(table(inputs))
    x = layers.Dense(8, name="b")(x)
    tied = layers.Lambda(
        lambda x: ops.matmul(x, ops.transpose(table.embeddings)), name="tied"
    )
    graph = tfprune.Graph(keras.Model(inputs, tied(x)))
    assert "weights that are not its own" in graph.skipped["tied"]
    assert [group.name for group in graph.groups] == ["a"]


def test_the_message_of_an_error_is_all_of_it():
    error = ValueError(
        "Exception encountered when calling Net.call().\n\n"
        "\x1b[1mmatrix 0: expected 3, got 10\x1b[0m\n\nArguments received: ..."
    )
    assert first_line(error) == "matrix 0: expected 3, got 10"
    assert first_line(KeyError()) == "KeyError"
