"""What has to hold for every model and every choice of masks."""

import dataclasses
import hashlib
import tempfile
from pathlib import Path

import checker
import keras
import numpy as np

import tfprune
from tfprune.surgery import has_gates, set_masks


def fingerprint(model) -> dict:
    """Everything of a model that a function must leave as it was."""
    digest = hashlib.sha256()
    for variable in model.variables:
        digest.update(variable.numpy().tobytes())
    layers = list(model._flatten_layers())
    return {
        "weights": digest.hexdigest(),
        "variables": [id(variable) for variable in model.variables],
        "nodes": [len(layer._inbound_nodes) for layer in layers],
        "readers": [len(layer._outbound_nodes) for layer in layers],
        "trainable": [layer.trainable for layer in layers],
        "constraints": [id(v.constraint) for v in model.variables],
        "compiled": (model.compiled, id(getattr(model, "optimizer", None))),
        "names": [layer.name for layer in layers],
    }


def random_masks(graph, fraction=0.5, seed=0) -> tfprune.Masks:
    """Drops this fraction of every group, at random."""
    importance = tfprune.importances.Random(seed)
    return tfprune.select(graph, importance, scope={"*": fraction})


def check_all(model, masks=None, tolerance=1e-5, size=16, wrap=True, saves=None):
    """Runs every invariant of a model; returns its graph, the masks and the result.

    `saves` tells whether Keras round-trips the model, where that is known.
    """
    before = fingerprint(model)
    graph = tfprune.Graph(model)
    masks = random_masks(graph) if masks is None else masks
    small = tfprune.compact(model, masks)
    inputs = checker.make_inputs(model, size=size)
    checker.check_slices(model, small, inputs, tolerance)
    check_costs(model, small, masks)
    if round_trips(model, inputs) if saves is None else saves:
        check_saved(small, inputs)
    masked = check_masked(model, small, masks, inputs, tolerance)
    if wrap:
        check_wrapped(model, masked, masks, inputs, tolerance)
    assert fingerprint(model) == before, "the original was changed"
    return graph, masks, small


@dataclasses.dataclass(frozen=True)
class Halved:
    """A model, what half of its work was done by taken out, and how exact that is."""

    graph: tfprune.Graph
    masks: tfprune.Masks
    small: keras.Model
    error: float


def halve(model, importance="magnitude") -> Halved:
    """Takes half of the work out of a model; checks all but the size of the error."""
    graph = tfprune.Graph(model)
    budget = tfprune.Budget(flops_reduction=0.5)
    masks = tfprune.select(graph, importance, budget, scope="uniform")
    small = tfprune.compact(model, masks)
    check_costs(model, small, masks)
    reduction = 1 - tfprune.cost(small).macs / tfprune.cost(model).macs
    assert 0.5 <= reduction <= 0.51, f"{reduction:.4f} of the work is gone"
    inputs = checker.make_inputs(model)
    _, expected = checker.masked_outputs(model, small, inputs)
    check_control(graph, masks, small, inputs, expected)
    error = error_in_variation(expected, checker.outputs_of(small, inputs))
    return Halved(graph, masks, small, error)


def error_in_variation(expected, received) -> float:
    """Returns the error relative to how much the outputs differ between inputs.

    A deep network that lost half of itself without training may be almost constant,
    and every error is small beside a large constant.
    """
    variation = min(x.std(axis=0).max() / np.abs(x).max() for x in expected)
    return checker.relative_error(expected, received) / variation


def check_control(graph, masks, small, inputs, expected):
    """Two channels of one layer change places, and the outputs must show it."""
    macs = {row.path: row.macs for row in tfprune.cost(graph, masks).layers}
    # A branch that hardly counts, such as squeeze and excite, would hardly show it.
    path = max(graph.layer_masks(masks), key=macs.get)
    layer = checker.layers_by_path(small)[path]
    values, errors = layer.get_weights(), []
    # Some channels are silenced by the activation behind them, on all of the inputs.
    for first in range(8):
        checker.swap_channels(layer, first)
        received = checker.outputs_of(small, inputs)
        errors.append(error_in_variation(expected, received))
        layer.set_weights(values)
        if errors[-1] > 1e-3:
            return
    raise AssertionError(f"blind: swapped channels of {layer.name!r} give {errors}")


