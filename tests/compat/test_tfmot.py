"""The interface of tfmot: its own masks, its own tutorials, and where it went wrong."""

import json
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfprune
from tfprune.compat import tfmot
from tfprune.compat.tfmot import from_tfmot
from tfprune.compat.tfmot.schedules import due_sparsity
from tfprune.compat.tfmot.wrapping import pruned_layers

api = tfmot.sparsity.keras
STEPS = 12
# No number to keep is a half: graphs of TensorFlow may round it to either side.
DECAY = {"initial_sparsity": 0.31, "final_sparsity": 0.9, "begin_step": 2}
CASES = {
    "constant": ("ConstantSparsity", {"target_sparsity": 0.5, "begin_step": 3}),
    "often": (
        "ConstantSparsity",
        {"target_sparsity": 0.77, "begin_step": 0, "frequency": 2, "end_step": 7},
    ),
    "decay": ("PolynomialDecay", {**DECAY, "end_step": 10, "frequency": 2}),
    "linear": (
        "PolynomialDecay",
        {**DECAY, "end_step": 11, "power": 1, "frequency": 1},
    ),
    "all but one": (
        "ConstantSparsity",
        {"target_sparsity": 0.999, "begin_step": 1, "frequency": 1},
    ),
    "2 of 4": ("ConstantSparsity", {"target_sparsity": 0.5, "begin_step": 0}),
    "blocks": ("PolynomialDecay", {**DECAY, "end_step": 10, "frequency": 1}),
    "largest blocks": ("PolynomialDecay", {**DECAY, "end_step": 10, "frequency": 1}),
}
SETTINGS = {
    "2 of 4": {"sparsity_m_by_n": (2, 4)},
    "blocks": {"block_size": (2, 4)},
    "largest blocks": {"block_size": (4, 1), "block_pooling_type": "MAX"},
}
SHAPES = {"dense": (24, 20), "conv": (3, 3, 10, 6)}
# Those in which the shape of a kernel counts, or where it might.
CONVOLVED = ("decay", "2 of 4")


def cases():
    for name, schedule in CASES.items():
        for kind, shape in SHAPES.items():
            if kind == "conv" and name not in CONVOLVED:
                continue
            settings = SETTINGS.get(name, {})
            case = {"shape": shape, "schedule": schedule, "settings": settings}
            yield f"{name}, {kind}", case


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """What tfmot does with the cases, and the weights it did it with."""
    for name in ("tf_keras", "tensorflow_model_optimization"):
        pytest.importorskip(name, reason="pip install tfprune[tfmot]")
    folder = tmp_path_factory.mktemp("tfmot")
    random = np.random.default_rng(0)
    values = {
        name: random.normal(size=(STEPS, *case["shape"])).astype("float32")
        for name, case in cases()
    }
    Path(folder, "cases.json").write_text(json.dumps(dict(cases())))
    np.savez(folder / "cases.json.npz", **values)
    script = Path(__file__).with_name("masks_of_tfmot.py")
    command = [sys.executable, script, folder / "cases.json", folder / "masks.npz"]
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1"}
    found = subprocess.run(command, capture_output=True, env=environment, text=True)
    assert not found.returncode, found.stderr[-2000:]
    return types.SimpleNamespace(
        masks=np.load(folder / "masks.npz"),
        values=values,
        model=folder / "masks.npz.model",
    )


def test_same_masks_as_tfmot_at_every_step(original):
    # One test, as tfmot runs for all of them at once.
    for name, case in cases():
        check_masks(original, name, case)


