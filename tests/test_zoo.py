"""Every invariant on networks that people use: small versions, then the real ones."""

import checker
import keras
import pytest
from invariants import check_all
from keras import applications
from keras.src.applications import densenet, efficientnet, resnet

import tfprune

# One family of each kind stays in the fast suite, in few layers.


def _resnet():
    def stacks(x):
        x = resnet.stack_residual_blocks_v1(x, 16, 2, stride1=1, name="conv2")
        return resnet.stack_residual_blocks_v1(x, 32, 2, name="conv3")

    return resnet.ResNet(
        stacks,
        preact=False,
        use_bias=True,
        weights=None,
        input_shape=(64, 64, 3),
        classes=10,
        classifier_activation=None,
    )


def _resnet_v2():
    def stacks(x):
        x = resnet.stack_residual_blocks_v2(x, 16, 2, name="conv2")
        return resnet.stack_residual_blocks_v2(x, 32, 2, stride1=1, name="conv3")

    return resnet.ResNet(
        stacks,
        preact=True,
        use_bias=True,
        weights=None,
        input_shape=(64, 64, 3),
        classes=10,
        classifier_activation=None,
    )


def _densenet():
    return densenet.DenseNet([2, 2, 2, 2], **_settings())


def _efficientnet():
    blocks = [efficientnet.DEFAULT_BLOCKS_ARGS[i] for i in (0, 1, 2)]
    return efficientnet.EfficientNet(
        0.5, 1.0, 64, blocks_args=[{**b} for b in blocks], **_settings()
    )


def _settings(size=64):
    return {
        "weights": None,
        "classes": 10,
        "input_shape": (size, size, 3),
        "classifier_activation": None,
    }


FAST = {
    "resnet": _resnet,
    "resnet_v2": _resnet_v2,
    "densenet": _densenet,
    "efficientnet": _efficientnet,
    "mobilenet_v2": lambda: applications.MobileNetV2(alpha=0.35, **_settings()),
    "mobilenet_v3": lambda: applications.MobileNetV3Small(**_settings()),
}
SLOW = (
    "ResNet50",
    "ResNet50V2",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Large",
    "DenseNet121",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "VGG16",
    "Xception",
    "InceptionV3",
    "NASNetMobile",
    "ConvNeXtTiny",
)


def check(model, tolerance):
    checker.randomize(model)
    graph, masks, small = check_all(model, tolerance=tolerance)
    assert tfprune.cost(small) == tfprune.cost(graph, masks)
    return graph, small


@pytest.mark.parametrize("name", sorted(FAST))
def test_small_version(name):
    # Deep random networks magnify rounding a thousandfold: in float64 what is left
    # is exactness.
    keras.config.set_dtype_policy("float64")
    graph, small = check(FAST[name](), tolerance=1e-9)
    # Random channels of half of every group leave about a quarter of the work.
    assert tfprune.cost(small).macs < 0.45 * tfprune.cost(graph).macs
    assert not graph.skipped


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_application(name):
    model = getattr(applications, name)(
        **_settings(75 if name == "InceptionV3" else 96)
    )
    _, small = check(model, tolerance=1e-4)
    if name != "ConvNeXtTiny":
        assert tfprune.cost(model).macs == checker.profiled_macs(model)
        assert tfprune.cost(small).macs == checker.profiled_macs(small)
    pruned = tfprune.prune(model, 0.5)
    checker.check_slices(model, pruned, tolerance=1e-4)
    ratio = tfprune.cost(pruned).macs / tfprune.cost(model).macs
    assert 0.49 <= ratio <= 0.5


@pytest.mark.slow
def test_backbone_without_a_head_in_a_model_of_ones_own():
    keras.config.set_dtype_policy("float64")
    backbone = applications.MobileNetV2(
        input_shape=(64, 64, 3), include_top=False, weights=None, alpha=0.35
    )
    backbone.trainable = False
    inputs = keras.Input((64, 64, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(backbone(x, training=False))
    model = keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Dropout(0.2)(x)))
    backbone.trainable = True
    checker.randomize(model)
    backbone.trainable = False
    check_all(model, tolerance=1e-9)
