"""Deployment artefacts, checked against the model before they take their name."""

import contextlib
import importlib.util
import warnings
from pathlib import Path

import keras

from tfprune import surgery, writing
from tfprune.graph.nodes import (
    as_functional,
    flatten_layers,
    input_structure,
    inside_call,
)
from tfprune.layers.runtime_conv import RuntimeConv2D
from tfprune.surgery import certificate
from tfprune.surgery.gates import has_runtime_gates

# LiteRT itself has no operations in float16 or bfloat16.
_PRECISION = {"litert": certificate.in_float32}
_SUFFIXES = {
    "tf_saved_model": "",
    "litert": ".tflite",
    "onnx": ".onnx",
    "keras": ".keras",
}
# What writes a file of this format, and what runs it.
_PACKAGES = {"onnx": ("tf2onnx", "onnxruntime")}


def export(model, path, format="tf_saved_model", overwrite=False, sparse=False):
    """Writes a model as an artefact that needs neither tfprune nor the model's code.

    A Keras file is the exception: it needs the code of layers that are not Keras's own,
    as runtime gates are; of others it holds the model alone, not compiled. Gates are
    folded away first, so that the artefact is plain TensorFlow. It is written beside
    `path`, loaded again and run on probe inputs, and takes its name only when its
    outputs are those of the model. The model is not changed, and on any failure `path`
    is as it was.

    Args:
        model: built Functional or Sequential model, with or without gates; of a
            subclassed one give `Graph(model).model`.
        path: str or `pathlib.Path`. A directory for `"tf_saved_model"`, a file that
            ends in `.tflite`, `.onnx` or `.keras` for the others.
        format: `"tf_saved_model"`, `"litert"` or `"onnx"`, the names of
            `keras.Model.export`, or `"keras"` for a plain Keras file.
        overwrite: bool. Whether an artefact at `path` is replaced.
        sparse: bool. For `"litert"`: whether kernels with enough zeros are written
            without them. The file is smaller; whether it runs faster is up to the
            interpreter (XNNPACK has sparse 1x1 convolutions).

    Returns:
        The path written, a `pathlib.Path`.

    Raises:
        ValueError: an unknown format, a path that does not suit it, or an artefact
            whose outputs differ from the model's.
        OSError: `path` exists, or cannot be written.
        ImportError: the packages that ONNX needs are missing.

    Example:

    ```python
    tfprune.export(small, "small", overwrite=True)
    reloaded = tf.saved_model.load("small")
    predictions = reloaded.serve(images)
    ```
    """
    if sparse and format != "litert":
        raise ValueError(
            '`sparse` goes with format="litert". Received: sparse=True, '
            f"format={format!r}."
        )
    check_path(path, format, overwrite)
    if format == "litert":
        _check_convertible(model)
    with writing.write_aside(path, _SUFFIXES[format], overwrite) as aside:
        plain = _without_ours(model, format)
        inputs = certificate.probe_inputs(plain)
        with _PRECISION.get(format, contextlib.nullcontext)(plain):
            # Before writing, because Keras exports to ONNX only what has been called.
            expected = certificate.run(plain, inputs)
            _write(plain, aside, format, sparse)
            _verify(plain, aside, format, inputs, expected)
    return Path(path)


def check_path(path, format, overwrite=False):
    """Raises the error that writing `path` would meet, before any work is done."""
    if format not in _SUFFIXES:
        raise ValueError(
            f"`format` must be one of {', '.join(map(repr, _SUFFIXES))}. "
            f"Received: format={format!r}."
        )
    meant = {suffix: name for name, suffix in _SUFFIXES.items() if suffix}
    by_ending = meant.get(Path(path).suffix, format)
    if by_ending != format:
        raise ValueError(
            f"`format` and the ending of `path` must agree. Received: path={path}, "
            f"format={format!r}. Pass format={by_ending!r}, or another path."
        )
    writing.check_path(path, _SUFFIXES[format], overwrite)
    packages = _PACKAGES.get(format, ())
    missing = [each for each in packages if importlib.util.find_spec(each) is None]
    if missing:
        raise ImportError(
            f"`format={format!r}` needs packages that are not installed. "
            f"Install them with: pip install {' '.join(missing)}"
        )