def check_masks(original, name, case):
    shape, (kind, arguments) = case["shape"], case["schedule"]
    layers = keras.layers
    if len(shape) == 2:
        inner = [keras.Input(shape[:1]), layers.Dense(shape[1], use_bias=False)]
    else:
        size = (shape[0] + 1, shape[1] + 1, shape[2])
        conv = layers.Conv2D(shape[3], shape[:2], use_bias=False)
        inner = [keras.Input(size), conv, layers.Flatten()]
    model = api.prune_low_magnitude(
        keras.Sequential(inner),
        pruning_schedule=getattr(api, kind)(**arguments),
        **case["settings"],
    )
    wrapper = model.layers[0]
    (kernel,) = wrapper.gated_kernels.values()
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            kernel.assign(original.values[name][len(seen)])

        def on_train_batch_end(self, batch, logs=None):
            seen.append(wrapper.mask(0).numpy())

    model.compile(keras.optimizers.SGD(0.0), "mse")
    x, y = (np.ones((STEPS, *s[1:])) for s in (model.input_shape, model.output_shape))
    callbacks = [Watch(), api.UpdatePruningStep()]
    model.fit(x, y, batch_size=1, verbose=0, callbacks=callbacks)
    expected = original.masks[name]
    if case["settings"].get("sparsity_m_by_n"):
        # The original applies them at step 1 alone, whatever the schedule.
        due = due_sparsity(wrapper.pruning_schedule, 1, 1)
        model.layers[0].update_masks(0.5)
        kernel.assign(original.values[name][0])
        wrapper.update_masks(0.5)
        assert due is None, name
        assert np.array_equal(wrapper.mask(0).numpy(), expected[-1]), name
        return
    np.testing.assert_array_equal(np.array(seen), expected, err_msg=name)
    assert not expected.all()


def test_model_pruned_by_tfmot_comes_over(original):
    import tensorflow_model_optimization
    import tf_keras

    with tensorflow_model_optimization.sparsity.keras.prune_scope():
        pruned = tf_keras.models.load_model(f"{original.model}.h5", compile=False)
    before = [value.copy() for value in pruned.get_weights()]
    model = from_tfmot(pruned)
    assert isinstance(model, keras.Model)
    for one, other in zip(before, pruned.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    names = [layer.name for layer in model.layers]
    assert {"conv", "bn", "branch", "logits"} <= set(names)
    served = np.load(f"{original.model}.npz")
    np.testing.assert_allclose(model(served["x"]), served["y"], atol=1e-5)
    graph = tfprune.Graph(model, unit="weight")
    masks = tfprune.read_masks(graph)
    assert {round(mask.mean(), 2) for mask in masks.values()} <= {0.25, 0.26}
    assert tfprune.read_masks(tfprune.apply_masks(graph, masks)) == masks
    # The original masks at the next forward pass: until then anything may be there.
    wrapper = next(each for each in pruned.layers if each.name.endswith("_conv"))
    weight, mask, _ = wrapper.pruning_vars[0]
    weight.assign(np.ones(weight.shape))
    kernel = from_tfmot(pruned).get_layer("conv").kernel.numpy()
    np.testing.assert_array_equal(kernel, mask.numpy())


def test_only_models_of_tf_keras_come_over():
    pytest.importorskip("tf_keras")
    with pytest.raises(ValueError, match="must be a model of tf_keras"):
        from_tfmot(classifier())


# The tutorials ------------------------------------------------------------------------


def classifier(*, wrap=lambda layer: layer):
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((12, 12)),
            layers.Reshape((12, 12, 1)),
            wrap(layers.Conv2D(12, 3, activation="relu", name="conv")),
            layers.MaxPooling2D(),
            layers.Flatten(),
            wrap(layers.Dense(10, name="dense")),
        ]
    )


def digits(number=64):
    random = np.random.default_rng(0)
    x = random.normal(size=(number, 12, 12)).astype("float32")
    return x, random.integers(0, 10, number)


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def density(model):
    return tfprune.read_masks(tfprune.Graph(model, unit="weight")).density()


def test_pruning_with_keras(tmp_path):
    """tensorflow.org, "Pruning in Keras example"."""
    model, (x, y) = classifier(), digits()
    model.compile("adam", LOSS, metrics=["accuracy"])
    model.fit(x, y, verbose=0)
    before = model.get_weights()
    prune_low_magnitude = api.prune_low_magnitude
    end_step = np.ceil(len(x) / 8).astype(np.int32) * 2
    pruning_params = {
        "pruning_schedule": api.PolynomialDecay(
            initial_sparsity=0.50,
            final_sparsity=0.80,
            begin_step=0,
            end_step=end_step,
        )
    }
    model_for_pruning = prune_low_magnitude(model, **pruning_params)
    np.testing.assert_array_equal(model_for_pruning(x), model(x))
    model_for_pruning.compile("adam", LOSS, metrics=["accuracy"])
    model_for_pruning.summary(print_fn=lambda line, **_: None)
    callbacks = [
        api.UpdatePruningStep(),
        api.PruningSummaries(log_dir=str(tmp_path / "logs")),
    ]
    model_for_pruning.fit(
        x,
        y,
        batch_size=8,
        epochs=2,
        validation_split=0.0,
        verbose=0,
        callbacks=callbacks,
    )
    model_for_export = api.strip_pruning(model_for_pruning)
    assert density(model_for_export) == pytest.approx(0.2, abs=0.01)
    np.testing.assert_array_equal(model_for_export(x), model_for_pruning(x))
    assert [layer.name for layer in model_for_export.layers] == [
        layer.name for layer in model.layers
    ]
    keras.models.save_model(model_for_export, tmp_path / "pruned.h5")
    converter = tf.lite.TFLiteConverter.from_keras_model(model_for_export)
    assert len(converter.convert()) > 1000
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    tags = _tags(tmp_path / "logs" / "metrics")
    assert "prune_low_magnitude_dense/kernel/sparsity" in tags
    assert "prune_low_magnitude_conv/kernel/threshold" in tags


