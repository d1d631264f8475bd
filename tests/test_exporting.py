"""Artefacts: equal to the model, or not there at all."""

import importlib.util
import os
import subprocess
import sys
import zipfile

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

import tfprune
from tfprune import exporting


@pytest.fixture
def model(make_vgg):
    return make_vgg()


def listing(path):
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*"))


def served(path, inputs):
    artefact = tf.saved_model.load(str(path))
    return artefact.serve(inputs)


def test_saved_model_computes_what_the_model_computes(model, images, tmp_path):
    path = tfprune.export(model, tmp_path / "small")
    assert path == tmp_path / "small"
    np.testing.assert_allclose(
        served(path, images[0]), model(images[0], training=False), rtol=1e-4, atol=1e-5
    )
    assert listing(tmp_path)[0] == "small"
    assert os.listdir(tmp_path) == ["small"]


@pytest.mark.parametrize(
    ("format", "name"),
    [("tf_saved_model", "small"), ("litert", "small.tflite"), ("onnx", "small.onnx")],
)
def test_what_augments_images_in_training_does_not_when_served(
    model, images, tmp_path, format, name
):
    augmented = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.RandomRotation(0.5), *model.layers]
    )
    path = tfprune.export(augmented, tmp_path / name, format=format)
    if format != "litert":
        run = served if format == "tf_saved_model" else run_onnx
        expected = augmented(images[0], training=False)
        for _ in range(3):
            np.testing.assert_allclose(run(path, images[0]), expected, atol=1e-5)


def run_onnx(path, images):
    session = onnxruntime.InferenceSession(path)
    (name,) = (each.name for each in session.get_inputs())
    (outputs,) = session.run(None, {name: images})
    return outputs


def test_an_onnx_file_of_a_pruned_model_takes_and_gives_what_the_model_does(
    make_residual, images, tmp_path
):
    gated = tfprune.prune_wrap(make_residual())
    graph = tfprune.Graph(gated)
    budget = tfprune.Budget(flops_reduction=0.5)
    tfprune.set_masks(graph, tfprune.select(graph, "random", budget))
    path = tfprune.export(tfprune.compact(gated), tmp_path / "small.onnx", "onnx")
    expected = gated(images[0], training=False)
    np.testing.assert_allclose(run_onnx(path, images[0]), expected, atol=1e-5)
    whole = tfprune.export(gated, tmp_path / "masked.onnx", "onnx")
    np.testing.assert_allclose(run_onnx(whole, images[0]), expected, atol=1e-5)
    assert path.stat().st_size < 0.7 * whole.stat().st_size
    assert not [name for name in os.listdir(tmp_path) if not name.endswith(".onnx")]


def test_weights_are_written_once(model, tmp_path):
    path = tfprune.export(model, tmp_path / "small")
    model.export(tmp_path / "keras", verbose=False)
    ours, theirs = (tf.saved_model.load(str(tmp_path / p)) for p in ("small", "keras"))
    for name in ("variables", "trainable_variables", "non_trainable_variables"):
        assert len(getattr(ours, name)) == len(getattr(theirs, name))
    assert ours.signatures.keys() == theirs.signatures.keys()
    written = tf.train.list_variables(str(path / "variables" / "variables"))
    floats = sum(np.prod(shape, dtype=int) for _, shape in written)
    assert model.count_params() <= floats < 1.1 * model.count_params()


