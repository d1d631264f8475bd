"""Bad input: a clear error that says what to do, and nothing has changed."""

import inspect

import checker
import keras
import numpy as np
import pytest
from invariants import fingerprint, random_masks
from keras import layers

import tfprune
from tfprune import Budget

DOORS = {
    "Graph": tfprune.Graph,
    "cost": tfprune.cost,
    "prune": tfprune.prune,
    "prune_wrap": tfprune.prune_wrap,
    "strip": tfprune.strip,
    "read_masks": tfprune.read_masks,
    "apply_masks": lambda model: tfprune.apply_masks(model, {}),
    "compact": tfprune.compact,
    "compact_masks": lambda model: tfprune.compact(model, {}),
}


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, x):
        return self.dense(x)


def subclassed():
    model = Subclassed()
    model.build((None, 4))
    return model


def unbuilt():
    return keras.Sequential([layers.Dense(3), layers.Dense(2)])


@pytest.fixture
def model(make_residual):
    return checker.randomize(make_residual(8))


@pytest.fixture
def unchanged(model):
    """Fails a test that has changed the model."""
    before = fingerprint(model)
    yield model
    assert fingerprint(model) == before


@pytest.mark.parametrize("door", sorted(DOORS))
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (subclassed, "subclassed model"),
        (Subclassed, "subclassed model"),
        (unbuilt, "must be built"),
        (lambda: layers.Dense(3), "must be a"),
        (lambda: None, "must be a"),
        (lambda: "model.keras", "must be a"),
    ],
    ids=["subclassed", "subclassed_unbuilt", "unbuilt", "layer", "none", "path"],
)
def test_what_is_no_functional_model(door, make, message):
    with pytest.raises(ValueError, match=message) as caught:
        DOORS[door](make())
    assert "Received" in str(caught.value)


def test_subclassed_model_is_told_the_way_out():
    with pytest.raises(ValueError, match="Wrap its call") as caught:
        tfprune.prune(subclassed())
    assert "keras.Model(inputs, subclassed.call(inputs))" in str(caught.value)
    inputs = keras.Input((4,))
    tfprune.Graph(keras.Model(inputs, subclassed().call(inputs)))


@pytest.mark.parametrize(
    "arguments",
    [
        {"flops_reduction": 0.999},
        {"flops_reduction": 0.9, "max_sparsity": 0.3},
        {"flops_reduction": 0.9, "min_channels": 8},
        {"flops_reduction": 0.9, "multiple_of": 8},
    ],
)
def test_budget_that_cannot_be_met(unchanged, arguments):
    with pytest.raises(ValueError, match=r"at most 0\.\d+ can be removed"):
        tfprune.prune(unchanged, **arguments)


@pytest.mark.parametrize("value", [50, 1.0, -0.5, None, "half"])
def test_budget_out_of_range(unchanged, value):
    with pytest.raises(ValueError, match="flops_reduction|target"):
        tfprune.prune(unchanged, flops_reduction=value)


def test_unknown_layer_path(unchanged):
    graph = tfprune.Graph(unchanged)
    for call in (
        lambda: tfprune.select(graph, "magnitude", scope={"stage9/*": 0.5}),
        lambda: tfprune.prune(unchanged, scope={"stage9/*": 0.5}),
        lambda: tfprune.prune_wrap(unchanged, layers="stage9/*"),
        lambda: graph.group("stage9/conv"),
    ):
        with pytest.raises(ValueError, match="stage9"):
            call()


MASKS_DOORS = {
    "compact": tfprune.compact,
    "apply_masks": tfprune.apply_masks,
    "cost": tfprune.cost,
    "layer_masks": lambda model, masks: tfprune.Graph(model).layer_masks(masks),
}


@pytest.mark.parametrize("door", sorted(MASKS_DOORS))
def test_masks_of_another_model(unchanged, make_vgg, door):
    masks = random_masks(tfprune.Graph(make_vgg()))
    with pytest.raises(ValueError, match="belong to another model.*'conv1'"):
        MASKS_DOORS[door](unchanged, masks)


@pytest.mark.parametrize("door", sorted(MASKS_DOORS))
def test_masks_of_a_wider_model(unchanged, make_residual, door):
    masks = random_masks(tfprune.Graph(make_residual(12)))
    with pytest.raises(ValueError, match=r"shape \(8,\)"):
        MASKS_DOORS[door](unchanged, masks)


@pytest.mark.parametrize("door", sorted(MASKS_DOORS))
def test_empty_mask(unchanged, door):
    with pytest.raises(ValueError, match="'stem_conv' keeps no channel"):
        MASKS_DOORS[door](unchanged, {"stem_conv": np.zeros(8, bool)})


@pytest.mark.parametrize("door", sorted(MASKS_DOORS))
@pytest.mark.parametrize(
    "mask", [np.ones(8), [1] * 8, "all", None, np.ones((8, 1), bool)]
)
def test_masks_that_are_no_masks(unchanged, door, mask):
    with pytest.raises(ValueError, match="bool array"):
        MASKS_DOORS[door](unchanged, {"stem_conv": mask})