def _tags(folder):
    from tensorflow.python.summary.summary_iterator import summary_iterator

    events = (e for path in folder.glob("*") for e in summary_iterator(str(path)))
    return {value.tag for event in events for value in event.summary.value}


def test_comprehensive_guide_layers(tmp_path):
    """Chosen layers: by a clone function, and while the model is made."""
    base, (x, y) = classifier(), digits()

    def apply_pruning_to_dense(layer):
        if isinstance(layer, keras.layers.Dense):
            return api.prune_low_magnitude(layer)
        return layer

    cloned = keras.models.clone_model(base, clone_function=apply_pruning_to_dense)
    made = classifier(wrap=api.prune_low_magnitude)
    for model, number in ((cloned, 1), (made, 2)):
        model.compile("adam", LOSS)
        model.fit(
            x, y, batch_size=1, epochs=2, verbose=0, callbacks=[api.UpdatePruningStep()]
        )
        wrapped = tfmot.wrapping.pruned_layers(model)
        assert len(wrapped) == number
        for layer in wrapped:
            assert layer.mask(0).numpy().mean() == pytest.approx(0.5, abs=0.01)
        path = tmp_path / f"{number}.keras"
        model.save(path)
        with api.prune_scope():
            loaded = keras.models.load_model(path)
        np.testing.assert_array_equal(loaded(x), model(x))


class MyDense(keras.layers.Dense, api.PrunableLayer):
    def get_prunable_weights(self):
        return [self.kernel, self.bias]


def test_comprehensive_guide_custom_layer():
    """Even biases, for those who want it."""
    x, y = digits()
    model = keras.Sequential(
        [
            keras.Input((12, 12)),
            keras.layers.Flatten(),
            MyDense(10, bias_initializer="normal"),
        ]
    )
    schedule = api.ConstantSparsity(0.5, 0, frequency=1)
    model = api.prune_low_magnitude(model, schedule)
    model.compile("sgd", LOSS)
    model.fit(x, y, verbose=0, callbacks=[api.UpdatePruningStep()])
    layer = api.strip_pruning(model).layers[-1]
    assert (layer.bias.numpy() == 0).sum() == 5
    assert np.mean(layer.kernel.numpy() == 0) == 0.5


def test_comprehensive_guide_custom_loop(tmp_path):
    schedule = api.PolynomialDecay(0.0, 0.75, begin_step=2, end_step=10, frequency=4)
    model, (x, y) = api.prune_low_magnitude(classifier(), schedule), digits()
    optimizer = keras.optimizers.Adam()
    model.optimizer = optimizer
    step_callback = api.UpdatePruningStep()
    step_callback.set_model(model)
    log_callback = api.PruningSummaries(log_dir=str(tmp_path))
    log_callback.set_model(model)
    step_callback.on_train_begin()
    unused_arg, seen = -1, []
    for _ in range(2):
        log_callback.on_epoch_begin(epoch=unused_arg)
        for _ in range(6):
            step_callback.on_train_batch_begin(batch=unused_arg)
            with tf.GradientTape() as tape:
                loss = LOSS(y, model(x, training=True))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(
                zip(gradients, model.trainable_variables, strict=True)
            )
            seen.append(round(density(model), 2))
        step_callback.on_epoch_end(batch=unused_arg)
    assert seen[-1] == 0.25 and sorted(set(seen), reverse=True)[0] == 1.0
    assert density(api.strip_pruning(model)) == pytest.approx(0.25, abs=0.01)


