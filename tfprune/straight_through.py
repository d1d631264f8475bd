"""Straight-through estimators: gradients for masks that are cut out of scores.

A mask is 1 where its score is above zero. That step has no useful gradient, so an
estimator stands in for it: the derivative of a function like a step. TensorFlow only.
"""

import tensorflow as tf

ESTIMATORS = ("softplus", "linear", "leaky_relu", "softplus_value")
RULES = ("modified", "coarse")


def slope(scores, estimator="softplus", negative_slope=0.2):
    """Returns what an estimator takes for the derivative of the mask, all positive.

    Args:
        scores: float tensor.
        estimator: `"linear"` (1), `"leaky_relu"` (1, and `negative_slope` where the
            score is not above zero), `"softplus"` (the derivative of softplus, the
            sigmoid) or `"softplus_value"` (softplus itself).
        negative_slope: float above zero.

    Example:

    >>> slope(tf.constant([-1.0, 1.0]), "leaky_relu", 0.2).numpy().tolist()
    [0.20000000298023224, 1.0]
    """
    if estimator == "linear":
        return tf.ones_like(scores)
    if estimator == "leaky_relu":
        below = tf.constant(negative_slope, scores.dtype)
        return tf.where(scores > 0, tf.ones_like(scores), below)
    return tf.nn.sigmoid(scores) if estimator == "softplus" else tf.nn.softplus(scores)


def sloped(values, scores, estimator="softplus", negative_slope=0.2):
    """Returns values times `slope(scores)`, all of the same shape.

    Args:
        values: float tensor.
        scores: float tensor.
        estimator: see `slope`.
        negative_slope: see `slope`.
    """
    if estimator == "linear":
        return values
    if estimator == "softplus":
        # Both in one operation.
        return tf.raw_ops.SoftplusGrad(gradients=values, features=scores)
    return values * slope(scores, estimator, negative_slope)


def masked(weights, scores, estimator="softplus", rule="modified", negative_slope=0.2):
    """Returns weights where scores are above zero, and zeros elsewhere.

    With t for the result, L for the loss and h for the mask, the gradients are
    `dL/dw = dL/dt * h` and `dL/dm = sign(w) * dL/dt * slope(m)`, or with
    `rule="coarse"` the chain rule's `w * dL/dt * slope(m)`. A closed weight gets no
    gradient; its score does, and can rise again.

    Args:
        weights: float tensor.
        scores: float32 tensor of the same shape; its gradient is float32 under any
            policy.
        estimator: see `slope`.
        rule: `"modified"` or `"coarse"`.
        negative_slope: see `slope`.

    Source: Xiao et al., "AutoPrune", 2019, equation 7 (`rule="modified"`).

    Example:

    >>> masked(tf.constant([2.0, 3.0]), tf.constant([0.1, -0.1])).numpy().tolist()
    [2.0, 0.0]
    """

    @tf.custom_gradient
    def operation(w, m):
        # Products, which take a fraction of the time of `tf.where` with a scalar.
        is_open = tf.cast(m > 0, w.dtype)

        def gradient(upstream):
            factor = tf.cast(tf.sign(w) if rule == "modified" else w, m.dtype)
            change = tf.cast(upstream, m.dtype) * factor
            return (
                upstream * is_open,
                sloped(change, m, estimator, negative_slope),
            )

        return w * is_open, gradient

    # Tensors: a variable read inside would be one more input of the gradient.
    return operation(tf.convert_to_tensor(weights), tf.convert_to_tensor(scores))


def passing(mask, scores, estimator="softplus", negative_slope=0.2):
    """Returns a mask as numbers, whose gradients go to the scores behind it.

    Args:
        mask: bool tensor.
        scores: float32 tensor of the same shape; its gradient is that of the result
            times `slope(scores)`.
        estimator: see `slope`.
        negative_slope: see `slope`.

    Example:

    >>> passing(tf.constant([True, False]), tf.constant([0.1, -0.1])).numpy().tolist()
    [1.0, 0.0]
    """
    mask = tf.convert_to_tensor(mask)

    @tf.custom_gradient
    def operation(m):
        def gradient(upstream):
            return sloped(upstream, m, estimator, negative_slope)

        return tf.cast(mask, m.dtype), gradient

    return operation(tf.convert_to_tensor(scores))
