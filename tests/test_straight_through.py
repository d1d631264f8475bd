"""Estimators against their formulas in NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from tfprune.straight_through import ESTIMATORS, RULES, masked, passing, slope

SLOPES = {
    "linear": np.ones_like,
    "leaky_relu": lambda m: np.where(m > 0, 1.0, 0.2),
    "softplus": lambda m: 1 / (1 + np.exp(-m)),
    "softplus_value": lambda m: np.log1p(np.exp(m)),
}


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    w, m, upstream = random.normal(size=(3, 50)).astype("float32")
    w[0], m[1] = 0.0, 0.0
    return w, m, upstream


def gradients(w, m, upstream, *settings, jit=False):
    @tf.function(jit_compile=jit)
    def run(w, m, upstream):
        with tf.GradientTape() as tape:
            tape.watch([w, m])
            out = masked(w, m, *settings)
        return out, *tape.gradient(out, [w, m], output_gradients=upstream)

    return [x.numpy() for x in run(*map(tf.constant, (w, m, upstream)))]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("jit", [False, True])
def test_forward_and_both_gradients(arrays, estimator, rule, jit):
    w, m, upstream = arrays
    out, dw, dm = gradients(w, m, upstream, estimator, rule, jit=jit)
    is_open = m > 0
    np.testing.assert_array_equal(out, np.where(is_open, w, 0))
    np.testing.assert_array_equal(dw, np.where(is_open, upstream, 0))
    factor = np.sign(w) if rule == "modified" else w
    expected = factor * upstream * SLOPES[estimator](m)
    np.testing.assert_allclose(dm, expected, rtol=1e-5, atol=1e-7)


def test_negative_slope_is_that_of_closed_scores():
    found = slope(tf.constant([-2.0, 0.0, 2.0]), "leaky_relu", 0.5)
    assert found.numpy().tolist() == [0.5, 0.5, 1.0]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_modified_rule_does_not_know_the_size_of_a_weight(arrays, estimator):
    w, m, upstream = arrays
    small, large = (
        gradients(c * w, m, upstream, estimator, "modified")[2] for c in (1, 8)
    )
    np.testing.assert_array_equal(small, large)
    coarse, larger = (
        gradients(c * w, m, upstream, estimator, "coarse")[2] for c in (1, 8)
    )
    np.testing.assert_array_equal(8 * coarse, larger)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_modified_rule_never_goes_against_the_coarse_one(arrays, estimator):
    w, m, upstream = arrays
    one = gradients(w, m, upstream, estimator, "modified")[2]
    other = gradients(w, m, upstream, estimator, "coarse")[2]
    assert (one * other >= 0).all() and (one * other > 0).sum() == 49


def test_half_precision_weights_give_scores_float32_gradients():
    w = tf.constant([1e-4, 2.0], "float16")
    m = tf.constant([1.0, -1.0])
    with tf.GradientTape() as tape:
        tape.watch([w, m])
        out = masked(w, m, "linear")
    dw, dm = tape.gradient(out, [w, m])
    assert (out.dtype, dw.dtype, dm.dtype) == ("float16", "float16", "float32")
    assert dm.numpy().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_mask_passes_its_gradient_to_the_scores(arrays, estimator):
    _, m, upstream = arrays
    scores, mask = tf.constant(m), tf.constant(m < 0)
    with tf.GradientTape() as tape:
        tape.watch(scores)
        out = passing(mask, scores, estimator)
    np.testing.assert_array_equal(out, np.where(m < 0, 1, 0))
    found = tape.gradient(out, scores, output_gradients=tf.constant(upstream))
    np.testing.assert_allclose(found, upstream * SLOPES[estimator](m), rtol=1e-5)
