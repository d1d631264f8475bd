"""Every example in a docstring runs, with what its reader has: a model and data."""

import ast
import doctest
import importlib
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfprune

PACKAGE = Path(tfprune.__file__).parent
# Its model is made in a process of its own: see test_tfmot.py.
ELSEWHERE = {"from_tfmot"}


def docstrings():
    """Yields module, name and text of every docstring with an example."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                name = getattr(node, "name", path.parent.name)
                if name not in ELSEWHERE:
                    yield module, name, ast.get_docstring(node) or ""


def blocks():
    for _, name, text in docstrings():
        for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            yield pytest.param(code, id=name)


def sessions():
    for module, name, text in docstrings():
        if ">>>" in text:
            yield pytest.param(module, text, id=name)


def small_network():
    inputs = keras.Input((8, 8, 3))
    x = keras.Sequential(conv_bn(32, "conv"), name="stage3")(inputs)
    for layer in conv_bn(32, "conv1"):
        x = layer(x)
    x = layers.Dense(16, activation="relu", name="fc1")(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(10, activation="softmax", name="fc2")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def conv_bn(filters, name):
    conv = layers.Conv2D(filters, 3, strides=2, use_bias=False, name=name)
    return conv, layers.BatchNormalization(), layers.ReLU()


class MyDense(layers.Dense):
    pass


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What examples take for granted."""
    monkeypatch.chdir(tmp_path)
    model = small_network()
    x = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype("float32")
    y = np.arange(8) % 10
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    same = dict.fromkeys(
        "data train validation test first_half second_half".split(), data
    )
    graph = tfprune.Graph(model)
    budget = tfprune.Budget(flops_reduction=0.3)
    masks = tfprune.select(graph, "magnitude", budget)
    return {
        **same,
        "budget": budget,
        "graph": graph,
        "images": x,
        "keras": keras,
        "loss": model.loss,
        "make_model": small_network,
        "masks": masks,
        "model": model,
        "base": model,
        "MyDense": MyDense,
        "small": tfprune.compact(graph, masks),
        "sparse": small_network(),
        "tf": tf,
        "tfprune": tfprune,
        "x": x,
        "y": y,
    }


@pytest.mark.parametrize("code", [*blocks()])
def test_block(code, names):
    # Ticks follow every tenth epoch.
    epochs = 11 if "TickTock" in code else 1
    code = re.sub(r"\bepochs=\d+", f"epochs={epochs}", code)
    code = re.sub(r"max_trials=\d+", "max_trials=2", code)
    exec(compile(code, "example", "exec"), names)


@pytest.mark.parametrize(("module", "text"), [*sessions()])
def test_session(module, text, names):
    known = {**vars(importlib.import_module(module)), **names}
    test = doctest.DocTestParser().get_doctest(text, known, module, None, None)
    said = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert not said, "".join(said)
