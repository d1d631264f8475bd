"""Every invariant on graphs put together at random."""

import checker
import keras
import numpy as np
import pytest
from invariants import check_all
from keras import layers, ops

import tfprune


class Builder:
    """Grows a random image network from a pool of tensors of the same height."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.inputs = layers.Input((8, 8, 3))
        self.pool = [self.conv(self.inputs), self.conv(self.inputs)]

    def pick(self):
        return self.pool[self.random.integers(len(self.pool))]

    def choice(self, *options):
        return options[self.random.integers(len(options))]

    def width(self):
        return int(self.choice(4, 6, 8, 12))

    def conv(self, x, width=None, **kwargs):
        settings = {
            "padding": "same",
            "use_bias": bool(self.random.integers(2)),
            "activation": self.choice(None, "relu", "sigmoid", "swish", "softplus"),
            "kernel_size": self.choice(1, 2, 3),
            "dilation_rate": self.choice(1, 1, 2),
            **kwargs,
        }
        return layers.Conv2D(width or self.width(), **settings)(x)

    def step(self):
        steps = [getattr(self, name) for name in dir(self) if name.startswith("add_")]
        self.pool.append(steps[self.random.integers(len(steps))](self.pick()))

    def add_conv(self, x):
        return self.conv(x)

    def add_grouped(self, x):
        groups = self.choice(2, x.shape[-1]) if x.shape[-1] % 2 == 0 else 1
        return self.conv(x, groups * 2, groups=groups, dilation_rate=1)

    def add_depthwise(self, x):
        multiplier = self.choice(1, 1, 2)
        if x.shape[-1] > 24:
            multiplier = 1
        return layers.DepthwiseConv2D(3, depth_multiplier=multiplier, padding="same")(x)

    def add_separable(self, x):
        return layers.SeparableConv2D(self.width(), 3, padding="same")(x)

    def add_transposed(self, x):
        return layers.Conv2DTranspose(self.width(), 3, padding="same")(x)

    def add_dense(self, x):
        return layers.Dense(self.width(), self.choice(None, "tanh"))(x)

    def add_normalization(self, x):
        flags = self.choice((True, True), (True, False), (False, True), (False, False))
        return layers.BatchNormalization(scale=flags[0], center=flags[1])(x)

    def add_activation(self, x):
        return layers.Activation(self.choice("relu", "sigmoid", "hard_swish"))(x)

    def add_prelu(self, x):
        return layers.PReLU(shared_axes=[1, 2])(x)

    def add_pool(self, x):
        return layers.MaxPooling2D(2, 1, "same")(x)

    def add_pad_and_crop(self, x):
        return layers.Cropping2D(((1, 0), (0, 1)))(
            layers.ZeroPadding2D(((0, 1), (1, 0)))(x)
        )

    def add_sum(self, x):
        other = self.pick()
        if other.shape[-1] != x.shape[-1]:
            other = self.conv(other, x.shape[-1])
        kinds = layers.Add, layers.Multiply, layers.Maximum, layers.Subtract
        return self.choice(*kinds)()([x, other])

    def add_concatenation(self, x):
        other = self.pick()
        if x.shape[-1] + other.shape[-1] > 32:
            return self.conv(x)
        return layers.Concatenate()([x, other])

    def add_squeeze_and_excite(self, x):
        y = layers.GlobalAveragePooling2D(keepdims=True)(x)
        y = layers.Conv2D(self.choice(1, 3), 1, activation="relu")(y)
        y = layers.Conv2D(x.shape[-1], 1, activation="sigmoid")(y)
        return layers.Multiply()([x, y])

    def add_spatial_map(self, x):
        return x * layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x)

    def add_slice(self, x):
        start = int(self.random.integers(0, x.shape[-1] // 2))
        stop = int(self.random.integers(start + 2, x.shape[-1] + 1))
        return x[..., start:stop]

    def add_split(self, x):
        at = int(self.random.integers(1, x.shape[-1]))
        parts = ops.split(x, [at], axis=-1)
        return ops.concatenate([parts[1], parts[0]], axis=-1)

    def add_channel_padding(self, x):
        if x.shape[-1] > 24:
            return x
        before, after = self.choice((0, 2), (3, 1))
        return ops.pad(x, ((0, 0), (0, 0), (0, 0), (before, after)))

    def add_shuffle(self, x):
        if x.shape[-1] % 2:
            return x
        y = ops.reshape(x, (-1, 8, 8, 2, x.shape[-1] // 2))
        return ops.reshape(ops.transpose(y, (0, 1, 2, 4, 3)), (-1, 8, 8, x.shape[-1]))

    def add_detour_over_a_sequence(self, x):
        y = layers.Reshape((64, x.shape[-1]))(x)
        y = layers.Conv1D(self.width(), 3, padding="causal", activation="relu")(y)
        return ops.reshape(y, (-1, 8, 8, y.shape[-1]))

    def add_channels_to_the_front(self, x):
        y = layers.Permute((3, 1, 2))(x)
        return layers.Permute((2, 3, 1))(layers.BatchNormalization(axis=1)(y))

    def add_arithmetic(self, x):
        return self.choice(
            lambda: x * 0.5, lambda: 1.0 - x, lambda: x + 2.0, lambda: -x
        )()

    def add_layer_normalization(self, x):
        return layers.LayerNormalization()(x)

    def add_nested(self, x):
        inputs = layers.Input(x.shape[1:])
        y = layers.BatchNormalization()(self.conv(inputs))
        return keras.Model(inputs, self.conv(y))(x)

    def add_shared(self, x):
        width = x.shape[-1]
        shared = layers.Conv2D(width, 3, padding="same", activation="relu")
        return (
            layers.Concatenate()([shared(shared(x)), shared(x)][: 1 + (width < 12)])
            if (width < 12)
            else shared(shared(x))
        )

    def model(self, steps):
        for _ in range(steps):
            self.step()
        x = self.pool[-1]
        x = self.conv(x, 8, activation="relu")
        x = layers.Concatenate()([x, self.conv(self.pool[-2], 8)])
        flat = self.choice(layers.GlobalAveragePooling2D(), layers.Flatten())(x)
        return keras.Model(self.inputs, layers.Dense(3, name="logits")(flat))


def check(seed, steps):
    keras.config.set_dtype_policy("float64")
    model = checker.randomize(Builder(seed).model(steps), seed=seed)
    graph = tfprune.Graph(model)
    check_all(model, tolerance=1e-9)
    return graph


@pytest.mark.parametrize("seed", range(8))
def test_random_graph(seed):
    check(seed, steps=6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 200))
def test_many_random_graphs(seed):
    check(seed, steps=12)