@pytest.mark.parametrize("masks", [[True, False], 3, "stem_conv"])
def test_masks_that_are_no_mapping(unchanged, masks):
    for door in MASKS_DOORS.values():
        with pytest.raises(ValueError, match="`masks` must be"):
            door(unchanged, masks)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["kernel", "gamma", "moving_variance"])
def test_nan_weights(model, value, name):
    layer = model.get_layer("block1_a_conv" if name == "kernel" else "block1_a_bn")
    variable = getattr(layer, name)
    array = variable.numpy()
    array.ravel()[-1] = value
    variable.assign(array)
    before = fingerprint(model)
    if value == np.inf and name == "moving_variance":
        # Infinite variance only means that the channel is constant.
        return
    with pytest.raises(ValueError, match=r"NaN|finite") as caught:
        tfprune.prune(model, 0.5)
    assert "block1_a" in str(caught.value)
    with pytest.raises(ValueError, match=r"NaN|finite"):
        tfprune.compact(model, {"stem_conv": np.arange(8) > 2})
    assert fingerprint(model) == before


ARGUMENTS = {
    "a model for the graph": (
        lambda m, g: tfprune.select(m, budget=Budget(flops_reduction=0.3)),
        "`graph` must be the `Graph`",
    ),
    "a number for the budget": (
        lambda m, g: tfprune.select(g, "magnitude", 0.3),
        "`budget` must be a `Budget`",
    ),
    "a threshold and a scope": (
        lambda m, g: tfprune.select(g, threshold=0.5, scope={"stem*": 0.5}),
        "`scope` is for budgets",
    ),
    "no scope": (lambda m, g: tfprune.select(g, scope={}), "`scope` must name groups"),
    "no scores": (
        lambda m, g: tfprune.select(g, lambda graph: None, scope={"*": 0.5}),
        "must return {group name: scores}",
    ),
    "scores of words": (
        lambda m, g: tfprune.select(
            g, lambda g: {x.name: ["a"] * x.size for x in g.groups}, scope={"*": 0.5}
        ),
        "group 'stem_conv' are not numbers",
    ),
    "a layer for its name": (
        lambda m, g: tfprune.prune_wrap(m, layers=m.layers[1]),
        "`layers` must be a path pattern",
    ),
    "no layers": (
        lambda m, g: tfprune.prune_wrap(m, layers=[]),
        "`layers` must be a path pattern",
    ),
    "a layer for the gate": (
        lambda m, g: tfprune.prune_wrap(m, layers.Dense(2)),
        "`gate` must be a gate class",
    ),
    "a cap by number": (
        lambda m, g: Budget(flops_reduction=0.3, max_sparsity={1: 0.5}),
        "`max_sparsity` must be a path pattern",
    ),
    "more than all in force": (
        lambda m, g: Budget(n_of_m=(2, 4), in_force=7),
        "`in_force` must lie in",
    ),
    "a width in words": (lambda m, g: tfprune.scale_width(m, "half"), "`width` must"),
    "ragged masks": (
        lambda m, g: tfprune.Masks({"stem_conv": [[True], [True, False]]}),
        "1-D bool array",
    ),
    "no masks": (lambda m, g: tfprune.Masks(None), "`masks` must be a mapping"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_of_another_kind(unchanged, case):
    call, message = ARGUMENTS[case]
    with pytest.raises(ValueError, match=message):
        call(unchanged, tfprune.Graph(unchanged))


def test_a_name_stands_for_itself():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="a[1]")(inputs)
    x = layers.Conv2D(8, 3, name="b")(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    graph = tfprune.Graph(model)
    masks = tfprune.select(graph, scope={"a[1]": 0.5})
    assert (masks["a[1]"].sum(), masks["b"].sum()) == (4, 8)
    assert tfprune.read_masks(tfprune.prune_wrap(model, layers="a[1]")).density() == 1


def test_unknown_importance(unchanged):
    with pytest.raises(ValueError, match="`importance` must be one of"):
        tfprune.prune(unchanged, importance="hessian")


def test_unknown_scope(unchanged):
    with pytest.raises(ValueError, match="`scope` must be"):
        tfprune.prune(unchanged, scope="layerwise")


def test_model_with_nothing_to_prune():
    model = keras.Sequential([layers.Input((4,)), layers.Dense(2, name="only")])
    with pytest.raises(ValueError, match="no channels that can be pruned"):
        tfprune.prune(model)


def test_layer_whose_config_does_not_describe_it():
    class Lossy(layers.Layer):
        def __init__(self, size=7, **kwargs):
            super().__init__(**kwargs)
            self.size = size

        def get_config(self):
            return {"name": self.name}

        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], self.size))

        def call(self, x):
            return x @ self.kernel.value

    inputs = layers.Input((4,))
    x = Lossy(5, name="lossy")(layers.Dense(8, name="a")(inputs))
    x = layers.Dense(8, name="b")(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    before = fingerprint(model)
    with pytest.raises(ValueError, match=r"lossy|Lossy"):
        tfprune.prune(model, 0.3)
    assert fingerprint(model) == before


@pytest.mark.parametrize("door", [tfprune.prune, tfprune.select, tfprune.prune_wrap])
def test_signatures_are_short(door):
    assert len(inspect.signature(door).parameters) <= 7


def test_budget_is_frozen():
    with pytest.raises(AttributeError):
        Budget(sparsity=0.5).sparsity = 0.9
