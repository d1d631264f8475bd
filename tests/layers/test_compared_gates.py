"""The compared methods: hard concrete gates, targeted dropout, network surgery."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfprune
from tfprune.callbacks import NetworkSurgery
from tfprune.layers import HardConcrete, SplicedMask, TargetedDropout
from tfprune.layers.hard_concrete import BETA, GAMMA, ZETA, ExpectedGates


def dense(kernel, **settings):
    kernel = np.asarray(kernel, "float32")
    layer = layers.Dense(kernel.shape[1], use_bias=False, **settings)
    layer.build((None, kernel.shape[0]))
    layer.set_weights([kernel])
    return layer


def around(gate, training=True, count=1, width=3):
    """What a gated dense layer makes of ones, several times over."""
    x = keras.Input((width,))
    model = keras.Model(x, gate(x))
    ones = np.ones((1, width), "float32")
    return np.array([model(ones, training=training)[0].numpy() for _ in range(count)])


# L0 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 1.5])
def test_gates_are_open_as_often_as_the_closed_form_says(log_alpha):
    """P(z != 0) = sigmoid(log a - beta log(-gamma / zeta)), by Monte Carlo."""
    gate = HardConcrete(dense(np.eye(4000)), seed=1)
    gate.log_alphas[0].assign(np.full((4000, 1), log_alpha))
    x = keras.Input((4000,))
    model = keras.Model(x, gate(x))
    z = model(np.ones((1, 4000)), training=True)[0].numpy()
    expected = 1 / (1 + np.exp(-(log_alpha - BETA * np.log(-GAMMA / ZETA))))
    assert np.mean(z != 0) == pytest.approx(expected, abs=0.025)
    assert ((z >= 0) & (z <= 1)).all() and len(np.unique(z)) > 100
    penalty = float(ExpectedGates(0.5)(gate.log_alphas[0].value))
    assert penalty == pytest.approx(0.5 * 4000 * expected, rel=1e-4)


def test_estimate_of_a_gate_has_no_temperature():
    gate = HardConcrete(dense(np.eye(3)))
    gate.log_alphas[0].assign([[-4.0], [0.0], [4.0]])
    sigmoid = 1 / (1 + np.exp(-np.array([-4.0, 0.0, 4.0])))
    expected = np.clip(sigmoid * (ZETA - GAMMA) + GAMMA, 0, 1)
    np.testing.assert_allclose(around(gate, training=False)[0], expected, rtol=1e-5)
    assert expected[0] == 0 and expected[2] == 1


def test_penalty_gradient():
    import tensorflow as tf

    x = tf.Variable([[-1.0], [2.0]])
    with tf.GradientTape() as tape:
        penalty = ExpectedGates(0.3)(x)
    p = 1 / (1 + np.exp(-(x.numpy() - BETA * np.log(-GAMMA / ZETA))))
    np.testing.assert_allclose(tape.gradient(penalty, x), 0.3 * p * (1 - p), rtol=1e-5)


def test_gates_learn_and_compact_removes_them():
    x = keras.Input((6,))
    y = layers.Dense(12, "relu", name="hidden")(x)
    model = keras.Model(x, layers.Dense(2, name="logits")(y))
    gated = tfprune.prune_wrap(model, HardConcrete, strength=0.05, seed=0)
    gated.compile(keras.optimizers.Adam(0.05), "mse")
    random = np.random.default_rng(0)
    data = random.normal(size=(64, 6)).astype("float32")
    gated.fit(data, data[:, :2], epochs=40, verbose=0)
    for gate in gated.layers[1:]:
        values = gate.log_alphas[0].numpy()
        assert (np.log(0.01) <= values).all() and (values <= np.log(100)).all()
    small = tfprune.compact(gated)
    np.testing.assert_allclose(small(data), gated(data), atol=1e-5)
    assert small.get_layer("hidden").units < 12
    masks = tfprune.read_masks(gated)
    assert 0 < masks.density() < 1


def test_log_alpha_stays_where_gradients_can_move_it():
    gate = HardConcrete(dense(np.eye(2)))
    hold = gate.log_alphas[0].constraint
    found = np.asarray(hold(np.array([-99.0, 0.5, 99.0], "float32")))
    np.testing.assert_allclose(found, [np.log(0.01), 0.5, np.log(100)], rtol=1e-6)


BY_FILTER = {
    "conv": (layers.Conv2D(5, 3), (1, 1, 1, 5)),
    "transposed": (layers.Conv2DTranspose(5, 3), (1, 1, 5, 1)),
    "depthwise": (layers.DepthwiseConv2D(3), (1, 1, 4, 1)),
    "multiplied": (layers.DepthwiseConv2D(3, depth_multiplier=2), (1, 1, 4, 2)),
    "separable": (layers.SeparableConv2D(5, 3), (1, 1, 4, 1), (1, 1, 1, 5)),
}


@pytest.mark.parametrize("kind", BY_FILTER)
def test_convolutions_are_gated_by_filter(kind):
    conv, *shapes = BY_FILTER[kind]
    conv = type(conv).from_config(conv.get_config())
    conv.build((None, 6, 6, 4))
    gate = HardConcrete(conv)
    assert [tuple(each.shape) for each in gate.log_alphas] == shapes


def test_heads_are_gated_by_their_channels():
    attention = layers.MultiHeadAttention(2, 3)
    attention.build((None, 5, 6), (None, 5, 6))
    shapes = {tuple(each.shape) for each in HardConcrete(attention).log_alphas}
    assert shapes == {(1, 2, 3), (1, 1, 6)}


@pytest.mark.parametrize("unit", ["weight", "column"])
@pytest.mark.parametrize("kind", ["conv", "transposed", "multiplied"])
def test_targeted_dropout_drops_by_output(kind, unit):
    conv, _ = BY_FILTER[kind]
    conv = type(conv).from_config(conv.get_config())
    conv.build((None, 6, 6, 4))
    kernel = np.random.default_rng(0).normal(size=conv.kernel.shape)
    conv.kernel.assign(kernel)
    keep = np.asarray(TargetedDropout(conv, 0.4, unit=unit).mask(0))
    # One row for every output.
    if kind == "transposed":
        kernel, keep = (np.moveaxis(each, 2, -1) for each in (kernel, keep))
    outputs = {"conv": 5, "transposed": 5, "multiplied": 8}[kind]
    rows, keep = (each.reshape(-1, outputs).T for each in (kernel, keep))
    if unit == "column":
        norms = np.linalg.norm(rows, axis=1)
        expected = norms >= np.sort(norms)[int(0.4 * outputs)]
        np.testing.assert_array_equal(
            keep, np.repeat(expected[:, None], keep.shape[1], 1)
        )
    else:
        edge = np.sort(np.abs(rows), 1)[:, int(0.4 * rows.shape[1])]
        np.testing.assert_array_equal(keep, np.abs(rows) >= edge[:, None])


@pytest.mark.parametrize("gate", [HardConcrete, TargetedDropout])
def test_layers_of_one_seed_draw_for_themselves(gate):
    def model():
        x = keras.Input((6,))
        y = layers.Dense(6, use_bias=False, name="a")(x)
        z = layers.Dense(6, use_bias=False, name="b")(x)
        wrapped = tfprune.prune_wrap(keras.Model(x, [y, z]), gate, seed=3)
        for layer in wrapped.layers[1:]:
            layer.layer.set_weights([np.eye(6) + 0.1])
        return wrapped

    ones = np.ones((1, 6))
    first, second = ([x.numpy() for x in model()(ones, training=True)] for _ in "12")
    assert not np.array_equal(*first)
    np.testing.assert_array_equal(first, second)


# Targeted dropout --------------------------------------------------------------------


def test_only_the_smallest_of_a_column_are_dropped_and_how_often():
    kernel = [[1.0, -8.0], [2.0, 7.0], [-3.0, 6.0], [4.0, 5.0]]
    gate = TargetedDropout(dense(kernel), target_rate=0.5, drop_rate=0.3, seed=0)
    x = keras.Input((4,))
    model = keras.Model(x, gate(x))
    # Distinct inputs tell from the sum which weights were in it.
    rows = np.diag(np.ones(4, "float32"))
    found = np.array([model(rows, training=True).numpy() for _ in range(600)])
    dropped = (found == 0).mean(0)
    is_candidate = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], bool)
    assert (dropped[~is_candidate] == 0).all()
    # Five standard deviations of a binomial count.
    np.testing.assert_allclose(dropped[is_candidate], 0.3, atol=0.094)
    # Nothing is scaled up, and outside of training all candidates are gone.
    assert set(np.unique(np.abs(found[:, 0, 0]))) == {0.0, 1.0}
    expected = np.where(is_candidate, 0, kernel)
    np.testing.assert_array_equal(model(rows, training=False), expected)


def test_ties_are_candidates_in_exact_number():
    gate = TargetedDropout(dense(np.ones((8, 2))), target_rate=0.75, drop_rate=1.0)
    assert gate.mask(0).numpy().sum(0).tolist() == [2, 2]


def test_columns_go_by_their_norm():
    kernel = [[1.0, 3.0, 2.0], [1.0, 0.0, 2.0]]
    gate = TargetedDropout(dense(kernel), target_rate=0.4, unit="column")
    assert gate.mask(0).numpy().tolist() == [[False, True, True]] * 2


def test_columns_of_a_whole_model():
    x = keras.Input((6,))
    model = keras.Model(x, layers.Dense(4, name="fc")(x))
    gated = tfprune.prune_wrap(model, TargetedDropout, unit="column", target_rate=0.5)
    mask = gated.get_layer("fc").mask(0).numpy()
    assert (mask == mask[0]).all() and mask[0].sum() == 2


def test_rates_grow_from_zero():
    gate = TargetedDropout(
        dense(np.eye(4) + 1), target_rate=1.0, drop_rate=1.0, ramp_steps=4
    )
    found = around(gate, count=6, width=4)
    number = [int(round(4 * 5 - row.sum())) for row in found]
    assert number[0] == 0 and number == sorted(number) and (found[-1] == 0).all()
    assert (around(gate, training=False, width=4) == 0).all()
    assert int(gate.step.numpy()) == 6


def test_targeted_dropout_trains_and_is_stripped(tmp_path):
    x = keras.Input((6,))
    model = keras.Model(x, layers.Dense(3, name="logits")(layers.Dense(8)(x)))
    gated = tfprune.prune_wrap(model, TargetedDropout, target_rate=0.5, seed=0)
    gated.compile("adam", "mse")
    data = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    gated.fit(data, data[:, :3], epochs=3, verbose=0)
    gated.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    plain = tfprune.strip(loaded)
    np.testing.assert_allclose(plain(data), gated(data), atol=1e-6)
    density = tfprune.read_masks(tfprune.Graph(plain, unit="weight")).density()
    assert density == pytest.approx(0.5)


# Dynamic network surgery -------------------------------------------------------------


def test_two_thresholds_by_eye():
    """Cut at 0.9 of the threshold, spliced above 1.1, else as before."""
    x = keras.Input((6,))
    layer = layers.Dense(1, use_bias=False, name="fc")
    base = keras.Model(x, layer(x))
    model = tfprune.prune_wrap(base, SplicedMask)
    gate = model.get_layer("fc")
    gate.layer.set_weights([np.array([[0.8], [0.9], [1.0], [1.0], [1.05], [-1.2]])])
    gate.masks[0].assign([[True], [True], [True], [False], [False], [False]])
    gate.thresholds[0].assign(1.0)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    surgery = NetworkSurgery(c=0.0, stop=1)
    model.fit(np.ones((1, 6)), np.ones((1, 1)), verbose=0, callbacks=[surgery])
    found = gate.mask(0).numpy().ravel().tolist()
    assert found == [False, False, True, False, False, True]


def test_thresholds_are_taken_once_of_what_is_not_zero():
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(1, use_bias=False, name="fc")(x))
    model.set_weights([np.array([[0.0], [1.0], [-2.0], [3.0]])])
    model = tfprune.prune_wrap(model, SplicedMask)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    data = np.ones((2, 4)), np.ones((2, 1))
    model.fit(*data, verbose=0, callbacks=[NetworkSurgery(c={"fc/*": 0.5}, stop=0)])
    expected = 2 + 0.5 * np.std([1, 2, 3])
    threshold = model.get_layer("fc").thresholds[0]
    assert float(threshold.numpy()) == pytest.approx(expected)
    model.fit(*data, verbose=0, callbacks=[NetworkSurgery(c=5.0, stop=0)])
    assert float(threshold.numpy()) == pytest.approx(expected)


def test_a_fraction_of_a_run_of_unknown_length_is_refused():
    x = keras.Input((2,))
    model = tfprune.prune_wrap(keras.Model(x, layers.Dense(1)(x)), SplicedMask)
    model.compile("sgd", "mse")

    ones = tf.data.Dataset.from_tensors((np.ones((1, 2)), np.ones((1, 1))))
    data = ones.repeat(3).filter(lambda x, y: True)
    with pytest.raises(ValueError, match="`stop` is a fraction of the run"):
        model.fit(data, verbose=0, callbacks=[NetworkSurgery(stop=0.5)])
    model.fit(data, verbose=0, callbacks=[NetworkSurgery(stop=5)])


@pytest.mark.parametrize("kind", [HardConcrete, TargetedDropout])
def test_gates_that_close_by_themselves_need_no_callback(kind):
    x = keras.Input((2,))
    model = tfprune.prune_wrap(keras.Model(x, layers.Dense(1)(x)), kind)
    model.compile("sgd", "mse")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        preflight = tfprune.callbacks.Preflight(verbose=0)
        model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0, callbacks=[preflight])


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_drops_what_strip_leaves_out(policy):
    keras.config.set_dtype_policy(policy)
    x = keras.Input((64,))
    model = keras.Model(x, layers.Dense(32, use_bias=False)(x))
    gated = tfprune.prune_wrap(model, TargetedDropout)
    dropped = gated.layers[-1].swaps()["_kernel"].numpy() == 0
    inputs = np.eye(64, dtype="float32")
    np.testing.assert_array_equal(gated(inputs).numpy() == 0, dropped)
    kernel = tfprune.strip(gated).layers[-1].kernel.numpy()
    np.testing.assert_array_equal(kernel == 0, dropped)


def test_refreshes_get_rare():
    surgery = NetworkSurgery(gamma=0.1, power=1.0)
    for start in (0, 40, 400):
        steps = range(start, start + 400)
        expected = np.mean([1 / (1 + 0.1 * step) for step in steps])
        found = np.mean([surgery._is_due(step) for step in steps])
        assert found == pytest.approx(expected, abs=0.06)
    assert [surgery._is_due(s) for s in range(50)] == [
        NetworkSurgery(gamma=0.1)._is_due(s) for s in range(50)
    ]


def test_cut_weights_learn_on_and_come_back():
    x = keras.Input((2,))
    model = keras.Model(x, layers.Dense(1, use_bias=False, name="fc")(x))
    model.set_weights([np.array([[0.1], [2.0]])])
    model = tfprune.prune_wrap(model, SplicedMask)
    gate = model.get_layer("fc")
    gate.thresholds[0].assign(0.5)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    data = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[3.0], [2.0]])
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(bool(gate.mask(0).numpy()[0, 0]))
    )
    surgery = NetworkSurgery(gamma=0.0, stop=1.0)
    history = model.fit(*data, epochs=12, verbose=0, callbacks=[surgery, watch])
    assert seen[0] is False and seen[-1] is True
    assert history.history["sparsity"][0] == 0.5
    assert gate.layer.kernel.numpy()[0, 0] > 0.5


def test_what_does_not_fit_is_refused():
    for make, message in (
        (lambda: HardConcrete(dense(np.eye(2)), drop_rate=1.0), "`drop_rate` must lie"),
        (
            lambda: HardConcrete(dense(np.eye(2)), strength=-1),
            "`strength` must be at least 0",
        ),
        (
            lambda: TargetedDropout(dense(np.eye(2)), drop_rate=2),
            "`drop_rate` must lie",
        ),
        (lambda: TargetedDropout(dense(np.eye(2)), unit="row"), "`unit` must be"),
        (lambda: NetworkSurgery(gamma=-1.0), "`gamma` must be at least 0"),
        (lambda: NetworkSurgery(stop=1.5), "`stop` must be an int of at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    x = keras.Input((2,))
    model = keras.Model(x, layers.Dense(1)(x))
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="spliced masks, and the model has none"):
        model.fit(np.ones((1, 2)), np.ones((1, 1)), callbacks=[NetworkSurgery()])
    for gate, settings in ((HardConcrete, {}), (TargetedDropout, {"target_rate": 0.0})):
        gated = tfprune.prune_wrap(model, gate, **settings)
        gated.compile("sgd", "mse")
        prune = tfprune.callbacks.PruneToBudget(
            "magnitude", tfprune.Budget(sparsity=0.5), tfprune.schedules.OneShot()
        )
        with pytest.raises(ValueError, match="takes no masks"):
            gated.fit(np.ones((1, 2)), np.ones((1, 1)), verbose=0, callbacks=[prune])
