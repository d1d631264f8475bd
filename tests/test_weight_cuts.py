"""Cuts between single weights: exact counts, patterns, blocks, by eye."""

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tfprune import Budget, Graph, importances, select
from tfprune.weight_cuts import removed_weights


def net(*kernels):
    """Dense layers of these kernels, side by side: d0, d1, ..."""
    parts, inputs = [], []
    for number, kernel in enumerate(kernels):
        kernel = np.asarray(kernel, "float32")
        inputs.append(keras.Input(kernel.shape[:1]))
        dense = layers.Dense(kernel.shape[1], use_bias=False, name=f"d{number}")
        parts.append(dense(inputs[-1]))
        dense.set_weights([kernel])
    return keras.Model(inputs, parts)


def weights(*kernels, **settings):
    return Graph(net(*kernels), unit="weight", **settings)


def kept(graph, **settings):
    """The weights that stay, by kernel."""
    masks = select(graph, **settings)
    return [
        graph.expanded(name, mask).astype(int).tolist() for name, mask in masks.items()
    ]


def test_global_order_and_uniform_by_eye():
    graph = weights([[4.0, -3.0], [2.0, 1.0]], [[0.5, -5.0, 0.1, 0.2]])
    budget = Budget(sparsity=0.5)
    assert kept(graph, budget=budget) == [[[1, 1], [1, 0]], [[0, 1, 0, 0]]]
    assert kept(graph, budget=budget, scope="uniform") == [
        [[1, 1], [0, 0]],
        [[1, 1, 0, 0]],
    ]
    assert kept(graph, scope={"d1/kernel": 0.75}) == [
        [[1, 1], [1, 1]],
        [[0, 1, 0, 0]],
    ]
    assert kept(graph, threshold=2.0) == [[[1, 1], [0, 0]], [[0, 1, 0, 0]]]


def test_ties_are_cut_exactly_the_first_stays():
    graph = weights(np.ones((4, 4)), np.ones((4, 4)))
    masks = select(graph, budget=Budget(sparsity=0.75))
    assert sum(mask.sum() for mask in masks.values()) == 8
    assert masks["d0/kernel"][:7].all() and not masks["d0/kernel"][7:].any()
    # The second keeps one: a kernel is never cut off whole.
    assert masks["d1/kernel"].sum() == 1


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("scope", ["global", "uniform", "erk", {"d0": 0.5, "*": 0.9}])
def test_counts_are_exact(sparsity, scope):
    random = np.random.default_rng(0)
    graph = weights(*(random.normal(size=s) for s in ((40, 30), (30, 20), (20, 3))))
    masks = select(graph, budget=Budget(sparsity=sparsity), scope=scope)
    removed = sum(int((~mask).sum()) for mask in masks.values())
    least = int(np.ceil(graph.num_units * sparsity))
    # Fractions of layers are rounded in each.
    assert least <= removed <= least + (0 if scope in ("global", "erk") else 2)


def test_erk_densities():
    """Density in proportion to (inputs + outputs) / (inputs * outputs), at most 1."""
    shapes = (100, 100), (100, 50), (4, 3)
    graph = weights(*(np.random.default_rng(0).normal(size=s) for s in shapes))
    masks = select(graph, budget=Budget(sparsity=0.8), scope="erk")
    first, second, small = (masks[group.name].mean() for group in graph.groups)
    assert small == 1
    assert first / second == pytest.approx((200 / 1e4) / (150 / 5e3), rel=2e-2)


def test_caps_and_floors():
    graph = weights(np.arange(1.0, 101).reshape(10, 10), np.full((10, 10), 1e-3))
    masks = select(graph, budget=Budget(sparsity=0.6, max_sparsity=0.9))
    assert masks["d1/kernel"].sum() == 10 and masks["d0/kernel"].sum() == 70
    with pytest.raises(ValueError, match="at most 0.500000 of the 200 units"):
        select(graph, budget=Budget(sparsity=0.6, max_sparsity=0.5))
    with pytest.raises(ValueError, match="`scope` cannot meet the budget"):
        select(graph, budget=Budget(sparsity=0.6), scope={"d0": 0.5})


def test_n_of_m_along_the_input_axis():
    kernel = np.array([[1, 8], [2, 7], [3, 6], [4, 5], [9, 9], [9, 9], [9, 8]])
    masks = kept(weights(kernel), budget=Budget(n_of_m=(2, 4)))
    assert np.array(masks[0]).T.tolist() == [
        [0, 0, 1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1, 1, 0],
    ]