def test_two_by_four_survives_a_file(tmp_path):
    x, y = digits()
    model = api.prune_low_magnitude(
        classifier(), api.ConstantSparsity(0.5, 0, frequency=1), sparsity_m_by_n=(2, 4)
    )
    model.save(tmp_path / "half.keras")
    model = keras.models.load_model(tmp_path / "half.keras")
    model.compile("adam", LOSS)
    model.fit(x, y, verbose=0, callbacks=[api.UpdatePruningStep()])
    kernel = api.strip_pruning(model).get_layer("dense").kernel.numpy()
    assert ((kernel.reshape(-1, 4, 10) != 0).sum(1) == 2).all()


# What the original gets wrong -----------------------------------------------------------


def test_schedules_end_where_they_say():
    decay = api.PolynomialDecay(0.5, 0.8, begin_step=0, end_step=99, frequency=100)
    assert due_sparsity(decay, 1, 150) == pytest.approx(0.8)
    at_once = api.PolynomialDecay(0.5, 0.8, begin_step=7, end_step=7)
    assert float(at_once(7)[1]) == pytest.approx(0.8)


class Asked(api.ConstantSparsity):
    """One that nobody knows, so that it is asked about every step."""


@pytest.mark.parametrize("frequency", [1, 3, 10])
@pytest.mark.parametrize("end", [-1, 4, 9])
def test_schedules_are_asked_only_where_they_can_say_yes(frequency, end):
    settings = {"begin_step": 2, "end_step": end, "frequency": frequency}
    constant = api.ConstantSparsity(0.5, **settings)
    decay = api.PolynomialDecay(0.1, 0.7, **{**settings, "end_step": max(end, 4)})
    asked = Asked(0.5, **settings)
    decay_asked = type("Decay", (api.PolynomialDecay,), {})(
        0.1, 0.7, **{**settings, "end_step": max(end, 4)}
    )
    for first in range(1, 12):
        for last in range(first, 13):
            known = [due_sparsity(each, first, last) for each in (constant, decay)]
            every = [due_sparsity(each, first, last) for each in (asked, decay_asked)]
            assert known == every, (first, last)


def test_many_steps_are_no_wait_before_the_first(monkeypatch):
    """Every layer was asked about every step of the run."""
    counted = []
    call = api.PolynomialDecay.__call__
    monkeypatch.setattr(
        api.PolynomialDecay,
        "__call__",
        lambda self, step: counted.append(step) or call(self, step),
    )
    model = api.prune_low_magnitude(
        classifier(), api.PolynomialDecay(0.0, 0.5, 0, 100, frequency=100)
    )
    model.compile("adam", LOSS)
    callback = api.UpdatePruningStep()
    callback.set_model(model)
    callback.set_params({"steps": 1000, "epochs": 100})
    callback.on_train_begin()
    callback.on_train_batch_begin(0)
    assert len(counted) < 10


def test_steps_are_written_before_others_save_at_the_end_of_an_epoch():
    model = api.prune_low_magnitude(classifier(), api.ConstantSparsity(0.5, 0))
    model.compile("adam", LOSS)
    x, y = np.zeros((24, *model.input_shape[1:]), "float32"), np.zeros(24)
    seen = []
    saving = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(
            [int(layer.pruning_step.numpy()) for layer in pruned_layers(model)]
        )
    )
    callbacks = [saving, api.UpdatePruningStep()]
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=callbacks)
    assert [set(steps) for steps in seen] == [{3}, {6}]


