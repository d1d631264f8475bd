"""Networks that people use: all of keras.applications, and a few blocks of each kind."""

from keras import Model, applications, layers, ops
from keras.src.applications import (
    convnext,
    densenet,
    efficientnet,
    efficientnet_v2,
    inception_v3,
    mobilenet,
    mobilenet_v2,
    mobilenet_v3,
    resnet,
)

NAMES = tuple(sorted(name for name in dir(applications) if name[0].isupper()))
FAMILIES = (
    "ConvNeXtTiny",
    "DenseNet121",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "InceptionResNetV2",
    "InceptionV3",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "NASNetMobile",
    "ResNet50",
    "ResNet50V2",
    "VGG16",
    "Xception",
)


def application(name, size=None):
    """Returns an application of ten classes at `size`, or the smallest it is run at."""
    smallest = 75 if name.startswith(("Inception", "Xception")) else 64
    return getattr(applications, name)(**_settings(size or smallest))


def _settings(size=32):
    return {
        "weights": None,
        "classes": 10,
        "input_shape": (size, size, 3),
        "classifier_activation": None,
    }


# What the applications are made of, few blocks of it.


def _resnet():
    def stacks(x):
        x = resnet.stack_residual_blocks_v1(x, 16, 2, stride1=1, name="conv2")
        return resnet.stack_residual_blocks_v1(x, 32, 2, name="conv3")

    return resnet.ResNet(stacks, preact=False, use_bias=True, **_settings())


def _resnet_v2():
    def stacks(x):
        x = resnet.stack_residual_blocks_v2(x, 16, 2, name="conv2")
        return resnet.stack_residual_blocks_v2(x, 32, 2, stride1=1, name="conv3")

    return resnet.ResNet(stacks, preact=True, use_bias=True, **_settings())


def _densenet():
    return densenet.DenseNet([2, 2, 2, 2], **_settings())


def _efficientnet():
    blocks = [efficientnet.DEFAULT_BLOCKS_ARGS[i] for i in (0, 1, 2)]
    return efficientnet.EfficientNet(
        0.5, 1.0, 64, blocks_args=[{**b} for b in blocks], **_settings()
    )


def _efficientnet_v2():
    blocks = efficientnet_v2.DEFAULT_BLOCKS_ARGS["efficientnetv2-b0"]
    blocks = [{**blocks[i], "num_repeat": 1 + i % 2} for i in (0, 1, 3)]
    return efficientnet_v2.EfficientNetV2(
        0.5, 1.0, 64, blocks_args=blocks, **_settings()
    )


def _mobilenet():
    inputs, x = _stem()
    for number, (width, strides) in enumerate(((16, 1), (24, 2), (24, 1)), start=1):
        x = mobilenet._depthwise_conv_block(
            x, width, alpha=1.0, strides=(strides, strides), block_id=number
        )
    return _head(inputs, x)


def _mobilenet_v2():
    inputs, x = _stem()
    for number, (width, stride) in enumerate(((16, 1), (24, 2), (24, 1), (32, 2))):
        x = mobilenet_v2._inverted_res_block(
            x, expansion=4, stride=stride, alpha=1.0, filters=width, block_id=number
        )
    return _head(inputs, x)


def _mobilenet_v3():
    def stack(x, kernel, activation, squeeze):
        block = mobilenet_v3._inverted_res_block
        x = block(x, 1, 16, 3, 2, squeeze, mobilenet_v3.relu, 0)
        x = block(x, 4, 24, kernel, 2, None, activation, 1)
        return block(x, 4, 24, kernel, 1, squeeze, activation, 2)

    return mobilenet_v3.MobileNetV3(stack, 64, minimalistic=False, **_settings())


def _inception():
    convolution = inception_v3.conv2d_bn
    inputs, x = _stem()
    for _ in range(2):
        branches = [
            convolution(x, 16, 1, 1),
            convolution(convolution(x, 8, 1, 1), 12, 5, 5),
            convolution(convolution(convolution(x, 8, 1, 1), 12, 1, 7), 12, 7, 1),
            convolution(layers.AveragePooling2D(3, 1, "same")(x), 8, 1, 1),
        ]
        x = layers.Concatenate()(branches)
    return _head(inputs, x)


def _xception():
    inputs, x = _stem()
    for width in (16, 24):
        shortcut = layers.Conv2D(width, 1, 2, "same", use_bias=False)(x)
        shortcut = layers.BatchNormalization()(shortcut)
        for _ in range(2):
            x = layers.SeparableConv2D(width, 3, padding="same", use_bias=False)(
                layers.ReLU()(x)
            )
            x = layers.BatchNormalization()(x)
        x = layers.Add()([layers.MaxPooling2D(3, 2, "same")(x), shortcut])
    return _head(inputs, x)


def _convnext():
    return convnext.ConvNeXt([1, 0, 0, 1], [8, 16, 24, 32], **_settings())


def _vgg():
    inputs = x = layers.Input((32, 32, 3))
    for width in (8, 16):
        for _ in range(2):
            x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Dense(32, "relu")(layers.Flatten()(x))
    return Model(inputs, layers.Dense(10)(layers.Dense(24, "relu")(x)))


def _stem():
    inputs = layers.Input((32, 32, 3))
    x = layers.Conv2D(12, 3, 2, "same", use_bias=False)(inputs)
    return inputs, layers.ReLU()(layers.BatchNormalization()(x))


def _head(inputs, x):
    return Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


SMALL = {
    "convnext": _convnext,
    "densenet": _densenet,
    "efficientnet": _efficientnet,
    "efficientnet_v2": _efficientnet_v2,
    "inception": _inception,
    "mobilenet": _mobilenet,
    "mobilenet_v2": _mobilenet_v2,
    "mobilenet_v3": _mobilenet_v3,
    "resnet": _resnet,
    "resnet_v2": _resnet_v2,
    "vgg": _vgg,
    "xception": _xception,
}


def resnet56(shortcut="projection"):
    """The ResNet-56 for CIFAR-10, with convolutions in its shortcuts or "padding"."""
    inputs = layers.Input((32, 32, 3))
    x = layers.ReLU()(_conv_bn(inputs, 16, 3, 1, "stem"))
    for stage, width in enumerate((16, 32, 64)):
        for block in range(9):
            strides = 2 if stage and not block else 1
            name = f"stage{stage}_block{block}"
            y = layers.ReLU()(_conv_bn(x, width, 3, strides, f"{name}_first"))
            y = _conv_bn(y, width, 3, 1, f"{name}_second")
            if strides > 1 and shortcut == "projection":
                x = _conv_bn(x, width, 1, strides, f"{name}_shortcut")
            elif strides > 1:
                widths = ((0, 0),) * 3 + ((width // 4, width // 4),)
                x = ops.pad(x[:, ::2, ::2], widths)
            x = layers.ReLU()(layers.Add(name=f"{name}_add")([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return Model(inputs, layers.Dense(10, name="logits")(x))


def _conv_bn(x, width, size, strides, name):
    x = layers.Conv2D(
        width, size, strides, padding="same", use_bias=False, name=f"{name}_conv"
    )(x)
    return layers.BatchNormalization(name=f"{name}_bn")(x)
