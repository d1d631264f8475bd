"""Torch-Pruning on the same networks, in the same run: `zoo.py --peer torch-pruning`.

Both are asked for half of the multiply-accumulates by magnitude. Torch-Pruning takes a
fraction of channels, so the fraction that leaves half is looked for first, and only the
last run counts: its graph and one step. Ours is the graph, the search, and the rebuild.
"""

import copy
import dataclasses
import time
from collections.abc import Callable

import keras
import numpy as np
import structure
import timing

import tfprune
from tfprune.surgery.compact import compact_unverified

ROUNDS = 11
# On which network the whole is promised to take no more processor time than theirs.
PROMISED = "ResNet-50"


@dataclasses.dataclass(frozen=True)
class Network:
    """One network in both frameworks, and how its latency is measured."""

    name: str
    keras: Callable
    torch: Callable
    size: int
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one library made of one network; what went wrong instead, if it did."""

    macs: int
    macs_left: int | None = None
    before: float | None = None
    after: float | None = None
    failure: str = ""

    @property
    def left(self):
        return None if self.macs_left is None else self.macs_left / self.macs


def networks():
    """Returns the networks that both libraries prune."""
    import torch_models as torch

    def application(name):
        return lambda: getattr(keras.applications, name)(
            weights=None, classes=10, input_shape=(96, 96, 3)
        )

    return [
        Network("ResNet-50", application("ResNet50"), torch.resnet50, 96, 8),
        *(
            Network(
                f"ResNet-56, {shortcut} shortcuts",
                lambda shortcut=shortcut: resnet56(shortcut),
                lambda shortcut=shortcut: torch.resnet56(shortcut),
                32,
                64,
            )
            for shortcut in ("padded", "projected")
        ),
        Network("MobileNetV2", application("MobileNetV2"), torch.mobilenet_v2, 96, 8),
    ]


def resnet56(shortcut):
    """The twin in Keras of the network in torch_models.py."""
    from keras import layers, ops

    def conv_bn(x, width, size, stride=1):
        x = layers.Conv2D(width, size, stride, "same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    def shorten(x, width):
        if shortcut == "projected":
            return conv_bn(x, width, 1, 2)
        missing = width - x.shape[-1]
        pads = (missing // 2, missing - missing // 2)
        return ops.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), pads))

    inputs = layers.Input((32, 32, 3))
    x = layers.ReLU()(conv_bn(inputs, 16, 3))
    for width in (16, 32, 64):
        for _ in range(9):
            stride = 1 if x.shape[-1] == width else 2
            y = layers.ReLU()(conv_bn(x, width, 3, stride))
            y = conv_bn(y, width, 3)
            x = layers.ReLU()(layers.Add()([y, shorten(x, width) if stride > 1 else x]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x))


def compare():
    """Yields `(Network, ours, theirs, seconds)`, the seconds by clock and side."""
    for network in networks():
        ours, us = _ours(network)
        theirs, them = _theirs(network)
        clocks = {"CPU": time.process_time, "wall": time.perf_counter}
        seconds = {}
        if not theirs.failure:
            timing.interleave([us, them], rounds=2)
            for name, clock in clocks.items():
                rounds = timing.interleave([us, them], ROUNDS, clock)
                seconds[name] = np.median(rounds, axis=0)
        yield network, ours, theirs, seconds


def _ours(network):
    model = network.keras()

    def prune():
        graph = tfprune.Graph(model)
        budget = tfprune.Budget(flops_reduction=0.5)
        masks = tfprune.select(graph, "magnitude", budget, scope="uniform")
        return compact_unverified(graph, masks)

    small = prune()
    models = {"dense": model, "small": small}
    dense, pruned = tfprune.benchmark(models, network.batch_size, rounds=20).rows
    macs = (tfprune.cost(each).macs for each in (model, small))
    return Outcome(*macs, dense.median, dense.median / pruned.speedup), prune


def _theirs(network):
    import torch
    import torch_models
    import torch_pruning

    model = torch_models.randomized(network.torch())
    example = torch.randn(1, 3, network.size, network.size)
    macs = _macs(model, example)

    def prune(fraction):
        small = copy.deepcopy(model)

        def run():
            torch_pruning.pruner.MagnitudePruner(
                small,
                example,
                torch_pruning.importance.MagnitudeImportance(p=2),
                pruning_ratio=fraction,
                ignored_layers=[small.logits],
            ).step()

        return small, run

    def attempt(fraction):
        small, run = prune(fraction)
        run()
        return small, _macs(small, example)

    try:
        fraction = _smallest(lambda f: attempt(f)[1] <= 0.5 * macs)
        small, left = attempt(fraction)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is the result)
        return Outcome(macs, failure=_first_line(error)), None
    batch = torch.randn(network.batch_size, 3, network.size, network.size)
    dense, pruned = _latencies([model, small], batch)
    # Every round prunes a copy of its own; the copies are made ahead.
    copies = iter([prune(fraction)[1] for _ in range(2 + 2 * ROUNDS)])
    return Outcome(macs, left, dense, pruned), lambda: next(copies)()


def _macs(model, example):
    import torch_pruning

    return int(torch_pruning.utils.count_ops_and_params(model, example)[0])


def _smallest(holds, steps=7):
    """Returns the smallest fraction for which `holds`, by bisection."""
    low, high = 0.0, 0.9
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _latencies(models, batch, rounds=20):
    import torch

    def run(model):
        with torch.inference_mode():
            model(batch)

    functions = [lambda model=model: run(model) for model in models]
    timing.interleave(functions, rounds=3)
    seconds = timing.interleave(functions, rounds)
    dense = 1e3 * np.median(seconds[:, 0])
    return dense, dense / np.median(seconds[:, 0] / seconds[:, 1])


def _first_line(error):
    return f"{type(error).__name__}: {error}".splitlines()[0][:90]


def table(results):
    from rich import box
    from rich.table import Table
    from rich.text import Text

    result = Table(
        title="Half of the work, beside Torch-Pruning",
        caption="MACs: as each library counts its own. ms: of one batch, each in its own "
        "framework.",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    result.add_column("network")
    result.add_column("by")
    for name in ("CPU s", "wall s", "MACs", "left", "ms before", "after", "speed-up"):
        result.add_column(name, justify="right")
    result.add_column("the result")
    for network, ours, theirs, seconds in results:
        for side, (who, outcome) in enumerate(
            (("tfprune", ours), ("Torch-Pruning", theirs))
        ):
            times = [f"{each[side]:.2f}" for each in seconds.values()] or ["", ""]
            cells = (network.name if side == 0 else "", who, *times, *_cells(outcome))
            result.add_row(*map(Text, cells))
    return result


def _cells(outcome):
    if outcome.failure:
        return f"{outcome.macs:,}", "", "", "", "", outcome.failure
    return (
        f"{outcome.macs:,}",
        f"{outcome.left:.1%}",
        f"{outcome.before:.1f}",
        f"{outcome.after:.1f}",
        f"{outcome.before / outcome.after:.2f}x",
        "runs",
    )


def rows(results):
    """Returns the claims on time as rows of a table of claims."""
    return [
        structure.Row(
            f"trace + select + compact / build + step, {network.name}",
            seconds["CPU"][0] / seconds["CPU"][1],
            1.0 if network.name == PROMISED else None,
            "x",
            "{:.2f} beside {:.2f} CPU s".format(*seconds["CPU"]),
        )
        for network, _, _, seconds in results
        if seconds
    ]