@pytest.mark.parametrize(
    "schedule",
    [
        api.ConstantSparsity(0.5, 10, frequency=7, end_step=40),
        api.PolynomialDecay(0.2, 0.9, 10, 40, power=2, frequency=7),
    ],
)
def test_schedule_contract(schedule):
    assert [bool(schedule(s)[0]) for s in (9, 10, 11, 17, 38, 45)] == [
        False, True, False, True, True, False
    ]  # fmt: skip
    config = schedule.get_config()
    again = type(schedule).from_config(config["config"])
    assert again.get_config() == config
    assert [float(again(s)[1]) for s in (0, 20, 50)] == [
        float(schedule(s)[1]) for s in (0, 20, 50)
    ]


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: api.ConstantSparsity(1.0, 0),
            r"`target_sparsity` must lie in \[0, 1\)",
        ),
        (
            lambda: api.ConstantSparsity(0.5, -1),
            "`begin_step` must be an int of at least 0",
        ),
        (lambda: api.ConstantSparsity(0.5, 5, 3), "`end_step` must not come before"),
        (lambda: api.ConstantSparsity(0.5, 0, frequency=0), "`frequency` must be"),
        (lambda: api.PolynomialDecay(0.1, 0.5, 0, -1), "`end_step` must be given"),
        (lambda: api.prune_low_magnitude("model"), "`to_prune` must be a layer"),
        (lambda: api.PruningSummaries(""), "`log_dir` must be a non-empty string"),
        (lambda: api.strip_pruning("model"), "`model` must be a `keras.Model`"),
        (
            lambda: api.prune_low_magnitude(classifier(), block_pooling_type="SUM"),
            "`block_pooling_type` must be",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_training_that_prunes_nothing_says_so():
    model, (x, y) = api.prune_low_magnitude(classifier()), digits()
    model.compile("adam", LOSS)
    with pytest.warns(UserWarning, match="will not be pruned: 2 steps of training"):
        model.fit(x, y, verbose=0, callbacks=[api.UpdatePruningStep()])
    plain = classifier()
    plain.compile("adam", LOSS)
    with pytest.warns(UserWarning, match="found no pruned layer"):
        plain.fit(x, y, verbose=0, callbacks=[api.UpdatePruningStep()])


def test_training_without_the_callback_is_refused(capsys):
    schedule = api.ConstantSparsity(0.5, 0, frequency=1)
    model, (x, y) = api.prune_low_magnitude(classifier(), schedule), digits()
    model.compile("adam", LOSS)
    with pytest.raises(tf.errors.InvalidArgumentError, match="UpdatePruningStep"):
        model.fit(x, y, verbose=0)
    model.evaluate(x, y, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        callbacks = [api.UpdatePruningStep(), tfprune.callbacks.Preflight()]
        model.fit(x, y, verbose=0, callbacks=callbacks)
    assert "masks of 2 layers by ConstantSparsity" in capsys.readouterr().out


def test_resumed_training_is_bitwise_the_same(tmp_path):
    def fit(model, epochs, initial_epoch=0):
        callbacks = [api.UpdatePruningStep()]
        model.fit(x, y, batch_size=8, epochs=epochs, initial_epoch=initial_epoch,
                  shuffle=False, verbose=0, callbacks=callbacks)  # fmt: skip

    x, y = digits()
    base = classifier()
    schedule = api.PolynomialDecay(0.1, 0.9, 0, 30, frequency=3)
    whole, half = (api.prune_low_magnitude(base, schedule) for _ in range(2))
    for model in (whole, half):
        model.compile("adam", LOSS)
    fit(whole, 4)
    fit(half, 2)
    half.save(tmp_path / "half.keras")
    resumed = keras.models.load_model(tmp_path / "half.keras")
    fit(resumed, 4, 2)
    pairs = zip(whole.variables, resumed.variables, strict=True)
    assert all(np.array_equal(one.numpy(), other.numpy()) for one, other in pairs)


# XNNPACK --------------------------------------------------------------------------------


def mobile(padding="valid", strides=(2, 2), keepdims=True, activation="relu"):
    layers = keras.layers
    x = inputs = keras.Input((32, 32, 3))
    x = layers.ZeroPadding2D(1)(x)
    x = layers.Conv2D(8, 3, strides=strides, padding=padding, name="stem")(x)
    x = layers.Activation(activation, name="activation")(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Conv2D(16, 1, name="pointwise")(x)
    x = layers.GlobalAveragePooling2D(keepdims=keepdims, name="pool")(x)
    return keras.Model(inputs, layers.Dense(4, name="logits")(layers.Flatten()(x)))


def test_xnnpack_policy_wraps_pointwise_convolutions():
    policy = api.PruneForLatencyOnXNNPack()
    model = api.prune_low_magnitude(mobile(), pruning_policy=policy)
    (layer,) = tfmot.wrapping.pruned_layers(model)
    assert layer.layer.name == "pointwise"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"strides": (1, 1)}, "must begin with a 3x3 `Conv2D` with stride 2"),
        ({"keepdims": False}, "'pool'.*`keepdims=True`"),
        ({"activation": "swish"}, "'activation'.*its activation must be one of"),
    ],
)
def test_xnnpack_policy_says_what_is_in_the_way(settings, message):
    policy = api.PruneForLatencyOnXNNPack()
    with pytest.raises(ValueError, match=message):
        api.prune_low_magnitude(mobile(**settings), pruning_policy=policy)
