"""Every Python block of the README runs, in order, on a small stand-in network."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture
def newcomer(monkeypatch, tmp_path):
    """A machine without network: small data, a small network, an empty directory."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3))
    y = np.arange(16) % 10
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: ((x, y), (x, y)))
    monkeypatch.setattr(keras.applications, "MobileNetV2", small_network)
    return tmp_path


def small_network(weights, input_shape, classes):
    layers = keras.layers
    inputs = keras.Input(input_shape)
    x = layers.Conv2D(16, 3, strides=4, use_bias=False, name="conv7")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    stage3 = keras.Sequential(
        [keras.Input((8, 8, 16)), layers.Conv2D(16, 3, activation="relu")], name="stage3"
    )
    x = layers.GlobalAveragePooling2D()(stage3(x))
    return keras.Model(inputs, layers.Dense(classes, activation="softmax")(x))


def test_python_blocks_run(newcomer):
    text = README.read_text()
    # As much as shows that it runs.
    for long, short in (
        (r"max_trials=\d+", "max_trials=2"),
        (r"batches=\d+", "batches=2"),
        (r"width in \([\d, ]+\)", "width in (32, 32)"),
    ):
        text, changes = re.subn(long, short, text)
        assert changes == 1
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 12
    names, smaller = {}, []
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
        smaller.append(names["small"])
    tfprune = names["tfprune"]
    assert tfprune.cost(names["thin"]).macs <= 0.5 * tfprune.cost(names["net"]).macs
    dense = tfprune.cost(names["model"]).macs
    # Those of the first blocks: in one call, by parts, and in `fit`.
    for small, part in zip(smaller, (0.5, 0.5, 0.4), strict=False):
        assert tfprune.cost(small).macs <= part * dense
    snapshots = {"small-0.30.keras", "small-0.50.keras"}
    sparse = {"sparse.tflite", "small.tfsparse"}
    files = {path.name for path in newcomer.iterdir()}
    assert files == {"masks.npz", "small", "fast", "search", *sparse, *snapshots}


def test_table_calls_run(newcomer):
    names = {}
    text = README.read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for block in blocks[:2]:
        exec(block, names)
    exec("from tfprune import *; from tfprune.importances import *", names)
    names.update(budget=names["Budget"](flops_reduction=0.3), gated=names["model"])
    names["my_scores"] = lambda group: np.arange(group.size)
    calls = re.findall(r"^\| [^|]+ \| `((?:select|Budget|compact)\(.*\))` \|$", text, re.MULTILINE)
    assert len(calls) == 9
    for call in calls:
        assert eval(call, names)
