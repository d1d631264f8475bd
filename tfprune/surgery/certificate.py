"""The certificate: old and new model run on the same inputs and must agree."""

import contextlib
from collections.abc import Callable

import keras
import numpy as np

from tfprune.graph.nodes import (
    as_functional,
    flatten_layers,
    input_structure,
    is_recorded,
    nodes_in_order,
    tree,
)
from tfprune.graph.shapes import OPEN_SIZES, assumed_shape

# Above float rounding of the deepest models, far below one wrong channel.
_TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "float16": 5e-2, "bfloat16": 2e-1}
_LOW = ("float16", "bfloat16")
# Outputs smaller than this part of the largest one may be next to nothing by chance.
_NOTHING = 1e-3


class Certificate:
    """What a model computes on probe inputs, for what is made of it to agree with.

    Models in mixed precision are run in float32, as what low precision rounds away
    would hide errors.

    Args:
        model: the model. It is not changed.
        values: as for `run`.

    Raises:
        ValueError: if the outputs are not finite.
    """

    def __init__(self, model, values: dict | None = None):
        self._model, self._values = model, values
        self._precision = in_float32
        try:
            with in_float32(model):
                self._probes, self._expected = finite_probe(model, values)
        except Exception:
            if not _lowered(model):
                raise
            # Constants of its own in low precision, which do not go with float32.
            self._precision = contextlib.nullcontext
            self._probes, self._expected = finite_probe(model, values)

    def check(self, other) -> float:
        """Returns the relative error of another model; raises if it is beyond rounding.

        Raises:
            ValueError: if the outputs differ or are not finite.
        """
        with self._precision(self._model), self._precision(other):
            received = run(other, self._probes)
            return certify(self._expected, received, self._model, self._rerun)

    def _rerun(self):
        return run(self._model, nudged(self._probes), self._values)


@contextlib.contextmanager
def in_float32(model):
    """Lets the layers of a model compute in float32; those that are quantized do not."""
    policies = [(layer, layer.dtype_policy) for layer in _lowered(model)]
    try:
        for layer, _ in policies:
            layer.dtype_policy = "float32"
        yield
    finally:
        for layer, policy in policies:
            layer.dtype_policy = policy


def _lowered(model) -> list:
    """Returns the layers whose policies let them compute in low precision."""
    layers = {id(layer): layer for layer in flatten_layers(model)}
    return [layer for layer in layers.values() if _is_low(layer.dtype_policy)]


def _is_low(policy) -> bool:
    is_plain = not isinstance(policy, keras.dtype_policies.DTypePolicyMap)
    return (
        is_plain and policy.quantization_mode is None and policy.compute_dtype in _LOW
    )


def probe_inputs(
    model,
    batch_size: int = 2,
    seed: int = 0,
    largest: float | None = 255.0,
    size: int | None = None,
):
    """Returns random inputs in the structure a model is called with.

    Half of the samples are standard normal, half uniform in 0..largest, so that
    models with and without a normalization inside both get inputs that make a
    difference.

    Args:
        model: built Functional or Sequential model.
        batch_size: number of samples.
        seed: int.
        largest: upper end of the uniform half. None for inputs that may be looked up
            by: all 0.5 or 1.5, which rounding leaves the index that it is.
        size: what takes the place of sizes that the model leaves open; by default
            `open_size(model)`.
    """
    random = np.random.default_rng(seed)
    functional = as_functional(model)
    size = open_size(model) if size is None else size
    words = _words(functional)

    def probe(keras_tensor):
        shape = assumed_shape(keras_tensor, size)
        shape = (shape[0] or batch_size, *shape[1:])
        if keras_tensor.dtype == "string":
            return keras.ops.convert_to_tensor(random.choice(words, shape), "string")
        if "int" in keras_tensor.dtype or keras_tensor.dtype == "bool":
            values = random.integers(0, 2, shape)
            # Keras refuses a structure of arrays and tensors.
            return keras.ops.cast(values, keras_tensor.dtype)
        if largest is None:
            values = random.integers(0, 2, shape) + 0.5
            return keras.ops.cast(values, keras_tensor.dtype)
        values = random.normal(size=shape)
        values[1::2] = random.uniform(0, largest, values[1::2].shape)
        return keras.ops.cast(values.astype("float32"), keras_tensor.dtype)

    return tree.map_structure(probe, input_structure(functional))


def _words(model) -> list[str]:
    """Returns words that a model looks up, some of each vocabulary, and others."""
    lookups = [x for x in flatten_layers(model) if hasattr(x, "get_vocabulary")]
    known = [str(word) for x in lookups for word in x.get_vocabulary()[:100]]
    return [*known, "a word", "7", ""]


def open_size(model) -> int:
    """Returns the first of `OPEN_SIZES` that a model can be run with."""
    is_open = any(None in x.shape[1:] for x in as_functional(model).inputs)
    for size in OPEN_SIZES[:-1] if is_open else ():
        try:
            run(model, probe_inputs(model, 1, largest=None, size=size))
            return size
        except Exception:
            # Whatever a layer says to a size that it was not made for.
            continue
    return OPEN_SIZES[-1]