@pytest.mark.parametrize(
    "layer, shape, axis",
    [
        (lambda: layers.Conv2D(8, 3), (6, 6, 8), 2),
        (lambda: layers.Conv1D(8, 3), (6, 8), 1),
        (lambda: layers.Conv2DTranspose(8, 3), (6, 6, 8), 3),
        (lambda: layers.EinsumDense("abc,cd->abd", (6, 8)), (6, 8), 0),
        (lambda: layers.LSTM(8), (6, 8), 0),
        (lambda: layers.SeparableConv2D(8, 3), (6, 6, 8), 2),
    ],
)
def test_n_of_m_in_every_kind_of_kernel(layer, shape, axis):
    x = keras.Input(shape)
    graph = Graph(keras.Model(x, layer()(x)), unit="weight")
    masks = select(graph, budget=Budget(n_of_m=(1, 4)))
    cut = 0
    for name, kernel in graph.kernels.items():
        mask = np.moveaxis(graph.expanded(name, masks[name]), axis, -1)
        if kernel.input_axis is None:
            assert name.endswith("depthwise_kernel") and mask.all()
        else:
            assert (mask.reshape(-1, 4).sum(1) == 1).all()
            cut += 1
    assert cut


def test_n_of_m_leaves_kernels_whole_whose_floors_it_would_break():
    graph = weights(np.ones((4, 2)), np.ones((4, 4)))
    whole = Budget(n_of_m=(2, 4), max_sparsity={"d0/*": 0.0})
    few = Budget(n_of_m=(2, 4), max_sparsity={"d0/*": 0.4})
    many = Budget(n_of_m=(2, 4), min_channels=5)
    for budget in (whole, few, many):
        masks = select(graph, budget=budget)
        assert masks["d0/kernel"].all() and masks["d1/kernel"].sum() == 8
        assert removed_weights(graph, masks, budget)["n_of_m"] == 1


@pytest.mark.parametrize("scope", ["global", "uniform", "erk", {"*": 0.5}])
def test_weights_of_infinite_score_stay(scope):
    graph = weights(np.ones((4, 4)), np.ones((4, 4)), np.ones((4, 4)))
    infinite = {"d0/kernel": np.arange(16) < 10, "d1/kernel": np.ones(16, bool)}

    def importance(graph):
        where = {g.name: infinite.get(g.name, np.zeros(16, bool)) for g in graph.groups}
        return {name: np.where(each, np.inf, 1.0) for name, each in where.items()}

    budget = None if isinstance(scope, dict) else Budget(sparsity=0.4)
    masks = select(graph, importance, budget, scope=scope)
    assert all(masks[name][where].all() for name, where in infinite.items())
    assert masks.density() < 0.75
    with pytest.raises(ValueError, match="and finite scores"):
        select(graph, importance, Budget(sparsity=0.5))
    masks = select(graph, importance, Budget(n_of_m=(1, 4)))
    assert all(masks[name][where].all() for name, where in infinite.items())


def test_a_part_of_n_of_m_removes_the_smallest_first():
    kernel = np.array([[1.0], [2.0], [3.0], [4.0], [0.1], [0.2], [8.0], [9.0]])
    budget = Budget(n_of_m=(2, 4)).scaled(0.5)
    masks = kept(weights(kernel), budget=budget)
    assert np.ravel(masks[0]).tolist() == [1, 1, 1, 1, 0, 0, 1, 1]


def test_blocks_go_together():
    kernel = np.array([[1, 1, 5], [1, 9, 5], [2, 2, 3]])
    graph = weights(kernel, block=(2, 2))
    assert graph.groups[0].size == 4
    # Means of blocks: 3 and 5, 2 and 3.
    assert kept(graph, budget=Budget(sparsity=0.25)) == [
        [[1, 1, 1], [1, 1, 1], [0, 0, 1]]
    ]
    assert kept(graph, budget=Budget(sparsity=0.75)) == [
        [[0, 0, 1], [0, 0, 1], [0, 0, 0]]
    ]


def test_params_reduction_counts_all_weights():
    x = keras.Input((10,))
    model = keras.Model(x, layers.Dense(9)(x))
    graph = Graph(model, unit="weight")
    masks = select(graph, budget=Budget(params_reduction=0.5))
    assert (~masks[graph.groups[0].name]).sum() == 50


