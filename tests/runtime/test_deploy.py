"""Deployed models compute what masked ones do, and nothing that is closed."""

import time

import gated
import keras
import numpy as np
import pytest
import tensorflow as tf
from checker import profiled_macs, randomize
from gated import KINDS, gates_in, images, small_network

import tfprune
from tfprune.layers import RuntimeGate
from tfprune.layers.narrow import Narrow
from tfprune.layers.one_image import Buckets
from tfprune.layers.runtime_conv import RuntimeConv2D, Widen
from tfprune.runtime import deploy


def one_by_one(model, x):
    return np.concatenate([model(x[i : i + 1], training=False) for i in range(len(x))])


def assert_same(received, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(received, expected, atol=2e-5 * scale)


def network(kind, **options):
    arguments, mode = KINDS[kind]
    return gated.gated(randomize(small_network(**options)), **arguments), mode


def skips(deployed) -> list:
    """Which of the convolutions with gates compute a part of their channels."""
    convs = [each for each in deployed.layers[-1].layer.layers if is_gated(each)]
    return [conv.makes is not None for conv in convs]


def is_gated(layer) -> bool:
    return isinstance(layer, RuntimeConv2D) and layer.choice is not None


@pytest.mark.filterwarnings("ignore:No layer skips work")
@pytest.mark.parametrize("kind", KINDS)
def test_deployed_is_masked(kind):
    model, mode = network(kind)
    x = images()
    expected = model(x, training=False).numpy()
    assert expected.std(axis=0).max() > 0
    fast = deploy(model, mode, overhead=0)
    assert not gates_in(fast)
    assert_same(one_by_one(fast, x), expected)
    some_dense = {"both": 100, "rectified": 150, "groups": 70, "network": 120}
    if kind in some_dense:
        guarded = deploy(model, mode, overhead=some_dense[kind])
        assert not all(skips(guarded))
        assert_same(one_by_one(guarded, x), expected)
    np.testing.assert_array_equal(model(x, training=False), expected)


@pytest.mark.parametrize("kind", ["both", "widths"])
def test_stored_and_exported(kind, tmp_path):
    model, mode = network(kind, residual=True)
    x = images()
    expected = model(x, training=False).numpy()
    fast = deploy(model, mode, overhead=0)
    fast.save(tmp_path / "fast.keras")
    loaded = keras.saving.load_model(tmp_path / "fast.keras")
    assert_same(one_by_one(loaded, x), expected)
    tfprune.export(fast, tmp_path / "fast")
    artefact = tf.saved_model.load(tmp_path / "fast")
    served = [artefact.serve(x[i : i + 1]) for i in range(len(x))]
    assert_same(np.concatenate(served), expected)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be one image"):
        artefact.serve(x)


@pytest.mark.filterwarnings("ignore:No layer skips work")
@pytest.mark.parametrize("kind", ["both", "groups"])
def test_costs_are_those_of_what_is_saved(kind, tmp_path):
    model, mode = network(kind)
    small = tfprune.compact(gated.store_some(model))
    whole = deploy(small, mode, overhead=1e9)
    fast = deploy(small, mode, overhead=0)
    costs = [tfprune.cost(each) for each in (small, whole, fast)]
    for each, cost in zip((small, whole, fast), costs, strict=True):
        assert cost.params == each.count_params()
    assert costs[2].params == saved_params(fast, tmp_path / "fast")
    # Where widths depend on the image, that of one that needs all channels.
    found = [profiled_macs(small), *[profiled_macs(whole)] * 2]
    assert [cost.macs for cost in costs] == found
    assert not tfprune.Graph(fast).skipped


def saved_params(model, path):
    artefact = tf.saved_model.load(tfprune.export(model, path))
    # Recurrent cells of Keras hold a state of a generator for dropout.
    return sum(np.prod(v.shape) for v in artefact.variables if "seed" not in v.name)


@pytest.mark.parametrize("kind", ["agent"])
def test_batches(kind, tmp_path):
    model, mode = network(kind)
    x = images()
    expected = model(x, training=False).numpy()
    with pytest.raises(ValueError, match="must be one image"):
        deploy(model, mode)(x)
    fast = deploy(model, mode, batches=True, overhead=0)
    assert_same(fast(x, training=False), expected)
    assert_same(fast.predict(x, batch_size=3, verbose=0), expected)
    tfprune.export(fast, tmp_path / "fast")
    artefact = tf.saved_model.load(tmp_path / "fast")
    assert_same(artefact.serve(x), expected)


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model, mode = network("both")
    x = images()
    expected = keras.ops.convert_to_numpy(keras.ops.cast(model(x), "float32"))
    fast = deploy(model, mode, overhead=0)
    received = keras.ops.cast(joined(fast, x), "float32")
    scale = np.abs(expected).max()
    np.testing.assert_allclose(received, expected, atol=0.03 * scale)


def joined(model, x):
    return keras.ops.concatenate([model(x[i : i + 1]) for i in range(len(x))])


def test_convolutions_are_as_narrow_as_the_image_needs():
    model, _ = network("agent")
    fast = deploy(model, "block", overhead=0).layers[-1].layer
    convs = [each for each in fast.layers if isinstance(each, RuntimeConv2D)]
    inner = keras.Model(fast.input, [conv.output[0] for conv in convs])
    widths = [
        [int(y.shape[-1]) for y in inner(x[None], training=False)] for x in images(8)
    ]
    policy = gates_in(model)[0].policy
    with policy.recording() as recorder:
        model(images(8), training=False)
    for number, gate in enumerate(gates_in(model)):
        blocks = gate.count(recorder.decisions[number]["ratios"]).numpy()
        assert [each[number] for each in widths] == (blocks * 4).tolist()
    assert len(np.unique(widths, axis=0)) > 1


def test_narrow_maps_pass_poolings_and_activations():
    model, _ = network("blocks")
    fast = deploy(model, "block", overhead=0).layers[-1].layer
    # One, before the first layer that knows all channels.
    assert sum(isinstance(each, Widen) for each in fast.layers) == 1


def test_an_activation_that_is_not_zero_at_zero_gets_the_whole_map():
    x = inputs = keras.layers.Input((8, 8, 3))
    for _ in range(2):
        x = keras.layers.Conv2D(8, 3)(x)
        x = keras.layers.Activation("sigmoid")(x)
    base = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    model = gated.gated(randomize(base), agent=None, keep_ratio=0.5)
    x = images(3, (8, 8, 3))
    assert_same(one_by_one(deploy(model, overhead=0), x), model(x).numpy())


def test_layers_that_are_not_gated_read_narrow_maps():
    base = randomize(small_network(residual=True))
    model = gated.gated(base, agent=None, keep_ratio=0.5, layers="inner")
    fast = deploy(model, overhead=0).layers[-1].layer
    assert fast.get_layer("last").reads == Narrow(9, 1)
    assert not any(isinstance(each, Widen) for each in fast.layers)
    x = images()
    assert_same(one_by_one(fast, x), model(x, training=False).numpy())


def test_trunks_are_pruned_for_good_and_inner_channels_by_the_image():
    base = randomize(small_network(residual=True))
    model = gated.gated(base, agent=None, keep_ratio=0.5, layers="inner")
    graph = tfprune.Graph(model)
    (trunk,) = (group for group in graph.groups if "last" in group.layers)
    masks = {trunk.name: np.arange(trunk.size) % 3 > 0}
    small = tfprune.compact(graph, masks)
    assert small.get_layer("last").filters == masks[trunk.name].sum() < 11
    x = images()
    expected = small(x, training=False).numpy()
    masked = tfprune.apply_masks(graph, masks)(x, training=False)
    assert_same(expected, masked.numpy())
    assert_same(one_by_one(deploy(small, overhead=0), x), expected)


def test_a_layer_that_reads_two_maps_reads_whole_ones():
    inputs = keras.layers.Input((8, 8, 3))
    twice = keras.layers.Conv2D(5, 3, name="twice")
    x = keras.layers.Conv2D(8, 1, name="a")(inputs)
    maps = [twice(x), twice(keras.layers.ReLU()(x))]
    outputs = keras.layers.Flatten()(keras.layers.Add()(maps))
    base = randomize(keras.Model(inputs, outputs))
    model = gated.gated(base, agent=None, keep_ratio=0.5, layers="a")
    x = images(3, (8, 8, 3))
    assert_same(one_by_one(deploy(model, overhead=0), x), model(x).numpy())


def test_the_cost_guard():
    # Two of three blocks, two of four, and two of three stay, on 144, 144 and 36 places.
    model, _ = network("blocks")
    assert skips(deploy(model, overhead=71)) == [True, True, True]
    # The third one reads half: 2/3 * 1/2 * (36 + 73) is no less than 36.
    assert skips(deploy(model, overhead=73)) == [False, True, False]
    with pytest.warns(UserWarning, match="No layer skips work"):
        assert skips(deploy(model, overhead=145)) == [False] * 3
    # Without a budget, agents that choose groups are expected to choose any.
    assert any(skips(deploy(*network("groups"))))


def test_images_of_any_size():
    x = inputs = keras.layers.Input((None, None, 3))
    for _ in range(2):
        x = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    base = keras.Model(inputs, keras.layers.Dense(4)(x))
    model = gated.gated(randomize(base), agent=None, keep_ratio=0.5)
    # Maps of images of 224 by 224 have 50176 places, and half of the channels stay.
    assert skips(deploy(model, overhead=50175)) == [True, True]
    with pytest.warns(UserWarning, match="No layer skips work"):
        deploy(model, overhead=50177)
    fast = deploy(model)
    for size in (8, 13):
        x = images(2, (size, size, 3))
        assert_same(one_by_one(fast, x), model(x).numpy())


def test_one_of_the_models_in_buckets_runs():
    model, mode = network("widths")
    buckets = deploy(model, mode).layers[-1].layer.get_layer("buckets")
    assert isinstance(buckets, Buckets) and len(buckets.models) == 4
    params = [each.count_params() for each in buckets.models]
    assert params == sorted(params) and params[0] < 0.5 * params[-1]
    cost = tfprune.cost(deploy(model, mode))
    assert cost.macs == tfprune.cost(model).macs
    assert cost.params == deploy(model, mode).count_params()


def test_buckets_of_a_network_that_goes_past_its_first_gate():
    inputs = keras.layers.Input((12, 12, 3))
    x = keras.layers.Conv2D(8, 3, padding="same")(inputs)
    x = keras.layers.Conv2D(3, 3, padding="same")(keras.layers.ReLU()(x))
    x = keras.layers.Flatten()(keras.layers.Add()([x, inputs]))
    base = randomize(keras.Model(inputs, keras.layers.Dense(4)(x)))
    model = gated.gated(base, **KINDS["widths"][0])
    x = images()
    assert_same(one_by_one(deploy(model, "bucket"), x), model(x).numpy())


@pytest.mark.parametrize("names", [("a", "b"), None])
def test_buckets_of_a_network_with_several_inputs(names, tmp_path):
    inputs = [
        keras.layers.Input(shape, name=name)
        for shape, name in (((12, 12, 3), "a"), ((2,), "b"))
    ]
    x = inputs[0]
    for _ in range(2):
        x = keras.layers.Conv2D(8, 3, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(3)(keras.layers.Concatenate()([x, inputs[1]]))
    given = [images(1), images(1, (2,))]
    if names:
        inputs = dict(zip(names, inputs, strict=True))
        given = dict(zip(names, given, strict=True))
        outputs = {"y": outputs}
    base = randomize(keras.Model(inputs, outputs))
    model = gated.gated(base, **KINDS["widths"][0])
    expected = keras.tree.flatten(model(given, training=False))[0].numpy()
    fast = deploy(model, "bucket")
    fast.save(tmp_path / "fast.keras")
    for each in (fast, keras.saving.load_model(tmp_path / "fast.keras")):
        received = each(given)
        assert_same((received["y"] if names else received).numpy(), expected)


def test_half_of_the_channels_take_less_time():
    x = inputs = keras.layers.Input((28, 28, 3))
    for _ in range(4):
        x = keras.layers.Conv2D(64, 3, padding="same", activation="relu")(x)
    base = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    model = tfprune.prune_wrap(base, RuntimeGate, **KINDS["widths"][0])
    worth = gates_in(model)[0].policy.agent.worth
    worth.set_weights([np.zeros((128, 4)), np.eye(4)[1]])
    image = tf.constant(images(1, (28, 28, 3)))
    calls = [
        tf.function(each).get_concrete_function(image)
        for each in (base, deploy(model, "bucket"))
    ]
    seconds = np.empty((20, 2))
    for number in np.ndindex(seconds.shape):
        start = time.process_time()
        for _ in range(5):
            calls[number[1]](image)
        seconds[number] = time.process_time() - start
    # The least disturbed rounds, as other processes run beside.
    dense, half = seconds.min(axis=0)
    assert half < 0.9 * dense


def test_what_is_stored_is_compacted_first():
    model, _ = network("both")
    gated.store_some(model)
    x = images()
    expected = model(x, training=False).numpy()
    fast = deploy(model, overhead=0)
    assert fast.count_params() < deploy(network("both")[0]).count_params()
    assert_same(one_by_one(fast, x), expected)


def test_litert(tmp_path):
    for kind in ("widths", "blocks"):
        model, mode = network(kind)
        fast = deploy(model, mode, overhead=0)
        tfprune.export(fast, tmp_path / f"{kind}.tflite", format="litert")
    model, mode = network("agent")
    with pytest.raises(ValueError, match="LiteRT has no convolution"):
        path = tmp_path / "no.tflite"
        tfprune.export(deploy(model, mode), path, format="litert")
    assert not path.exists()


def test_what_lies_before_a_gate_is_not_left_out():
    model, _ = network("blocks")
    x = images(2)
    # Its normalization cannot move into it any more.
    model.layers[1].enable_lora(2)
    masked = deploy(model, "mask")
    assert_same(masked(x).numpy(), model(x, training=False).numpy())
    name = model.layers[2].name
    with pytest.raises(ValueError, match=f"mode='block' needs .*{name}"):
        deploy(model, overhead=0)


def test_bad_arguments():
    model, _ = network("blocks")
    with pytest.raises(ValueError, match="`mode` must be one of"):
        deploy(model, "fast")
    with pytest.raises(ValueError, match="`overhead` must be"):
        deploy(model, overhead=-1)
    with pytest.raises(ValueError, match="no runtime gates"):
        deploy(small_network())
    with pytest.raises(ValueError, match="selection='prefix'"):
        deploy(model, "prefix")
    with pytest.raises(ValueError, match="one choice for each image"):
        deploy(network("first")[0], "bucket")
    unsettled = tfprune.prune_wrap(
        small_network(), RuntimeGate, keep_ratio=0.5, runtime_ratio=0.5
    )
    with pytest.raises(ValueError, match="not settled"):
        deploy(unsettled)


@pytest.mark.parametrize(("channels", "block"), [(10, 4), (8, 4), (5, 0)])
def test_whole_maps_of_narrow_ones(channels, block):
    places = () if block else (3, 0, 4, 1, 2)
    narrow = Narrow(channels, block, places)
    whole = np.arange(1.0, 2 * 3 * channels + 1).reshape(1, 2, 3, channels)
    laid_out = narrow.sorted(whole, -1)
    if block:
        chosen, numbers = laid_out[..., [1, 0], :], tf.constant([1, 0])
        keep = np.arange(channels) < 2 * block
    else:
        chosen, numbers = laid_out[..., :2], None
        keep = np.array(places) < 2
    chosen = chosen.reshape(1, 2, 3, -1)
    np.testing.assert_array_equal(narrow.whole(chosen, numbers), whole * keep)
    pooled = narrow.whole(chosen[:, 0, 0], numbers)
    np.testing.assert_array_equal(pooled, (whole * keep)[:, 0, 0])
