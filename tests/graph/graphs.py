"""Random functional models over everything the engine follows; grown by hypothesis."""

import keras
import numpy as np
from hypothesis import strategies as st
from keras import layers, ops


class Grower:
    """Grows a model from a pool of tensors that have the same places.

    Args:
        draw: function from a strategy to a value.
        places: shape of everything but batch and channels.
    """

    widths = (4, 6, 8, 12)
    most = 32

    def __init__(self, draw):
        self.draw = draw
        self.inputs = [layers.Input((*self.places, 3)) for _ in range(self.pick(2) + 1)]
        self.pool = [self.contract(x) for x in self.inputs] + [
            self.contract(self.inputs[0])
        ]
        # Layers that may be called again, by the width they read.
        self.shared = {}

    def pick(self, count):
        return self.draw(st.integers(0, count - 1))

    def choice(self, *options):
        return options[self.pick(len(options))]

    def any_tensor(self):
        return self.choice(*self.pool)

    def width(self):
        return self.choice(*self.widths)

    def activation(self):
        return self.choice(None, "relu", "sigmoid", "swish", "softplus", "gelu")

    def like(self, x):
        """Returns another tensor of as many channels, made so if it has to be."""
        other = self.any_tensor()
        return other if other.shape[-1] == x.shape[-1] else self.contract(other, x)

    def grow(self, steps):
        names = [name for name in dir(self) if name.startswith("add_")]
        for _ in range(steps):
            step = getattr(self, self.choice(*names))
            x = self.any_tensor()
            y = step(x)
            if y.shape[-1] > self.most or y.shape[-1] < 2:
                y = self.contract(y)
            self.pool.append(y)
        last = [self.contract(x) for x in self.pool[-3:]]
        x = layers.Concatenate(name="joined")(last)
        outputs = [layers.Dense(3, name="logits")(self.flat(x))]
        if self.pick(3) == 0:
            outputs.append(layers.Dense(2, name="second")(self.flat(last[0])))
        return keras.Model(self.inputs, outputs)

    # What every kind of network has.

    def add_contraction(self, x):
        return self.contract(x)

    def add_dense(self, x):
        return layers.Dense(self.width(), self.activation())(x)

    def add_shared(self, x):
        """The same layer again, on whatever comes along."""
        width = x.shape[-1]
        if width not in self.shared:
            self.shared[width] = layers.Dense(self.width(), self.activation())
        return self.shared[width](x)

    def add_twice(self, x):
        layer = layers.Dense(x.shape[-1], self.activation())
        return layer(layer(x))

    def add_normalization(self, x):
        scale, center = bool(self.pick(2)), bool(self.pick(2))
        return layers.BatchNormalization(scale=scale, center=center)(x)

    def add_group_normalization(self, x):
        groups = self.choice(1, 2, x.shape[-1])
        if x.shape[-1] % groups:
            groups = x.shape[-1]
        return layers.GroupNormalization(groups)(x)

    def add_layer_normalization(self, x):
        return self.choice(layers.LayerNormalization, layers.RMSNormalization)()(x)

    def add_activation(self, x):
        kind = self.choice("relu", "sigmoid", "hard_swish", "softmax", "relu6", "elu")
        return layers.Activation(kind)(x)

    def add_activation_layer(self, x):
        kinds = layers.ReLU(), layers.LeakyReLU(0.2), layers.ELU(), layers.Softmax()
        return self.choice(*kinds)(x)

    def add_prelu(self, x):
        return layers.PReLU(shared_axes=list(range(1, len(x.shape) - 1)) or None)(x)

    def add_regularization(self, x):
        kinds = layers.Dropout(0.3), layers.GaussianNoise(0.1), layers.Identity()
        return self.choice(*kinds)(x)

    def add_merge(self, x):
        kinds = (
            layers.Add, layers.Multiply, layers.Maximum, layers.Subtract,
            layers.Average, layers.Minimum,
        )  # fmt: skip
        return self.choice(*kinds)()([x, self.like(x)])

    def add_operator(self, x):
        other = self.like(x)
        return self.choice(
            lambda: x * 0.5, lambda: 1.0 - x, lambda: x + 2.0, lambda: -x,
            lambda: x * other, lambda: x - other, lambda: ops.maximum(x, other),
            lambda: ops.where(x > 0, x, other), lambda: ops.clip(x, -1.0, 1.0),
            lambda: ops.tanh(x), lambda: ops.abs(x) + ops.sqrt(ops.abs(other)),
            lambda: layers.Rescaling(0.5, 0.1)(x),
        )()  # fmt: skip

    def add_constants(self, x):
        vector = np.linspace(-1, 1, x.shape[-1])
        return self.choice(lambda: x * vector, lambda: x + vector)()

    def add_concatenation(self, x):
        return layers.Concatenate()([x, self.any_tensor()])

    def add_concatenation_with_itself(self, x):
        return ops.concatenate([x, x], axis=-1)

    def add_slice(self, x):
        start = self.pick(x.shape[-1] // 2)
        stop = self.draw(st.integers(start + 2, x.shape[-1]))
        return x[..., start:stop]

    def add_strided_slice(self, x):
        return x[..., ::2]

    def add_split(self, x):
        at = self.draw(st.integers(1, x.shape[-1] - 1))
        first, second = ops.split(x, [at], axis=-1)
        return ops.concatenate([second, first], axis=-1)

    def add_channel_padding(self, x):
        before, after = self.choice((0, 2), (3, 1))
        rest = ((0, 0),) * (len(x.shape) - 1)
        return ops.pad(x, (*rest, (before, after)))

    def add_shuffle(self, x):
        width = x.shape[-1]
        if width % 2:
            return x
        places = x.shape[1:-1]
        y = ops.reshape(x, (-1, *places, 2, width // 2))
        return ops.reshape(ops.swapaxes(y, -1, -2), (-1, *places, width))

    def add_repeat_or_tile(self, x):
        if x.shape[-1] > 8:
            return x
        ones = (1,) * (len(x.shape) - 1)
        kinds = (lambda: ops.repeat(x, 2, -1)), (lambda: ops.tile(x, (*ones, 2)))
        return self.choice(*kinds)()

    def add_stack(self, x):
        return ops.max(ops.stack([x, self.like(x)], axis=1), axis=1)

    def add_einsum_dense(self, x):
        letters = "bcdefg"[: len(x.shape) - 1]
        width = self.width()
        equation = f"{letters}x,xy->{letters}y"
        shape = (*x.shape[1:-1], width)
        bias = self.choice(None, "y")
        return layers.EinsumDense(equation, shape, bias_axes=bias)(x)

    def add_mixture(self, x):
        """Channels mixed without weights stay."""
        return self.choice(
            lambda: x * ops.mean(x, axis=-1, keepdims=True),
            lambda: ops.cumsum(x, axis=-1),
            lambda: ops.flip(x, axis=-1),
            lambda: ops.softmax(x, axis=-1),
        )()

    def add_lambda(self, x):
        kinds = (lambda x: x * 2 + 1), (lambda x: ops.softmax(x))
        return layers.Lambda(self.choice(*kinds))(x)

    def add_nested(self, x):
        inputs = layers.Input(x.shape[1:])
        y = layers.BatchNormalization()(self.contract(inputs))
        model = keras.Model(inputs, self.contract(y, x))
        return self.choice(lambda: model(x), lambda: model(model(x)))()

    def add_sequential(self, x):
        parts = [layers.Dense(self.width(), "relu"), layers.Dense(self.width())]
        return keras.Sequential([layers.Input(x.shape[1:]), *parts])(x)


class Images(Grower):
    """Networks of convolutions on images."""

    places = (6, 6)

    def contract(self, x, like=None):
        return layers.Conv2D(
            self.width() if like is None else like.shape[-1],
            self.choice(1, 2, 3),
            padding="same",
            use_bias=bool(self.pick(2)),
            activation=self.activation(),
            dilation_rate=self.choice(1, 1, 2),
        )(x)

    def flat(self, x):
        pools = layers.GlobalAveragePooling2D(), layers.GlobalMaxPooling2D()
        return self.choice(layers.Flatten(), *pools)(x)

    def add_grouped(self, x):
        groups = self.choice(2, x.shape[-1])
        if x.shape[-1] % groups:
            return self.contract(x)
        return layers.Conv2D(groups * 2, 3, groups=groups, padding="same")(x)

    def add_depthwise(self, x):
        return layers.DepthwiseConv2D(
            3, depth_multiplier=self.choice(1, 2), padding="same",
            use_bias=bool(self.pick(2)), activation=self.activation(),
        )(x)  # fmt: skip

    def add_separable(self, x):
        return layers.SeparableConv2D(
            self.width(), 3, depth_multiplier=self.choice(1, 2), padding="same"
        )(x)

    def add_transposed(self, x):
        return layers.Conv2DTranspose(self.width(), self.choice(1, 3), padding="same")(
            x
        )

    def add_strided_and_back(self, x):
        y = layers.Conv2D(self.width(), 3, 2, padding="same")(x)
        # Bilinear ones round to single precision, which would hide small errors.
        return self.choice(
            lambda: layers.UpSampling2D(2)(y),
            lambda: layers.Conv2DTranspose(self.width(), 2, 2)(y),
            lambda: ops.image.resize(y, (6, 6), "nearest"),
        )()

    def add_pool(self, x):
        kinds = layers.MaxPooling2D, layers.AveragePooling2D
        return self.choice(*kinds)(2, 1, "same")(x)

    def add_pad_and_crop(self, x):
        y = layers.ZeroPadding2D(((0, 1), (1, 0)))(x)
        return layers.Cropping2D(((1, 0), (0, 1)))(y)

    def add_squeeze_and_excite(self, x):
        y = layers.GlobalAveragePooling2D(keepdims=True)(x)
        y = layers.Conv2D(self.choice(1, 3), 1, activation="relu")(y)
        y = layers.Conv2D(x.shape[-1], 1, activation="sigmoid")(y)
        return layers.Multiply()([x, y])

    def add_squeeze_and_excite_of_ops(self, x):
        y = ops.mean(x, axis=(1, 2))
        y = layers.Dense(x.shape[-1], "sigmoid")(y)
        return x * y[:, None, None, :]

    def add_spatial_map(self, x):
        return x * layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x)

    def add_sequence_detour(self, x):
        y = layers.Reshape((36, x.shape[-1]))(x)
        y = layers.Conv1D(self.width(), 3, padding="causal", activation="relu")(y)
        return ops.reshape(y, (-1, 6, 6, y.shape[-1]))

    def add_channels_first_detour(self, x):
        y = layers.Permute((3, 1, 2))(x)
        y = layers.BatchNormalization(axis=1)(y)
        return layers.Permute((2, 3, 1))(y)

    def add_rows_joined(self, x):
        y = layers.Concatenate(axis=1)([x, self.like(x)])
        return layers.MaxPooling2D((2, 1))(y)

    def add_flattened_and_back(self, x):
        y = layers.Dense(36, self.activation())(layers.Flatten()(x))
        return self.contract(layers.Reshape((6, 6, 1))(y))

    def add_space_to_depth(self, x):
        if x.shape[-1] > 4:
            return x
        y = ops.reshape(x, (-1, 3, 2, 3, 2, x.shape[-1]))
        y = ops.reshape(
            ops.transpose(y, (0, 1, 3, 2, 4, 5)), (-1, 3, 3, 4 * x.shape[-1])
        )
        return layers.UpSampling2D(2)(y)


class Sequences(Grower):
    """Recurrent, convolutional and attention networks on sequences."""

    places = (6,)

    def contract(self, x, like=None):
        width = self.width() if like is None else like.shape[-1]
        kinds = (
            layers.Dense(width, self.activation()),
            layers.Conv1D(width, 3, padding=self.choice("same", "causal")),
        )
        return self.choice(*kinds)(x)

    def flat(self, x):
        pools = layers.GlobalAveragePooling1D(), layers.GlobalMaxPooling1D()
        return self.choice(layers.Flatten(), *pools)(x)

    def add_recurrent(self, x):
        kind = self.choice(layers.LSTM, layers.GRU, layers.SimpleRNN)
        return kind(self.width(), return_sequences=True)(x)

    def add_bidirectional(self, x):
        kind = self.choice(layers.LSTM, layers.GRU)
        merge = self.choice("concat", "sum", "mul", "ave")
        return layers.Bidirectional(
            kind(self.choice(4, 6), return_sequences=True), merge_mode=merge
        )(x)

    def add_last_state_repeated(self, x):
        return layers.RepeatVector(6)(layers.LSTM(self.width())(x))

    def add_time_distributed(self, x):
        return layers.TimeDistributed(layers.Dense(self.width(), "relu"))(x)

    def add_self_attention(self, x):
        heads, size = self.choice(2, 3), self.choice(2, 4)
        layer = layers.MultiHeadAttention(
            heads, size, value_dim=self.choice(None, 3), use_bias=bool(self.pick(2))
        )
        return self.choice(lambda: layer(x, x), lambda: x + layer(x, x))()

    def add_cross_attention(self, x):
        layer = layers.MultiHeadAttention(2, 3, output_shape=self.width())
        return layer(x, self.any_tensor())

    def add_grouped_query_attention(self, x):
        return layers.GroupQueryAttention(3, 4, 2)(x, self.like(x))

    def add_attention(self, x):
        other = self.like(x)
        kind = self.choice(layers.Attention, layers.AdditiveAttention)
        return kind()([x, other])

    def add_attention_of_ops(self, x):
        query, key = layers.Dense(6)(x), layers.Dense(6)(x)
        weights = ops.softmax(ops.matmul(query, ops.transpose(key, (0, 2, 1))))
        return ops.matmul(weights, layers.Dense(self.width())(x))

    def add_heads_of_einsum(self, x):
        y = layers.EinsumDense("abc,cde->abde", (6, 2, 4), bias_axes="de")(x)
        return layers.EinsumDense("abde,def->abf", (6, self.width()))(y)

    def add_gated_unit(self, x):
        y = layers.Dense(2 * self.width())(x)
        first, second = ops.split(y, 2, axis=-1)
        return first * ops.sigmoid(second)

    def add_token_mixing(self, x):
        y = layers.Dense(6, self.activation())(layers.Permute((2, 1))(x))
        return layers.Permute((2, 1))(y)

    def add_convolution(self, x):
        kinds = (
            layers.SeparableConv1D(self.width(), 3, padding="same"),
            layers.DepthwiseConv1D(3, padding="same", depth_multiplier=2),
            layers.Conv1DTranspose(self.width(), 3, padding="same"),
        )
        return self.choice(*kinds)(x)

    def add_pool(self, x):
        return layers.MaxPooling1D(2, 1, "same")(x)

    def add_shift(self, x):
        return ops.concatenate([x[:, 1:], x[:, :1]], axis=1)


class Vectors(Grower):
    """Networks on flat features."""

    places = ()

    def contract(self, x, like=None):
        width = self.width() if like is None else like.shape[-1]
        return layers.Dense(width, self.activation(), use_bias=bool(self.pick(2)))(x)

    def flat(self, x):
        return x

    def add_dot_product(self, x):
        return x * layers.Dot(axes=1)([x, self.like(x)])

    def add_reshaped(self, x):
        if x.shape[-1] % 2:
            return x
        y = layers.Reshape((x.shape[-1] // 2, 2))(x)
        return layers.Flatten()(layers.Conv1D(4, 1)(y))


class Volumes(Grower):
    """Networks of three-dimensional convolutions.

    TensorFlow pools volumes in single precision only, so these do not.
    """

    places = (3, 4, 4)
    most = 16

    def contract(self, x, like=None):
        width = self.width() if like is None else like.shape[-1]
        return layers.Conv3D(width, 3, padding="same", activation=self.activation())(x)

    def flat(self, x):
        return self.choice(layers.Flatten(), layers.GlobalAveragePooling3D())(x)

    def add_transposed(self, x):
        return layers.Conv3DTranspose(self.width(), 3, padding="same")(x)

    def add_frames(self, x):
        conv = layers.Conv2D(self.width(), 3, padding="same", activation="relu")
        return layers.TimeDistributed(self.choice(conv, self.block(x, conv)))(x)

    def block(self, x, conv):
        inputs = layers.Input(x.shape[2:])
        y = layers.BatchNormalization()(conv(inputs))
        return keras.Model(inputs, layers.Add()([y, layers.ReLU()(y)]))

    def add_recurrent_convolution(self, x):
        return layers.ConvLSTM2D(4, 3, padding="same", return_sequences=True)(x)


KINDS = (Images, Images, Sequences, Vectors, Volumes)


@st.composite
def models(draw, kind=None, steps=7):
    """Strategy of models in double precision, which hides no small errors."""
    keras.backend.clear_session(free_memory=False)
    keras.config.set_dtype_policy("float64")
    grower = (kind or draw(st.sampled_from(KINDS)))(draw)
    return grower.grow(draw(st.integers(2, steps)))


def describe(model) -> str:
    """Returns the calls of a model, for the report of a failure."""
    lines = []
    for operation in model.operations:
        for node in operation._inbound_nodes:
            reads = [t._keras_history.operation.name for t in node.input_tensors]
            shapes = [tuple(t.shape) for t in node.outputs]
            lines.append(f"{operation.name}({', '.join(reads)}) -> {shapes}")
    return "\n".join(lines)
