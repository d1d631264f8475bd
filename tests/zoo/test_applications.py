"""All of keras.applications at half of the work: exact, as cheap as was said."""

import architectures
import checker
import keras
import pytest
from invariants import halve

import tfprune
from tfprune.surgery import set_masks

pytestmark = pytest.mark.slow


def test_none_is_left_out():
    assert len(architectures.NAMES) >= 40
    assert set(architectures.FAMILIES) <= set(architectures.NAMES)


@pytest.mark.parametrize("name", architectures.NAMES)
def test_half_of_the_work(name):
    halved = halve(checker.randomize(architectures.application(name)))
    if halved.error > 1e-4:
        # Float32 may round that much in a deep network; then float64 tells.
        keras.config.set_dtype_policy("float64")
        halved = halve(checker.randomize(architectures.application(name)))
        assert halved.error < 1e-10
    check_free_channels(halved.graph)


def check_free_channels(graph):
    """All but the logits can go, unless a layer that keeps its channels says so."""
    channels = graph.free_channels
    kept = {reason: count for reason, count in channels.reasons.items()}
    assert kept.pop("an output of the model") == 10
    if graph.skipped:
        assert 0.5 < channels.share < 0.9
        assert any("normalizes across the channels" in reason for reason in kept)
    else:
        assert not kept and channels.free == channels.total - 10
        assert tfprune.select(graph, "random", tfprune.Budget(sparsity=0.9))


@pytest.mark.parametrize("name", architectures.NAMES)
def test_masks_on_weights(name):
    """Wrapped, half of every kernel masked, stripped: nothing aborts, all is equal."""
    model = checker.randomize(architectures.application(name))
    inputs = checker.make_inputs(model)
    gated = tfprune.prune_wrap(model, tfprune.layers.WeightMask)
    graph = tfprune.Graph(gated, unit="weight")
    expected = checker.outputs_of(model, inputs)
    assert checker.relative_error(expected, checker.outputs_of(gated, inputs)) == 0
    assert all(kernel.gate is not None for kernel in graph.kernels.values())
    plain = {v.path for v in model.weights if v.name.endswith("kernel")}
    assert len(graph.kernels) == len(plain)
    budget = tfprune.Budget(sparsity=0.5)
    masks = tfprune.select(graph, "magnitude", budget, scope="uniform")
    set_masks(graph, masks)
    stripped = tfprune.strip(gated)
    received = checker.outputs_of(stripped, inputs)
    assert checker.relative_error(checker.outputs_of(gated, inputs), received) == 0
    assert tfprune.read_masks(tfprune.Graph(stripped, unit="weight")) == masks
