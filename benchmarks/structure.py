"""What the structural engine promises, measured: one table, us beside the limit.

    python benchmarks/structure.py [--models-dir DIR] [--only NAME ...]

DIR holds CIFAR-10 networks as `.keras` files (resnet20*, resnet56*); what needs them is
left out, and said so, where they are absent. Times are medians of interleaved rounds.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))

import keras
import numpy as np
import published
import tensorflow as tf
from timing import interleave, paired_ratio

import tfprune
from tfprune import benchmarking
from tfprune.surgery.compact import compact_unverified


@dataclasses.dataclass(frozen=True)
class Row:
    """One claim: what was measured, and the limit it must keep, if it is one."""

    claim: str
    measured: float
    limit: float | None
    unit: str
    detail: str = ""
    higher_is_better: bool = False

    @property
    def holds(self):
        if self.higher_is_better:
            return self.measured >= self.limit
        return self.measured <= self.limit


def trace(models):
    """Trace and select: how long it takes to decide."""
    for name, model in models("resnet56"):

        def decide(model=model):
            budget = tfprune.Budget(flops_reduction=0.5)
            tfprune.select(tfprune.Graph(model), "magnitude", budget)

        seconds = np.median(interleave([decide], rounds=7))
        yield Row(f"trace and select, {name}", seconds, 0.3, "s")


def compact(models):
    """Compact, certificate apart, beside cloning the same model."""
    for name, model in models("resnet56"):
        budget = tfprune.Budget(flops_reduction=0.5)
        masks = tfprune.select(tfprune.Graph(model), "magnitude", budget)

        def clone(model=model):
            keras.models.clone_model(model).set_weights(model.get_weights())

        def shrink(model=model, masks=masks):
            compact_unverified(tfprune.Graph(model), masks)

        seconds = interleave([clone, shrink], rounds=7)
        detail = "{:.2f} s beside {:.2f} s".format(*np.median(seconds, 0)[::-1])
        claim = f"compact / clone_model + set_weights, {name}"
        yield Row(claim, paired_ratio(seconds), 1.3, "x", detail)


def latency(models):
    """Dense and compacted at half the multiply-accumulates."""
    for name, model in models(""):
        for multiple in (1, 8):
            claim = f"latency at -50 % MACs, {name}, multiple_of={multiple}"
            small = _halve(model, multiple)
            yield _speedup(claim, model, small, 64, 1.3)
            faster = tfprune.compact(small, optimize=True)
            yield _speedup(f"{claim}, optimize=True", model, faster, 64, 1.3)


def resnet50(models):
    """The same for a network of ImageNet's size, and what its convolutions allow."""
    model = keras.applications.ResNet50(weights=None, input_shape=(96, 96, 3))
    for multiple in (8, 32):
        claim = f"latency at -50 % MACs, ResNet50 at 96 px, multiple_of={multiple}"
        small = _halve(model, multiple)
        yield _speedup(claim, model, small, 8, 2.0)
        faster = tfprune.compact(small, optimize=True)
        yield _speedup(f"{claim}, optimize=True", model, faster, 8, 2.0)
        # As deployment tools compile it, with batch normalization folded away.
        yield _speedup(f"{claim}, frozen", model, small, 8, 2.0, freeze=True)
        alone = [convolutions(each, 8) for each in (small, model)]
        interleave(alone, rounds=3)
        seconds = interleave(alone, rounds=40)
        detail = "batch 8, {:.1f} to {:.1f} ms".format(
            *1e3 * np.median(seconds, 0)[::-1]
        )
        claim = f"its convolutions alone, multiple_of={multiple}"
        yield Row(claim, paired_ratio(seconds), None, "x", detail)


def _halve(model, multiple):
    return tfprune.prune(model, 0.5, scope="uniform", multiple_of=multiple)


def convolutions(model, batch_size):
    """Returns a function that runs a model's convolutions and nothing between them."""
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    inputs = [
        tf.random.normal((batch_size, *layer.input.shape[1:])) for layer in layers
    ]

    @tf.function
    def run():
        return [
            tf.nn.conv2d(x, layer.kernel.value, layer.strides, layer.padding.upper())
            for layer, x in zip(layers, inputs, strict=True)
        ]

    return run