def saved_and_loaded(model):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        return keras.models.load_model(path)


def round_trips(model, inputs) -> bool:
    """Whether Keras itself saves and loads a model as it is: not with a lambda."""
    try:
        loaded = saved_and_loaded(model)
    except (ValueError, TypeError, NotImplementedError):
        return False
    pairs = (checker.outputs_of(each, inputs) for each in (model, loaded))
    # A `Normalization` computes with other constants after it was loaded, if its
    # variables were set by hand.
    return all(np.array_equal(a, b) for a, b in zip(*pairs, strict=True))


def check_saved(model, inputs) -> None:
    loaded = saved_and_loaded(model)
    expected = checker.outputs_of(model, inputs)
    assert checker.relative_error(expected, checker.outputs_of(loaded, inputs)) == 0


def check_costs(model, small, masks) -> None:
    promised, real = tfprune.cost(model, masks), tfprune.cost(small)
    assert promised == real
    for one, other in zip(promised.layers, real.layers, strict=True):
        assert one == other
    assert real.params == small.count_params()
    assert promised.params < tfprune.cost(model).params


def check_masked(model, small, masks, inputs, tolerance):
    """`apply_masks` zeroes what `compact` removes, and nothing else."""
    masked = tfprune.apply_masks(model, masks)
    kept = checker.kept_indices(model, small)
    twins = checker.layers_by_path(masked)
    for path, layer in checker.layers_by_path(model).items():
        for number, (old, new) in enumerate(
            zip(layer.variables, twins[path].variables, strict=True)
        ):
            expected = np.array(old.numpy())
            stays = np.zeros(expected.shape, bool)
            stays[np.ix_(*kept[path, number])] = True
            if not stays.all():
                expected[~stays] = 0
            assert np.array_equal(new.numpy(), expected), (path, old.name)
    expected = checker.outputs_of(masked, inputs)
    assert (
        checker.relative_error(expected, checker.outputs_of(small, inputs)) <= tolerance
    )
    assert same_masks(model, tfprune.read_masks(masked), masks)
    return masked


def same_masks(model, received, masks) -> bool:
    """Whether masks read back are those written, and what was dead all along."""
    dead = tfprune.read_masks(model)
    assert received.keys() == masks.keys() == dead.keys()
    for name, mask in masks.items():
        both = mask & dead[name]
        if not np.array_equal(received[name], both if both.any() else dead[name]):
            return False
    return True


def check_wrapped(model, masked, masks, inputs, tolerance):
    """Gates change nothing when open, and are `apply_masks` when closed."""
    graph = tfprune.Graph(model)
    dense = checker.outputs_of(model, inputs)
    wrapped = tfprune.prune_wrap(model)
    assert has_gates(wrapped)
    assert (
        checker.relative_error(dense, checker.outputs_of(wrapped, inputs)) <= tolerance
    )
    gated = tfprune.Graph(wrapped)
    assert _groups(gated) == _groups(graph)
    assert gated.locked.keys() == graph.locked.keys()
    assert tfprune.cost(gated) == tfprune.cost(graph)
    assert tfprune.cost(gated, masks) == tfprune.cost(graph, masks)
    set_masks(gated, masks)
    expected = checker.outputs_of(masked, inputs)
    closed = checker.outputs_of(wrapped, inputs)
    assert checker.relative_error(expected, closed) <= tolerance
    assert same_masks(model, tfprune.read_masks(wrapped), masks)
    stripped = tfprune.strip(wrapped)
    assert not has_gates(stripped)
    received = checker.outputs_of(stripped, inputs)
    assert checker.relative_error(closed, received) <= tolerance
    small = tfprune.compact(wrapped)
    assert (
        checker.relative_error(closed, checker.outputs_of(small, inputs)) <= tolerance
    )
    # Channels that were zero before, such as padding, go as well.
    promised = tfprune.cost(graph, tfprune.read_masks(wrapped))
    assert tfprune.cost(small).macs == promised.macs
    if tfprune.read_masks(model).density() == 1:
        assert tfprune.cost(small) == promised
    return wrapped


def _groups(graph) -> list:
    return [(group.name, group.size) for group in graph.groups]