def test_lamp_by_eye():
    """Squares over the sum of those not smaller."""
    graph = weights([[1.0, 2.0], [-3.0, 0.0]])
    found = importances.LAMP()(graph)["d0/kernel"]
    np.testing.assert_allclose(found, [1 / 14, 4 / 13, 1.0, 0.0], rtol=1e-6)
    with pytest.raises(ValueError, match="LAMP scores single weights"):
        importances.LAMP()(Graph(net(np.ones((4, 4)))))


def test_masks_are_held_and_read():
    model = net(np.arange(1.0, 9).reshape(4, 2))
    graph = Graph(model, unit="weight")
    masks = select(graph, budget=Budget(sparsity=0.5))
    held = tfprune.apply_masks(graph, masks)
    assert tfprune.read_masks(held) == masks
    assert tfprune.read_masks(Graph(tfprune.strip(held), unit="weight")) == masks
    held.compile("sgd", "mse")
    held.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    assert (held.layers[-1].layer.kernel.numpy()[:2] == 0).all()
    assert np.array_equal(model.get_weights()[0].ravel(), np.arange(1.0, 9))


def test_masks_are_applied_to_models_with_masks():
    """What is open is masked as asked; what is zero already stays zero."""
    model = net(np.arange(1.0, 9).reshape(4, 2), np.ones((2, 2)))
    wrapped = tfprune.prune_wrap(model, tfprune.layers.WeightMask, layers=["d0"])
    graph = Graph(wrapped, unit="weight")
    masks = {"d0/kernel": np.arange(8) > 3, "d1/kernel": np.arange(4) > 1}
    held = tfprune.apply_masks(graph, masks)
    assert tfprune.read_masks(held) == masks
    assert tfprune.read_masks(wrapped).density() == 1


def test_names_are_the_same_with_gates():
    x = keras.Input((4,))
    hidden = layers.Dense(5, "relu", name="hidden")(x)
    model = keras.Model(x, layers.Dense(2, name="logits")(hidden))
    gates = (tfprune.layers.WeightMask, tfprune.layers.ChannelGate)
    wrapped = [tfprune.prune_wrap(model, gate) for gate in gates]
    for unit in ("weight", "channel"):
        names = [
            [(g.name, g.size) for g in Graph(each, unit=unit).groups]
            for each in (model, *wrapped)
        ]
        assert names[0] == names[1] == names[2]


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"budget": Budget(flops_reduction=0.5)},
            "has a `sparsity`; they take no work",
        ),
        ({"budget": Budget(sparsity=0.5), "importance": "scale"}, "scores channels"),
        ({"threshold": "valley"}, "for single weights it is a number"),
        ({"budget": Budget(sparsity=0.5), "scope": "layer"}, "`scope` must be one of"),
        ({"budget": Budget(n_of_m=(4, 8))}, "`n_of_m` removes nothing"),
        (
            {"budget": Budget(n_of_m=(2, 4)), "scope": {"d0/*": 0.5}},
            "takes the same share of every kernel",
        ),
        ({"budget": Budget(n_of_m=(2, 4)), "scope": "erk"}, "takes the same share"),
        (
            {"budget": Budget(sparsity=0.5, multiple_of=8)},
            "`multiple_of` rounds numbers of channels",
        ),
    ],
)
def test_what_does_not_go_with_weights(settings, message):
    with pytest.raises(ValueError, match=message):
        select(weights(np.ones((4, 4))), **settings)


def test_what_does_not_go_with_channels():
    model = net(np.ones((4, 4)))
    with pytest.raises(ValueError, match="`n_of_m` is a pattern of single weights"):
        select(Graph(model), budget=Budget(n_of_m=(2, 4)))
    with pytest.raises(ValueError, match="Received: a graph of blocks"):
        graph = Graph(model, unit="weight", block=(2, 1))
        select(graph, budget=Budget(n_of_m=(2, 4)))
    with pytest.raises(ValueError, match="`scope` must be one of"):
        select(Graph(model), budget=Budget(sparsity=0.5), scope="erk")
    with pytest.raises(ValueError, match="`block` does not go with unit='channel'"):
        Graph(model, block=(1, 1))
    with pytest.raises(ValueError, match="`unit` must be one of"):
        Graph(model, unit="filter")
    with pytest.raises(ValueError, match="`block` must be two positive ints"):
        Graph(model, unit="weight", block=4)
    with pytest.raises(ValueError, match="`n_of_m` must be two ints"):
        Budget(n_of_m=(4, 2))
    for function in (tfprune.cost, tfprune.compact):
        with pytest.raises(ValueError, match="needs the channels of a model"):
            function(Graph(model, unit="weight"))
