"""Networks that are made alike in Keras 3 and in tf_keras."""


def lenet300(keras):
    """LeNet-300-100: 266,200 weights in three kernels."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((784,)),
            layers.Dense(300, activation="relu", name="fc1"),
            layers.Dense(100, activation="relu", name="fc2"),
            layers.Dense(10, name="fc3"),
        ]
    )


def lenet5(keras):
    """LeNet-5 as Caffe has it: 430,500 weights in four kernels."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(20, 5, name="conv1"),
            layers.MaxPooling2D(),
            layers.Conv2D(50, 5, name="conv2"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(500, activation="relu", name="fc1"),
            layers.Dense(10, name="fc2"),
        ]
    )


def resnet20(keras):
    """ResNet-20 for CIFAR-10."""
    return _resnet(keras, 3, lambda x: x)


def resnet56(keras):
    """ResNet-56 for CIFAR-10, pixels from 0 to 255."""
    return _resnet(keras, 9, keras.layers.Rescaling(1 / 127.5, offset=-1))


def densenet40(keras):
    """DenseNet-40 with a growth rate of 12 for CIFAR-10, pixels from 0 to 255."""
    layers = keras.layers
    inputs = layers.Input((32, 32, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(inputs)

    def conv(x, width, size, name):
        x = layers.ReLU()(layers.BatchNormalization(name=f"{name}_bn")(x))
        x = layers.Conv2D(width, size, padding="same", use_bias=False, name=name)(x)
        return x

    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem")(x)
    for block in range(3):
        if block:
            x = conv(x, x.shape[-1], 1, f"transition{block}")
            x = layers.AveragePooling2D(2)(x)
        for layer in range(12):
            x = layers.Concatenate()([x, conv(x, 12, 3, f"b{block}l{layer}")])
    x = layers.ReLU()(layers.BatchNormalization(name="last_bn")(x))
    x = layers.Dense(10, name="logits")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, x)


def _resnet(keras, blocks, prepare):
    layers = keras.layers
    inputs = layers.Input((32, 32, 3))
    x = prepare(inputs)

    def conv_bn(x, width, size, strides, name):
        x = layers.Conv2D(
            width, size, strides, "same", use_bias=False, name=f"{name}_conv"
        )(x)
        return layers.BatchNormalization(name=f"{name}_bn")(x)

    x = layers.ReLU()(conv_bn(x, 16, 3, 1, "stem"))
    for stage, width in enumerate((16, 32, 64)):
        for block in range(blocks):
            name, strides = f"s{stage}b{block}", 2 if stage and not block else 1
            y = layers.ReLU()(conv_bn(x, width, 3, strides, f"{name}_1"))
            y = conv_bn(y, width, 3, 1, f"{name}_2")
            if strides > 1:
                x = conv_bn(x, width, 1, strides, f"{name}_skip")
            x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Dense(10, name="logits")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, x)
