"""The certificate tells rounding that a model magnifies from a wrong model."""

import numpy as np
import pytest

from tfprune.surgery.certificate import certify, nudged

EXPECTED = np.array([[1.0, 2.0], [100.0, 200.0]])
# By how much the outputs change where inputs are rounded: the second sample explodes.
RERUN = EXPECTED * [[1.0], [1.005]]


@pytest.fixture
def model(make_residual):
    return make_residual(4)


def test_rounding_is_no_error(model):
    assert certify(EXPECTED, EXPECTED * (1 + 1e-5), model) == pytest.approx(1e-5)


def test_an_error_is_one_without_a_second_run(model):
    with pytest.raises(ValueError, match="error 0.01 on probe inputs"):
        certify(EXPECTED, EXPECTED * [[1], [1.01]], model)


def test_what_the_model_magnifies_by_itself_is_no_error(model):
    received = EXPECTED * [[1], [1.01]]
    assert certify(EXPECTED, received, model, lambda: RERUN) == pytest.approx(0.01)


@pytest.mark.parametrize(
    "received",
    [
        EXPECTED * [[1], [1.05]],
        # Small beside the second sample, not beside the first.
        EXPECTED * [[1.01], [1.01]],
        EXPECTED * [[np.nan], [1.0]],
    ],
)
def test_more_than_it_magnifies_is_an_error(model, received):
    with pytest.raises(ValueError, match="does not compute what the old one does"):
        certify(EXPECTED, received, model, lambda: RERUN)


def test_one_sample_has_to_be_calm(model):
    received = EXPECTED * 1.01
    with pytest.raises(ValueError, match="does not compute what the old one does"):
        certify(EXPECTED, received, model, lambda: EXPECTED * 1.01)


def test_only_numbers_with_a_fraction_are_nudged():
    inputs = {"a": np.ones(2, "float32"), "b": np.ones(2, "int32")}
    changed = nudged(inputs)
    assert (changed["a"] != 1).all() and (changed["b"] == 1).all()