def _speedup(claim, model, small, batch_size, limit, freeze=False):
    models = {"dense": model, "small": small}
    result = tfprune.benchmark(models, batch_size, rounds=40, freeze=freeze)
    dense, pruned = (row.median for row in result.rows)
    macs = tfprune.cost(small).macs / tfprune.cost(model).macs
    detail = (
        f"batch {batch_size}, {dense:.1f} to {pruned:.1f} ms, {1 - macs:.1%} fewer MACs"
    )
    return Row(claim, result["small"].speedup, limit, "x", detail, True)


def training(models):
    """A training step with gates beside one without."""
    for name, model in models("resnet20"):
        generator = np.random.default_rng(0)
        x = generator.uniform(0, 255, (128, 32, 32, 3)).astype("float32")
        y = generator.integers(0, 10, 128)

        def stepper(model, x=x, y=y):
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), loss)
            return lambda: model.train_on_batch(x, y)

        plain = keras.models.clone_model(model)
        steps = [stepper(plain), stepper(tfprune.prune_wrap(model))]
        interleave(steps, rounds=2)
        for clock in (time.process_time, time.perf_counter):
            seconds = interleave(steps, rounds=15, clock=clock)
            detail = "batch 128, {:.0f} and {:.0f} ms".format(
                *1e3 * np.median(seconds, 0)
            )
            which = "CPU time" if clock is time.process_time else "wall time"
            claim = f"step with gates / without, {name}, {which}"
            yield Row(claim, paired_ratio(seconds), 1.05, "x", detail)


def imports(models):
    """`import tfprune` beside `import keras`, each in a process of its own."""

    def importing(package):
        command = [sys.executable, "-c", f"import {package}"]
        return lambda: subprocess.run(command, check=True, capture_output=True)

    runs = [importing("keras"), importing("tfprune")]
    interleave(runs, rounds=1)
    seconds = interleave(runs, rounds=7)
    detail = "{:.2f} s beside {:.2f} s".format(*np.median(seconds, 0)[::-1])
    claim = "import tfprune / import keras"
    yield Row(claim, paired_ratio(seconds), 1.15, "x", detail)


MEASUREMENTS = {
    f.__name__: f for f in (trace, compact, latency, resnet50, training, imports)
}


def loader(directory):
    """Returns a function from the beginning of a file's name to (name, model) pairs."""

    def models(prefix):
        paths = sorted(Path(directory).glob(f"{prefix}*.keras"))
        if not paths:
            print(f"left out: no {prefix}*.keras in {directory}", file=sys.stderr)
        for path in paths:
            yield path.stem, keras.saving.load_model(path, compile=False)

    return models


def table(rows, title="tfprune, structural engine", caption=None):
    from rich import box
    from rich.table import Table

    result = Table(
        title=title,
        caption=caption or benchmarking.describe_threads(),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in ("claim", "measured", "limit", "holds", "detail"):
        numeric = column in ("measured", "limit")
        result.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        sign = ">=" if row.higher_is_better else "<="
        result.add_row(
            row.claim,
            f"{row.measured:.2f} {row.unit}",
            "" if row.limit is None else f"{sign} {row.limit:.2f} {row.unit}",
            "" if row.limit is None else "yes" if row.holds else "NO",
            row.detail,
        )
    return result


def main(arguments=None):
    from rich.console import Console

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models-dir", default="../shared/models")
    parser.add_argument(
        "--only", nargs="+", choices=sorted(MEASUREMENTS), default=list(MEASUREMENTS)
    )
    options = parser.parse_args(arguments)
    models = loader(options.models_dir)
    rows = [row for name in options.only for row in MEASUREMENTS[name](models)]
    console = Console()
    if not console.is_terminal:
        console.width = 140
    console.print(table(rows))
    console.print(published.table("ResNet-56"))


if __name__ == "__main__":
    main()
