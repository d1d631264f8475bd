"""Runtime gates: what they compute, where they go, what stays of them."""

import keras
import numpy as np
import pytest
from checker import randomize
from gated import KINDS, gated, gates_in, images, small_network, store_some
from keras import layers
from networks_of_papers import m_cifarnet

import tfprune
from tfprune.layers import RuntimeGate


def test_the_equation_of_feature_boosting():
    random = np.random.default_rng(0)
    gate = RuntimeGate(keep_ratio=0.5, rectify=True)
    x, source = images(4, (5, 5, 6)), images(4, (9, 9, 3), 1)
    gate(x, source)
    phi, rho, beta = (
        random.normal(size=v.shape) for v in (gate.phi, gate.rho, gate.beta)
    )
    for variable, value in ((gate.phi, phi), (gate.rho, rho), (gate.beta, beta)):
        variable.assign(value)
    g = np.maximum(source.mean(axis=(1, 2)) @ phi + rho, 0)
    m = np.zeros_like(g)
    np.put_along_axis(m, np.argsort(-g, axis=1, kind="stable")[:, :3], 1, axis=1)
    expected = (m * g)[:, None, None] * x + (m * beta)[:, None, None]
    np.testing.assert_allclose(gate(x, source), expected, atol=1e-5)


def test_scores_of_both_kinds_multiply_and_keep_a_common_minus():
    model = tfprune.prune_wrap(
        small_network(), RuntimeGate, keep_ratio=1.0, runtime_ratio=0.5
    )
    gate = gates_in(model)[0]
    static = np.linspace(-1, 1, gate.channels).astype("float32")
    last = gate.policy.importance.layers[-1]
    gate.rho.assign(np.linspace(1, -1, gate.channels)[::-1])
    x = np.ones((2, 3, 3, gate.channels), "float32")
    mask = np.ones((2, gate.channels), bool)
    received = gate._gated(x, mask, np.tile(gate.rho.numpy(), (2, 1)), static)
    expected = np.where(static < 0, -1, 1) * gate.rho.numpy() * static
    np.testing.assert_allclose(received[0, 0, 0], expected, atol=1e-6)
    assert last.bias.numpy() == 1


