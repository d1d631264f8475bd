"""Every invariant on small versions of the networks that people use.

`tests/zoo` runs the real ones.
"""

import checker
import keras
import pytest
from architectures import SMALL
from invariants import check_all

import tfprune


@pytest.fixture(autouse=True)
def float64():
    # Deep random networks magnify rounding a thousandfold: in float64 what is left
    # is exactness.
    keras.config.set_dtype_policy("float64")


@pytest.mark.parametrize("name", sorted(SMALL))
def test_invariants(name):
    model = checker.randomize(SMALL[name]())
    graph, _, small = check_all(model, tolerance=1e-9)
    if name == "convnext":
        assert "normalizes across the channels" in str(graph.free_channels.reasons)
        return
    assert not graph.skipped and graph.free_channels.share > 0.9
    # Random channels of half of every group leave about a quarter of the work.
    assert tfprune.cost(small).macs < 0.45 * tfprune.cost(graph).macs