def test_gates_are_folded_away(make_residual, images, tmp_path):
    model = make_residual()
    gated = tfprune.prune_wrap(model)
    weights = [w.copy() for w in gated.get_weights()]
    path = tfprune.export(gated, str(tmp_path / "small"))
    artefact = tf.saved_model.load(str(path))
    assert len(artefact.variables) == len(model.variables)
    for old, new in zip(weights, gated.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_two_inputs_and_named_outputs(tmp_path):
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    x = keras.layers.Concatenate()([a, b])
    outputs = {"y": keras.layers.Dense(5)(x), "z": keras.layers.Dense(2)(x)}
    for i, inputs in enumerate(([a, b], {"a": a, "b": b})):
        model = keras.Model(inputs, outputs)
        for suffix, format in (("", "tf_saved_model"), (".tflite", "litert")):
            path = tmp_path / f"model{i}{suffix}"
            assert tfprune.export(model, path, format=format).exists()


def test_artefacts_need_no_tfprune(make_residual, images, tmp_path):
    gated = tfprune.prune_wrap(make_residual())
    tfprune.export(gated, tmp_path / "small")
    tfprune.export(gated, tmp_path / "small.keras", format="keras")
    np.save(tmp_path / "x.npy", images[0])
    code = (
        "import os, sys; os.chdir(sys.argv[1])\n"
        "for name in ('tfprune', 'matplotlib', 'pandas', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "import keras, numpy as np, tensorflow as tf\n"
        "x = np.load('x.npy')\n"
        "artefact = tf.saved_model.load('small')\n"
        "models = artefact.serve, keras.models.load_model('small.keras')\n"
        "np.save('y.npy', [np.array(model(x)) for model in models])\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    expected = tfprune.compact(gated)(images[0])
    for received in np.load(tmp_path / "y.npy"):
        np.testing.assert_allclose(received, expected, atol=1e-6)


def test_litert_and_keras_files(model, images, tmp_path):
    path = tfprune.export(model, tmp_path / "small.tflite", format="litert")
    (received,) = exporting._run_litert(model, path, images[0])
    expected = model(images[0], training=False)
    np.testing.assert_allclose(received, expected, rtol=1e-3, atol=1e-4)

    path = tfprune.export(model, tmp_path / "small.keras", format="keras")
    reloaded = keras.saving.load_model(path)
    np.testing.assert_array_equal(reloaded(images[0]), model(images[0]))
    assert sorted(os.listdir(tmp_path)) == ["small.keras", "small.tflite"]


def test_a_keras_file_holds_nothing_of_tfprune(model, images, tmp_path):
    model.compile(tfprune.optimizers.GlobalSparseMomentum(compression=2), "mse")
    graph = tfprune.Graph(model)
    budget = tfprune.Budget(sparsity=0.5)
    masked = tfprune.apply_masks(graph, tfprune.select(graph, "random", budget))
    for each in (model, masked):
        path = tmp_path / "small.keras"
        tfprune.export(each, path, format="keras", overwrite=True)
        with zipfile.ZipFile(path) as archive:
            assert b"tfprune" not in archive.read("config.json")
        reloaded = keras.saving.load_model(path)
        np.testing.assert_array_equal(reloaded(images[0]), each(images[0]))


def test_a_keras_file_keeps_runtime_gates(model, images, tmp_path):
    gate = tfprune.layers.RuntimeGate
    gated = tfprune.prune_wrap(model, gate, agent=None, keep_ratio=0.5)
    path = tfprune.export(gated, tmp_path / "small.keras", format="keras")
    reloaded = keras.saving.load_model(path)
    np.testing.assert_array_equal(reloaded(images[0]), gated(images[0]))


@pytest.mark.parametrize("suffix", ["", ".tflite", ".onnx", ".keras"])
def test_an_artefact_that_differs_is_refused(model, tmp_path, monkeypatch, suffix):
    def write(model, path, format, sparse):
        other = keras.models.clone_model(model)
        other.set_weights([1.01 * w for w in model.get_weights()])
        # Keras exports to ONNX only what has been called.
        other(np.zeros((1, 8, 8, 3)))
        real(other, path, format, sparse)

    real = exporting._write
    monkeypatch.setattr(exporting, "_write", write)
    formats = {own: name for name, own in exporting._SUFFIXES.items()}
    with pytest.raises(ValueError, match="must compute what 'vgg' computes"):
        tfprune.export(model, tmp_path / f"small{suffix}", format=formats[suffix])
    assert not os.listdir(tmp_path)


def test_an_artefact_that_does_not_run_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_write", lambda *_: (tmp_path / "x").mkdir())
    with pytest.raises(ValueError, match="does not exist"):
        tfprune.export(model, tmp_path / "small")
    assert os.listdir(tmp_path) == ["x"]


def test_an_existing_path_stays_as_it_was(model, tmp_path):
    path = tmp_path / "small"
    tfprune.export(model, path)
    before = listing(tmp_path)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        tfprune.export(model, path)
    assert listing(tmp_path) == before


def test_overwrite_replaces_a_saved_model_and_nothing_else(model, images, tmp_path):
    path = tfprune.export(model, tmp_path / "small")
    model.layers[-1].kernel.assign(0 * model.layers[-1].kernel)
    model.layers[-1].bias.assign([1.0, 2.0, 3.0])
    tfprune.export(model, path, overwrite=True)
    np.testing.assert_array_equal(served(path, images[0][:1]), [[1.0, 2.0, 3.0]])

    keep = tmp_path / "photographs"
    keep.mkdir()
    (keep / "one").write_text("irreplaceable")
    with pytest.raises(FileExistsError, match="nothing else"):
        tfprune.export(model, keep, overwrite=True)
    with pytest.raises(FileExistsError, match="nothing else"):
        tfprune.export(model, keep / "one", overwrite=True)
    assert (keep / "one").read_text() == "irreplaceable"
    assert sorted(os.listdir(tmp_path)) == ["photographs", "small"]


def test_what_is_there_survives_a_failed_overwrite(model, tmp_path, monkeypatch):
    path = tfprune.export(model, tmp_path / "small.keras", format="keras")
    before = path.read_bytes()
    monkeypatch.setitem(exporting._RUNNERS, "keras", lambda *_: np.zeros((2, 3)))
    with pytest.raises(ValueError, match="Nothing was written"):
        tfprune.export(model, path, format="keras", overwrite=True)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["small.keras"]


def test_places_that_cannot_be_written(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="existing directory"):
        tfprune.export(model, tmp_path / "missing" / "small")
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    with pytest.raises(PermissionError, match="read-only"):
        tfprune.export(model, locked / "small")
    file = tmp_path / "small.keras"
    file.write_text("precious")
    file.chmod(0o444)
    with pytest.raises(PermissionError, match="read-only"):
        tfprune.export(model, file, format="keras", overwrite=True)
    assert file.read_text() == "precious"
    assert not os.listdir(locked)
    assert sorted(os.listdir(tmp_path)) == ["locked", "small.keras"]


@pytest.mark.parametrize(
    ("path", "format", "message"),
    [
        ("small", "savedmodel", "must be one of 'tf_saved_model'"),
        ("small", "litert", "must end in .tflite"),
        ("small.onnx", "litert", "Pass format='onnx'"),
        ("small.tflite", "tf_saved_model", "Pass format='litert'"),
        ("small.keras", "tf_saved_model", "Pass format='keras'"),
        ("small.h5", "tf_saved_model", "must name a directory"),
    ],
)
def test_paths_and_formats_must_agree(model, tmp_path, path, format, message):
    with pytest.raises(ValueError, match=message):
        tfprune.export(model, tmp_path / path, format=format)
    assert not os.listdir(tmp_path)


def test_a_missing_package_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install tf2onnx onnxruntime"):
        tfprune.export(model, tmp_path / "small.onnx", format="onnx")
    assert not os.listdir(tmp_path)


def test_an_unbuilt_model_leaves_nothing_behind(tmp_path):
    model = keras.Sequential([keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="built"):
        tfprune.export(model, tmp_path / "small")
    assert not os.listdir(tmp_path)


def test_litert_leaves_zeros_out(tmp_path):
    x = keras.Input((64,))
    y = keras.layers.Dense(256, activation="relu")(x)
    model = keras.Model(x, keras.layers.Dense(128)(y))
    graph = tfprune.Graph(model, unit="weight")
    masks = tfprune.select(graph, budget=tfprune.Budget(sparsity=0.9))
    masked = tfprune.apply_masks(graph, masks)
    sizes = [
        tfprune.export(masked, tmp_path / f"{sparse}.tflite", "litert", sparse=sparse)
        for sparse in (False, True)
    ]
    dense, sparse = (path.stat().st_size for path in sizes)
    assert sparse < 0.4 * dense
    with pytest.raises(ValueError, match="`sparse` goes with"):
        tfprune.export(masked, tmp_path / "saved", sparse=True)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_litert_of_mixed_precision(make_vgg, images, tmp_path, policy):
    keras.config.set_dtype_policy(policy)
    model = make_vgg()
    path = tfprune.export(model, tmp_path / "small.tflite", format="litert")
    (received,) = exporting._run_litert(model, path, images[0])
    keras.config.set_dtype_policy("float32")
    plain = make_vgg()
    plain.set_weights(model.get_weights())
    np.testing.assert_allclose(received, plain(images[0]), atol=1e-5)
    assert model.layers[0].compute_dtype == policy.removeprefix("mixed_")


def test_what_litert_cannot_run_is_explained(tmp_path):
    model = keras.Sequential([keras.Input((6, 4)), keras.layers.LSTM(8)])
    with pytest.raises(ValueError, match="Flex delegate.*unroll=True"):
        tfprune.export(model, tmp_path / "small.tflite", format="litert")
    assert not os.listdir(tmp_path)