@pytest.mark.parametrize(
    "arguments", [{"agent": None}, {"agent": None, "selection": "prefix", "block": 4}]
)
@pytest.mark.parametrize("residual", [False, True])
def test_wrapping_changes_nothing(arguments, residual):
    base = randomize(small_network(residual))
    # Negative scales too, whose sign goes into the filter.
    for layer in base.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.gamma.assign(layer.gamma * np.resize([1, -1], layer.gamma.shape))
    x = images()
    expected = base(x, training=False).numpy()
    before = [w.copy() for w in base.get_weights()]
    model = tfprune.prune_wrap(base, RuntimeGate, **arguments)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(model(x, training=False), expected, atol=1e-5 * scale)
    for old, new in zip(before, base.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    groups = {group.name: group.size for group in tfprune.Graph(model).groups}
    assert groups == {group.name: group.size for group in tfprune.Graph(base).groups}


def one_convolution(**arguments):
    x = inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(6, 3)(x)
    x = layers.BatchNormalization(name="norm", **arguments)(x)
    x = layers.Flatten()(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(2)(x))


def test_wrapping_keeps_what_renormalization_trains_by():
    base, random = one_convolution(renorm=True), np.random.default_rng(0)
    for weight in base.get_layer("norm").weights:
        weight.assign(random.uniform(0.5, 2, weight.shape))
    gamma = base.get_layer("norm").gamma
    gamma.assign(gamma * np.resize([1, -1], gamma.shape))
    model = tfprune.prune_wrap(base, RuntimeGate, agent=None)
    x = images(4, (8, 8, 3))
    for _ in range(2):
        expected = base(x, training=True)
        np.testing.assert_allclose(model(x, training=True), expected, atol=1e-4)


@pytest.mark.parametrize(
    "held", ["gamma_regularizer", "beta_regularizer", "gamma_constraint"]
)
def test_scales_that_are_held_are_held_no_more(held):
    base = one_convolution(**{held: "l2" if "regularizer" in held else "non_neg"})
    with pytest.warns(UserWarning, match="regularizers and constraints.*'norm'"):
        tfprune.prune_wrap(base, RuntimeGate, agent=None)


@pytest.mark.filterwarnings("error")
def test_no_warning_where_nothing_is_lost():
    tfprune.prune_wrap(one_convolution(), RuntimeGate, agent=None)
    base = one_convolution(gamma_regularizer="l2")
    model = tfprune.prune_wrap(base, RuntimeGate, agent=None, selection="prefix")
    assert len(model.losses) == 1


def test_shared_channels_are_left_to_static_pruning():
    model = tfprune.prune_wrap(small_network(residual=True), RuntimeGate)
    names = [gate.name for gate in gates_in(model)]
    assert "inner_gate" in names and "last_gate" not in names
    with pytest.raises(ValueError, match="prune them for good"):
        tfprune.prune_wrap(small_network(residual=True), RuntimeGate, layers="last")
    with pytest.raises(ValueError, match="matches no convolution"):
        tfprune.prune_wrap(small_network(), RuntimeGate, layers="none*")


def test_what_cannot_be_gated_is_left_alone():
    inputs = layers.Input((8, 8, 4))
    twice = layers.Conv2D(4, 3, padding="same", name="twice")
    x = twice(twice(inputs))
    x = layers.Conv2D(8, 3, groups=2, name="grouped")(x)
    x = layers.Conv2D(6, 1, name="before_depthwise")(x)
    x = layers.DepthwiseConv2D(3)(x)
    block = keras.Sequential([layers.Input(x.shape[1:]), layers.Conv2D(5, 1)])
    x = layers.Conv2D(7, 1, name="good")(block(x))
    base = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    model = tfprune.prune_wrap(base, RuntimeGate, agent=None)
    assert [gate.name for gate in gates_in(model)] == ["good_gate"]
    for name, why in (
        ("twice", "several times"),
        ("grouped", "plain convolutions"),
        ("before_depthwise", "for good"),
        ("*/conv2d*", "nested"),
    ):
        with pytest.raises(ValueError, match=why):
            tfprune.prune_wrap(base, RuntimeGate, agent=None, layers=name)


@keras.saving.register_keras_serializable("tests")
class Normalization(layers.BatchNormalization):
    """What it computes may be anything."""


def test_normalizations_that_stay_layers_of_their_own_are_not_gated():
    x = inputs = layers.Input((8, 8, 3))
    lora = layers.Conv2D(6, 3, name="lora")
    convolutions = [
        (lora, layers.BatchNormalization()),
        (layers.Conv2D(6, 3, name="good"), layers.BatchNormalization()),
        (
            layers.Conv2D(6, 3, activation="relu", name="active"),
            layers.BatchNormalization(),
        ),
        (layers.Conv2D(6, 1, name="own"), Normalization()),
    ]
    for convolution, normalization in convolutions:
        x = normalization(convolution(x))
    base = randomize(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    lora.enable_lora(2)
    for _, each in convolutions:
        # Negative scales, whose sign goes into the filter.
        each.gamma.assign(-each.gamma)
    model = tfprune.prune_wrap(base, RuntimeGate, agent=None, rectify=True)
    assert [gate.name for gate in gates_in(model)] == ["good_gate"]
    x = images(2, (8, 8, 3))
    np.testing.assert_allclose(model(x), base(x), rtol=1e-4, atol=1e-5)
    for name, why in (
        ("active", "its activation comes before its normalization"),
        ("own", "its normalization is a Normalization"),
        ("lora", "LoRA"),
    ):
        with pytest.raises(ValueError, match=why):
            tfprune.prune_wrap(base, RuntimeGate, agent=None, layers=name)


def test_sequential_models_are_wrapped():
    base = keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(8, 3),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    model = tfprune.prune_wrap(base, RuntimeGate, agent=None)
    x = images(2, (8, 8, 3))
    np.testing.assert_allclose(model(x), base(x), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind, tmp_path):
    model = gated(randomize(small_network()), **KINDS[kind][0])
    x = images()
    expected = model(x, training=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x, training=False), expected)
    policies = {id(gate.policy) for gate in gates_in(loaded)}
    assert len(policies) == 1
    assert len(loaded.variables) == len(model.variables)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_stored_is_compacted(kind):
    model = store_some(gated(randomize(small_network()), **KINDS[kind][0]))
    x = images()
    expected = model(x, training=False).numpy()
    small = tfprune.compact(model)
    assert small.count_params() < model.count_params()
    np.testing.assert_allclose(
        small(x, training=False), expected, atol=2e-5 * np.abs(expected).max()
    )
    cost = tfprune.cost(model, tfprune.read_masks(model))
    assert cost == tfprune.cost(small)
    assert cost.params == small.count_params()
    # And once more, with nothing left to remove.
    assert tfprune.compact(small).count_params() == small.count_params()


def test_exactly_so_many_stay_whatever_is_predicted():
    model = tfprune.prune_wrap(
        small_network(), RuntimeGate, agent=None, keep_ratio=0.5, rectify=True
    )
    for gate in gates_in(model):
        gate.rho.assign(-np.ones(gate.channels))
    kept = tfprune.runtime.kept_channels(model, images())
    for gate in gates_in(model):
        assert (kept[gate.name].sum(axis=1) == round(0.5 * gate.channels)).all()


def test_a_closed_channel_leaks_no_shift():
    model = tfprune.prune_wrap(small_network(), RuntimeGate, agent=None, keep_ratio=0.3)
    gate = gates_in(model)[0]
    gate.beta.assign(np.ones(gate.channels))
    inner = keras.Model(model.input, gate.output)
    closed = ~tfprune.runtime.kept_channels(model, images())[gate.name]
    outputs = inner(images()).numpy().transpose(0, 3, 1, 2)
    assert closed.any() and not outputs[closed].any() and outputs[~closed].all()


def test_predictions_store_a_ninth_of_3x3_kernels():
    base = m_cifarnet(normalize=False)
    model = tfprune.prune_wrap(base, RuntimeGate, agent=None)
    kernels = sum(
        layer.kernel.numpy().size for layer in base.layers[:-1] if layer.weights
    )
    phi = sum(gate.phi.numpy().size for gate in gates_in(model))
    assert phi * 9 == kernels


def test_kept_sets_differ_between_images_and_cost_what_they_say():
    model = gated(randomize(small_network()), keep_ratio=0.6, block=2)
    x = images(20) + np.linspace(-2, 2, 20, dtype="float32")[:, None, None, None]
    kept = tfprune.runtime.kept_channels(model, x, batch_size=8)
    assert all(len(np.unique(mask, axis=0)) > 1 for mask in kept.values())
    shares = tfprune.runtime.work(model, x)
    base = small_network()
    graph = tfprune.Graph(base)
    names = [group.name for group in graph.groups]
    for number in (0, 7, 19):
        masks = {
            name: np.arange(mask.shape[1]) < mask[number].sum()
            for name, mask in zip(names, kept.values(), strict=True)
        }
        exact = tfprune.cost(graph, masks).macs / tfprune.cost(graph).macs
        assert shares[number] == pytest.approx(exact, rel=1e-12)


def test_agents_take_a_three_hundredth_of_the_work():
    base = m_cifarnet(normalize=False)
    model = tfprune.prune_wrap(base, RuntimeGate, keep_ratio=0.5)
    plain = tfprune.prune_wrap(base, RuntimeGate, agent=None, keep_ratio=0.5)
    agents = tfprune.cost(model).macs - tfprune.cost(plain).macs
    assert agents == 518_528
    assert agents / 174_299_904 < 0.0030


def test_bad_arguments():
    base = small_network()
    for name, value in (
        ("keep_ratio", 0.0),
        ("runtime_ratio", 1.5),
        ("block", 0),
        ("selection", "best"),
        ("agent", "random"),
        ("keep_ratio", "half"),
        ("runtime_ratio", "a"),
        ("groups", 0),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must"):
            tfprune.prune_wrap(base, RuntimeGate, **{name: value})
    with pytest.raises(ValueError, match="needs agents"):
        tfprune.prune_wrap(base, RuntimeGate, agent=None, runtime_ratio=0.5)
    with pytest.raises(ValueError, match="the same for all images already"):
        tfprune.prune_wrap(base, RuntimeGate, selection="prefix", runtime_ratio=0.5)
    with pytest.raises(ValueError, match="one Gaussian decision"):
        tfprune.prune_wrap(base, RuntimeGate, per_network=True, runtime_ratio=0.5)
    with pytest.raises(ValueError, match="no convolutions that can be pruned"):
        dense = keras.Sequential([layers.Input((4,)), layers.Dense(3)])
        tfprune.prune_wrap(dense, RuntimeGate)
    wrapped = tfprune.prune_wrap(base, RuntimeGate, agent=None)
    with pytest.raises(ValueError, match="gates already"):
        tfprune.prune_wrap(wrapped, RuntimeGate, agent=None)
    with pytest.raises(ValueError, match="runtime gates"):
        tfprune.strip(wrapped)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"agent": "groups", "keep_ratio": 0.5}, "`penalty` .* no `keep_ratio`"),
        ({"groups": 4}, "`groups`"),
        ({"agent": None, "groups": 4}, "`groups`"),
        ({"agent": None, "per_network": True}, "`per_network`"),
        ({"selection": "prefix", "rectify": True}, "`rectify`"),
    ],
)
def test_no_argument_goes_unheeded(arguments, why):
    with pytest.raises(ValueError, match=why):
        tfprune.prune_wrap(small_network(), RuntimeGate, **arguments)