def finite_probe(model, values: dict | None = None):
    """Returns probe inputs and the model's outputs on them, all finite.

    Args:
        model: the model to run.
        values: as for `run`.

    Raises:
        ValueError: if the outputs are not finite on small inputs either.
    """
    size = open_size(model)
    for largest in (255.0, 1.0, None):
        probes = probe_inputs(model, largest=largest, size=size)
        try:
            outputs = run(model, probes, values)
        except Exception:
            if largest is None:
                raise
            # Tokens in an input of floats, as `keras.Input` makes them by default.
            continue
        if _are_finite(outputs):
            return probes, outputs
    if values is not None and _are_finite(run(model, probes)):
        raise ValueError(
            f"Model {model.name!r} gives outputs that are finite, but not with its "
            "masked channels at zero, so nothing done to it can be verified. Add an "
            "epsilon to what it divides by, or takes the logarithm of."
        )
    broken = [v.path for v in model.variables if not _is_finite(v)]
    raise ValueError(
        f"Model {model.name!r} gives outputs that are not finite, so nothing done to it "
        f"can be verified. Variables with NaN or infinity: {broken[:4] or 'none'}."
    )


def _are_finite(outputs) -> bool:
    return all(map(_is_finite, tree.flatten(outputs)))


def _is_finite(x) -> bool:
    if not keras.backend.is_float_dtype(x.dtype):
        return True
    return bool(np.isfinite(_as_float64(x)).all())


def _as_float64(x) -> np.ndarray:
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float64"))


def max_relative_error(expected, received) -> float:
    """Returns the largest error of all outputs and samples, relative to their maximum.

    Args:
        expected: array, or structure of arrays.
        received: the same structure.
    """
    pairs = zip(tree.flatten(expected), tree.flatten(received), strict=True)
    errors = [_errors_by_sample(*pair) for pair in pairs]
    # Not Python's `max`: a NaN must come out as NaN, which no bound accepts.
    return float(np.max(np.concatenate([[0.0], *errors])))


def _errors_by_sample(expected, received) -> np.ndarray:
    """Returns one error per sample: large inputs must not hide those of small ones."""
    if tuple(expected.shape) != tuple(received.shape):
        return np.array([float("inf")])
    a, b = _as_numbers(expected, received)
    samples = len(a) if a.ndim else 1
    a, b = (x.reshape(samples, x.size // max(1, samples)) for x in (a, b))
    scales = np.abs(a).max(axis=1, initial=0.0)
    scales = np.maximum(scales, _NOTHING * scales.max(initial=0.0))
    errors = np.abs(a - b).max(axis=1, initial=0.0)
    return errors / np.where(scales > 0, scales, 1.0)


def _as_numbers(expected, received) -> tuple[np.ndarray, np.ndarray]:
    """Returns what to compare; of words only whether they are the same."""
    if keras.backend.standardize_dtype(expected.dtype) != "string":
        return _as_float64(expected), _as_float64(received)
    differ = np.asarray(expected) != np.asarray(received)
    return differ.astype(float), np.zeros(differ.shape)


def run(model, inputs, values: dict | None = None):
    """Runs a model in inference, on other values of its variables if given.

    What it draws, or goes on from, is the same every time.

    Args:
        model: the model; it is not changed, nor are its seeds and states.
        inputs: structure as of `probe_inputs`.
        values: `{id(variable): array}` in the place of the model's own values.
    """
    if values is None:
        with keras.StatelessScope():
            return model(inputs, training=False)
    trainable, fixed = (
        [keras.ops.convert_to_tensor(values.get(id(v), v)) for v in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    )
    outputs, _ = model.stateless_call(trainable, fixed, inputs, training=False)
    return outputs


def nudged(inputs):
    """Returns inputs that differ from others by what rounding makes of them."""
    return tree.map_structure(
        lambda x: x * (1 + 1e-6) if keras.backend.is_float_dtype(x.dtype) else x, inputs
    )


def certify(expected, received, model, rerun: Callable | None = None) -> float:
    """Returns the relative error between outputs; raises if it is beyond rounding.

    Args:
        expected: outputs of `model`.
        received: outputs of what was made of it.
        model: the model; how much rounding is allowed depends on what it computes in.
        rerun: function that runs `model` on the `nudged` inputs, called only if the
            outputs differ: what the model magnifies by itself is no difference.

    Raises:
        ValueError: if the outputs differ or are not finite.
    """
    error = max_relative_error(expected, received)
    tolerance = max(_TOLERANCE.get(dtype, 0.0) for dtype in _dtypes(model))
    if error <= tolerance:
        return error
    if rerun is None or not _is_rounding(expected, received, rerun(), tolerance):
        raise ValueError(
            f"The new {model.name!r} does not compute what the old one does: relative "
            f"error {error:.2g} on probe inputs, allowed {tolerance:g}."
        )
    return error


def _is_rounding(expected, received, rerun, tolerance: float) -> bool:
    """Returns whether the model magnifies rounding to errors of this size.

    A deep network may do so for inputs that it was not made for. Every output needs a
    sample for which it does not, or nothing would be verified.
    """
    outputs = (tree.flatten(each) for each in (expected, received, rerun))
    for own, other, again in zip(*outputs, strict=True):
        errors, changes = _errors_by_sample(own, other), _errors_by_sample(own, again)
        within = errors <= np.maximum(tolerance, 4 * changes)
        if not within.all() or changes.min() > tolerance:
            return False
    return True


def _dtypes(model) -> set[str]:
    """Returns the data types that a model rounds to."""
    dtypes = {variable.dtype for variable in model.variables}
    for layer in flatten_layers(model):
        dtypes.add(layer.compute_dtype)
        dtypes |= {cast.dtype for cast in _casts(layer)}
    return dtypes


def _casts(layer) -> list:
    """Returns the operations in a layer's graph that have a data type of their own."""
    if not is_recorded(layer):
        return []
    operations = [node.operation for node in nodes_in_order(as_functional(layer))]
    plain = [x for x in operations if not isinstance(x, keras.layers.Layer)]
    return [x for x in plain if isinstance(getattr(x, "dtype", None), str)]
