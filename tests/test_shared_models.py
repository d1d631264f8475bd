"""The promises about the three CIFAR-10 networks in ../shared/models."""

from pathlib import Path

import checker
import keras
import pytest
from invariants import check_all

import tfprune

FOLDER = Path(__file__).parents[2] / "shared" / "models"
MACS = {
    "resnet20_cifar10": None,
    "resnet56a_cifar10": 125_485_696,
    "resnet56b_cifar10": 125_747_840,
}

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="no ../shared/models")


@pytest.fixture(params=sorted(MACS))
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return keras.models.load_model(FOLDER / f"{name}.keras")


def test_macs(name, model):
    macs = tfprune.cost(model).macs
    assert MACS[name] in (None, macs)
    assert macs == checker.profiled_macs(model)


@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_half_of_the_flops(model, scope):
    """The budget is met with at most one point of overshoot, the result is exact."""
    graph = tfprune.Graph(model)
    masks = tfprune.select(
        graph, "magnitude", tfprune.Budget(flops_reduction=0.5), scope=scope
    )
    small = tfprune.compact(model, masks)
    reduction = 1 - tfprune.cost(small).macs / tfprune.cost(model).macs
    assert 0.5 <= reduction <= 0.51
    assert tfprune.cost(model, masks) == tfprune.cost(small)
    inputs = checker.make_inputs(model)
    masked = checker.outputs_of(tfprune.apply_masks(model, masks), inputs)
    received = checker.outputs_of(small, inputs)
    assert checker.relative_error(masked, received) < 1e-5
    if scope == "uniform":
        same = tfprune.prune(model, flops_reduction=0.5, scope=scope)
        assert [x.get_config() for x in same.layers] == [
            x.get_config() for x in small.layers
        ]


@pytest.mark.slow
def test_everything(model):
    _, _, small = check_all(checker.randomize(model), size=32)
    assert tfprune.cost(small).macs == checker.profiled_macs(small)
