"""One application of every family through all there is: masks, gates, files, costs."""

import architectures
import checker
import keras
import numpy as np
import pytest
import tensorflow as tf
from invariants import check_all, check_saved, halve

import tfprune

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", architectures.FAMILIES)
def test_after_pruning(name, tmp_path):
    model = checker.randomize(architectures.application(name))
    small = halve(model).small
    inputs = checker.make_inputs(small)
    for each in (model, small):
        assert tfprune.cost(each).macs == checker.profiled_macs(each)
    check_saved(small, inputs)
    check_exported(small, inputs, tmp_path / "exported")
    check_trained(small, inputs)


def check_exported(model, inputs, path):
    tfprune.export(model, path)
    artefact = tf.saved_model.load(str(path))
    received = artefact.serve(inputs)
    expected = checker.outputs_of(model, inputs)
    assert checker.relative_error(expected, [np.asarray(received, float)]) < 1e-4


def check_trained(model, inputs):
    """One step of training changes every weight that trains, to finite values."""
    before = [variable.numpy() for variable in model.trainable_variables]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    assert np.isfinite(model.train_on_batch(inputs, np.arange(len(inputs))))
    for variable, old in zip(model.trainable_variables, before, strict=True):
        new = variable.numpy()
        assert np.isfinite(new).all(), variable.path
        assert not np.array_equal(new, old), variable.path


@pytest.mark.parametrize("name", architectures.FAMILIES)
def test_invariants(name):
    # Random weights magnify the rounding of single precision to more than 1e-4.
    keras.config.set_dtype_policy("float64")
    model = checker.randomize(architectures.application(name))
    check_all(model, tolerance=1e-10)


def test_backbone_without_a_head_in_a_model_of_ones_own():
    keras.config.set_dtype_policy("float64")
    backbone = keras.applications.MobileNetV2(
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
