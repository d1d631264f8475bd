"""Every invariant on graphs put together at random."""

import os

import checker
import numpy as np
import pytest
from graphs import KINDS, describe, models
from hypothesis import HealthCheck, assume, given, note, seed, settings
from invariants import check_all, check_saved, round_trips
from keras import layers

import tfprune

TOLERANCE = 1e-9
CHECKS = list(HealthCheck)


def check(model, wholly=True):
    note(describe(model))
    checker.randomize(model, seed=1)
    if any(group.size > 1 for group in tfprune.Graph(model).groups):
        inputs = checker.make_inputs(model, size=16)
        saves = round_trips(model, inputs)
        try:
            check_all(model, tolerance=TOLERANCE, wrap=wholly, saves=saves)
        except AssertionError as error:
            # Too few units are left alive for their outputs to tell anything.
            assume("the output does not depend on the input" not in str(error))
            raise
        if wholly:
            check_other_ways(model, inputs, saves)
    else:
        tfprune.apply_masks(model, {})


def check_other_ways(model, inputs, saves):
    """What else makes a model smaller or faster, and must not change its outputs."""
    random = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization) and layer.gamma is not None:
            gone = random.random(layer.gamma.shape[0]) < 0.5
            layer.gamma.assign(np.where(gone, 0, layer.gamma))
    expected = checker.outputs_of(model, inputs)
    for options in ({"fold": True}, {"fold": True, "optimize": True}):
        small = tfprune.compact(model, **options)
        received = checker.outputs_of(small, inputs)
        assert checker.relative_error(expected, received) <= TOLERANCE, options
    if saves:
        check_saved(small, inputs)


# Fixed seeds; gates and other ways on every third, as an example takes a second or two.
@pytest.mark.parametrize("number", range(10))
def test_random_graphs(number):
    @seed(number)
    @settings(
        max_examples=2, deadline=None, database=None, suppress_health_check=CHECKS
    )
    @given(models())
    def check_some(model):
        check(model, wholly=number % 3 == 0)

    check_some()


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(KINDS), key=str))
def test_many_random_graphs(kind):
    """As many as `TFPRUNE_EXAMPLES` says, from `TFPRUNE_SEED` on."""
    examples = int(os.environ.get("TFPRUNE_EXAMPLES", "400"))

    @seed(int(os.environ.get("TFPRUNE_SEED", "1")))
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=CHECKS,
    )
    @given(models(kind, steps=12))
    def run(model):
        check(model)

    run()