def test_agents_keep_as_few_as_they_are_told():
    x = inputs = layers.Input((4, 4, 2))
    x = layers.Flatten()(layers.Conv2D(40, 3, name="wide")(x))
    base = keras.Model(inputs, layers.Dense(2)(x))
    model = tfprune.prune_wrap(base, RuntimeGate, keep_ratio=0.05)
    kept = tfprune.runtime.kept_channels(model, images(3, (4, 4, 2)))
    assert (kept["wide_gate"].sum(axis=1) == 2).all()
    policy = gates_in(model)[0].policy
    heads = [np.float32([each]) for each in (-1.0, 0.0, 0.0)]
    assert policy.agent.act(heads)[1] == np.float32(0.05)
    # Elsewhere as in the paper.
    (gate,) = gates_in(tfprune.prune_wrap(base, RuntimeGate, keep_ratio=0.5))
    assert gate.policy.agent.act(heads)[1] == np.float32(0.1)


def test_a_new_static_part_goes_by_what_it_is_told_of_filters():
    new = tfprune.prune_wrap(small_network(), RuntimeGate, runtime_ratio=0.5)
    gate = gates_in(new)[0]
    np.testing.assert_array_equal(gate.static_scores(), np.ones(10))
    for feature in range(3):
        told = np.zeros((10, 3))
        told[:, feature] = np.random.default_rng(feature).permutation(10) / 20
        gate.features.assign(told)
        scores = gate.static_scores().numpy()
        np.testing.assert_array_equal(scores.argsort(), told[:, feature].argsort())
        assert abs(scores - 1).max() < 0.2
