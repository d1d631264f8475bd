"""`save_sparse` and `load_sparse`: the same model, and few bytes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfprune
from tfprune import Budget, Graph, apply_masks, load_sparse, save_sparse, select, strip
from tfprune.sparse_files import file_sizes


def pruned(model, sparsity=0.9):
    graph = Graph(model, unit="weight")
    return strip(
        apply_masks(graph, select(graph, "magnitude", Budget(sparsity=sparsity)))
    )


def assert_same(ours, theirs):
    for a, b in zip(ours.variables, theirs.variables, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        a, b = (keras.ops.convert_to_numpy(v) for v in (a, b))
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.95])
def test_the_same_model_comes_back(make_residual, sparsity, tmp_path, images):
    model = pruned(make_residual(), sparsity)
    # Bits that comparisons would not tell apart.
    kernel = model.get_layer("logits").kernel
    value = kernel.numpy()
    value[0, :3] = [-0.0, 1e-42, 3.0]
    kernel.assign(value)
    path = save_sparse(model, tmp_path / "model.tfsparse")
    loaded = load_sparse(path)
    assert_same(loaded, model)
    model.save(tmp_path / "model.keras")
    plain = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert loaded.get_config() == plain.get_config()
    np.testing.assert_array_equal(
        loaded.predict(images[0], verbose=0), model.predict(images[0], verbose=0)
    )
    assert not loaded.compiled
    assert {each.name for each in tmp_path.iterdir()} == {path.name, "model.keras"}


def test_types_and_structures(tmp_path):
    """Ints, bools, halves, empty arrays; nested and shared layers; lists of layers."""

    @keras.saving.register_keras_serializable("sparse files")
    class Own(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.parts = [layers.Dense(4), layers.Dense(4)]

        def build(self, shape):
            for part in self.parts:
                part.build(shape)
            settings = {"trainable": False, "initializer": "ones"}
            self.steps = self.add_weight(shape=(), dtype="int64", **settings)
            self.flags = self.add_weight(shape=(9,), dtype="bool", **settings)
            self.none = self.add_weight(shape=(0, 3), **settings)

        def call(self, x):
            return self.parts[0](x) + self.parts[1](x)

    inputs = keras.Input((4,))
    shared = layers.Dense(4, name="shared")
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4)], name="inner")
    x = Own(name="own")(shared(shared(inputs)))
    half = layers.Dense(3, dtype="bfloat16", name="half")
    model = keras.Model(inputs, half(inner(x)))
    own = model.get_layer("own")
    own.flags.assign(np.arange(9) % 2 == 0)
    own.parts[0].kernel.assign(np.eye(4))
    loaded = load_sparse(save_sparse(model, tmp_path / "model.tfsparse"))
    assert_same(loaded, model)
    assert len(loaded.layers) == len(model.layers)


def test_training_goes_on_from_the_file(make_vgg, images, tmp_path):
    def fit(model, epochs):
        model.fit(*images, batch_size=4, epochs=epochs, shuffle=False, verbose=0)
        return model

    def compiled(model):
        model.compile("adam", "sparse_categorical_crossentropy")
        return model

    keras.utils.set_random_seed(0)
    model = fit(compiled(pruned(make_vgg())), 1)
    path = save_sparse(model, tmp_path / "model.tfsparse", include_optimizer=True)
    loaded = load_sparse(path)
    assert_same(loaded.optimizer, model.optimizer)
    assert_same(fit(loaded, 1), fit(model, 1))


def test_masks_of_a_model_in_training(make_vgg, tmp_path):
    graph = Graph(make_vgg(), unit="weight")
    masked = apply_masks(graph, select(graph, "magnitude", Budget(sparsity=0.7)))
    assert_same(load_sparse(save_sparse(masked, tmp_path / "a.tfsparse")), masked)


def test_float16(make_residual, tmp_path):
    model = pruned(make_residual())
    path = save_sparse(model, tmp_path / "half.tfsparse", dtype="float16")
    loaded = load_sparse(path)
    for a, b in zip(loaded.variables, model.variables, strict=True):
        assert a.dtype == b.dtype
        expected = b.numpy().astype("float16").astype(b.dtype)
        np.testing.assert_array_equal(a.numpy(), expected)
    whole = save_sparse(model, tmp_path / "whole.tfsparse")
    assert path.stat().st_size < whole.stat().st_size

    model.get_layer("logits").bias.assign([1e6, np.inf, 0])
    with pytest.raises(ValueError, match="cannot hold the values of.*1e.06"):
        save_sparse(model, tmp_path / "more.tfsparse", dtype="float16")
    assert not (tmp_path / "more.tfsparse").exists()


@pytest.mark.parametrize("compression", [60, 300])
def test_within_a_tenth_of_the_entropy(compression, tmp_path):
    model = keras.Sequential(
        [keras.Input((784,)), layers.Dense(300), layers.Dense(100), layers.Dense(10)]
    )
    # Values and biases of any size, as training leaves them.
    random = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(random.normal(size=weight.shape) * 10 ** random.uniform(-2, 1))
    model = pruned(model, 1 - 1 / compression)
    sizes = file_sizes(model)
    path = save_sparse(model, tmp_path / "model.tfsparse")
    # The date of writing is in it.
    assert abs(path.stat().st_size - sizes["tfsparse"]) < 20
    assert sizes["tfsparse"] <= 1.10 * sizes["entropy bound"]
    assert sizes["tfsparse, float16"] < sizes["tfsparse"] < sizes["keras, gzip"]
    assert sizes["keras"] > 4 * 266_610

    count = 410 + round(266_200 / compression)
    assert sizes["entropy bound"] > 4 * count


def test_a_dense_model_is_not_larger(make_residual, tmp_path):
    model = make_residual()
    model.save(tmp_path / "dense.keras")
    path = save_sparse(model, tmp_path / "dense.tfsparse")
    assert path.stat().st_size < (tmp_path / "dense.keras").stat().st_size


def test_files_that_are_cut_off_or_damaged_are_refused(make_vgg, tmp_path):
    path = save_sparse(pruned(make_vgg()), tmp_path / "model.tfsparse")
    content = path.read_bytes()
    bad = tmp_path / "bad.tfsparse"
    for length in (0, 5, 8, 12, 17, 30, len(content) // 2, len(content) - 1):
        bad.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"Received: path=.*bad\.tfsparse"):
            load_sparse(bad)
    for place in range(0, len(content), len(content) // 40):
        damaged = bytearray(content)
        damaged[place] ^= 16
        bad.write_bytes(bytes(damaged))
        with pytest.raises(ValueError, match=r"Received: path=.*bad\.tfsparse"):
            load_sparse(bad)
    bad.write_bytes(b"tfsparse\x09" + content[9:])
    with pytest.raises(ValueError, match="another version.*format 09"):
        load_sparse(bad)
    with pytest.raises(FileNotFoundError):
        load_sparse(tmp_path / "none.tfsparse")


def test_bad_arguments_write_nothing(make_vgg, tmp_path):
    model = make_vgg()
    with pytest.raises(ValueError, match="must end in .tfsparse"):
        save_sparse(model, tmp_path / "model.keras")
    with pytest.raises(ValueError, match="`model` must be a Keras 3 model"):
        save_sparse(None, tmp_path / "model.tfsparse")
    with pytest.raises(ValueError, match='None or "float16".*int8'):
        save_sparse(model, tmp_path / "model.tfsparse", dtype="int8")
    path = save_sparse(model, tmp_path / "model.tfsparse")
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_sparse(model, path)
    assert path.read_bytes() == before
    save_sparse(pruned(model), path, overwrite=True)
    assert path.stat().st_size < len(before)
    assert list(tmp_path.iterdir()) == [path]


def test_channels_then_weights_then_the_file(make_vgg, images, tmp_path):
    """Compact, then GSM, then a sparse file that loads elsewhere."""
    x, y = images
    small = tfprune.prune(make_vgg((16, 32)), flops_reduction=0.4)
    optimizer = tfprune.optimizers.GlobalSparseMomentum(
        0.01, compression=8, momentum=0.9, weight_decay=0.25
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # In turns of many steps, or most of the time goes into calls.
    small.compile(optimizer, loss, steps_per_execution=50)
    data = tf.data.Dataset.from_tensors((x, y)).repeat(300)
    small.fit(data, verbose=0)
    sparse = strip(tfprune.remove_passive(small, verbose=0))
    # Little was lost, and the file is a fraction of what channels alone save.
    before, after = (m.predict(x, verbose=0) for m in (small, sparse))
    assert np.abs(before - after).max() < 0.05 * np.abs(before).max()
    path = save_sparse(sparse, tmp_path / "small.tfsparse")
    sizes = file_sizes(make_vgg((16, 32)))
    assert path.stat().st_size < 0.25 * sizes["tfsparse"]
    np.testing.assert_array_equal(load_sparse(path).predict(x, verbose=0), after)