def _without_ours(model, format):
    """Returns a model without gates and, for a Keras file, our constraints."""
    # The file would hold an optimizer as well, which may be one of ours.
    is_file = format == "keras" and not has_runtime_gates(model)
    return surgery.strip(model) if is_file or surgery.has_gates(model) else model


def _write(model, path, format, sparse):
    if format == "keras":
        model.save(path)
        return
    if format == "tf_saved_model":
        _write_saved_model(model, path)
        return
    settings = {"optimizations": [_sparsity()]} if sparse else {}
    # As in `_write_saved_model`: what augments in training does not in a file.
    with inside_call(model, training=False):
        model.export(path, format=format, verbose=False, **settings)


def _check_convertible(model):
    """Raises an error for convolutions whose width is known when an image is."""
    for layer in flatten_layers(model):
        if isinstance(layer, RuntimeConv2D) and layer.is_dynamic:
            raise ValueError(
                "LiteRT has no convolution of a width that changes from image to "
                f"image, and {layer.name!r} is one. Deploy with "
                '`mode="bucket"`, or with gates whose counts are fixed '
                "(`agent=None`), or export a SavedModel."
            )


def _sparsity():
    import tensorflow as tf

    return tf.lite.Optimize.EXPERIMENTAL_SPARSITY


def _write_saved_model(model, path):
    archive = keras.export.ExportArchive()
    archive.track(model)
    signature = [input_structure(as_functional(model))]

    # Keras's augmenting layers take a call that does not say for one in training.
    def serve(inputs):
        return model(inputs, training=False)

    archive.add_endpoint("serve", serve, signature)
    # `model.export` stops here, and its file has every weight twice: as the variable
    # that the endpoint uses, and as the Keras variable around it.
    for name in ("variables", "trainable_variables", "non_trainable_variables"):
        values = [variable.value for variable in getattr(model, name)]
        archive.add_variable_collection(name, values)
    archive.write_out(path, verbose=False)


def _verify(model, path, format, inputs, expected):
    try:
        received = _RUNNERS[format](model, path, inputs)
        certificate.certify(expected, received, model)
    except Exception as error:
        if "Flex" in str(error):
            raise ValueError(
                f"{model.name!r} needs operations of TensorFlow that LiteRT runs only "
                "with its Flex delegate, which is not here to verify the file with. "
                "Nothing was written. Recurrent layers can do without if they are made "
                "with `unroll=True` and inputs of a fixed length."
            ) from error
        raise ValueError(
            f"The artefact must compute what {model.name!r} computes, and in "
            f"format={format!r} it does not. Nothing was written. {error}"
        ) from error


def _run_saved_model(model, path, inputs):
    import tensorflow as tf

    # Its variables live as long as this reference.
    artefact = tf.saved_model.load(str(path))
    return artefact.serve(inputs)


def _run_litert(model, path, inputs):
    outputs = _litert_interpreter(path).get_signature_runner()(**_named(model, inputs))
    # Outputs without names of their own are numbered, and 10 must not precede 2.
    numbered = [f"output_{i}" for i in range(len(outputs))]
    if outputs.keys() == set(numbered):
        return [outputs[name] for name in numbered]
    return dict(outputs)


def _run_onnx(model, path, inputs):
    import onnxruntime

    return onnxruntime.InferenceSession(path).run(None, _named(model, inputs))


def _named(model, inputs):
    names = [tensor.name for tensor in model.inputs]
    arrays = [keras.ops.convert_to_numpy(x) for x in keras.tree.flatten(inputs)]
    return dict(zip(names, arrays, strict=True))


def _run_keras(model, path, inputs):
    # The file was written a moment ago from a model in memory: nothing to distrust.
    reloaded = keras.saving.load_model(path, compile=False, safe_mode=False)
    return certificate.run(reloaded, inputs)


def _litert_interpreter(path):
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError:
        import tensorflow as tf

        Interpreter = tf.lite.Interpreter
    with warnings.catch_warnings():
        # TensorFlow's own interpreter announces its move to ai_edge_litert.
        warnings.simplefilter("ignore", UserWarning)
        return Interpreter(model_path=str(path))


_RUNNERS = {
    "tf_saved_model": _run_saved_model,
    "litert": _run_litert,
    "onnx": _run_onnx,
    "keras": _run_keras,
}
