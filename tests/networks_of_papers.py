"""Networks whose numbers papers give."""

import keras
from keras import layers


def m_cifarnet(normalize=True):
    """M-CifarNet: eight convolutions of 3x3 for CIFAR-10."""
    x = inputs = layers.Input((32, 32, 3))
    widths = (64, 64, 128, 128, 128, 192, 192, 192)
    for number, width in enumerate(widths):
        x = layers.Conv2D(
            width,
            3,
            strides=2 if number in (2, 5) else 1,
            padding="same" if number else "valid",
            use_bias=False,
            name=f"conv{number}",
        )(x)
        if normalize:
            x = layers.BatchNormalization(name=f"bn{number}")(x)
        x = layers.ReLU()(x)
        if number in (2, 5):
            x = layers.Dropout(0.5)(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, name="logits")(x))
