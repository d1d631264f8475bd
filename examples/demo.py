"""The main job from end to end, on real images: train, prune, compact, export, compare.

    make demo                                        scikit-learn's 1,797 digits
    make demo ARGS="--data mnist --data-dir DIR"     any of digits, mnist, cifar10

A small residual network is trained, pruned inside `fit` to 60 % fewer FLOPs, made
smaller in fact, trained a little more, exported, and loaded again by a process that
cannot import tfprune. The run fails if that costs 2 points of accuracy or gains less
than a factor of 1.3 in measured speed.
"""

import argparse
import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

from tfprune_command import quiet_tensorflow

with quiet_tensorflow():
    import keras
    import numpy as np

    import tfprune
    from tfprune import reports

EPOCHS = {"digits": (8, 8, 4), "mnist": (2, 2, 1), "cifar10": (20, 15, 10)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `run` does; the tests use small numbers."""

    data: str = "digits"
    data_dir: str | None = None
    download: bool = False
    limit: int | None = None
    epochs: tuple[int, int, int] = EPOCHS["digits"]
    widths: tuple[int, ...] = (64, 128, 256)
    flops_reduction: float = 0.6
    batch_size: int = 64
    rounds: int = 40
    output: Path = Path("build/demo")
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Result:
    before: reports.Measurements
    after: reports.Measurements
    latency: tfprune.benchmarking.Benchmark
    difference: float


def load_data(settings):
    """Returns `(train images, labels), (test images, labels)`; images lie in [0, 1]."""
    if settings.data == "digits":
        train, test = _load_digits()
    else:
        train, test = _load_tfds(settings)
    return tuple(array[: settings.limit] for array in train), test


def _load_digits():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=450, stratify=labels, random_state=0
    )
    return (train_x, train_y), (test_x, test_y)


def _load_tfds(settings):
    import tensorflow_datasets as tfds

    splits = tfds.load(
        settings.data,
        split=["train", "test"],
        data_dir=settings.data_dir,
        download=settings.download,
        batch_size=-1,
        as_supervised=True,
    )
    return [
        (images.astype("float32") / 255, labels)
        for images, labels in tfds.as_numpy(splits)
    ]


def build(input_shape, widths, num_classes=10, blocks=2):
    """Builds a residual network: one stage per width, each at half the resolution."""
    layers = keras.layers
    inputs = keras.Input(input_shape)
    x = _convolve(inputs, widths[0])
    for i, width in enumerate(widths):
        for j in range(blocks):
            strides = 2 if i and not j else 1
            shortcut = x
            if strides > 1:
                shortcut = layers.Conv2D(width, 1, strides, use_bias=False)(x)
                shortcut = layers.BatchNormalization(momentum=0.9)(shortcut)
            x = _convolve(x, width, strides)
            x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
            x = layers.Add()([layers.BatchNormalization(momentum=0.9)(x), shortcut])
            x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    outputs = layers.Dense(num_classes)(x)
    return keras.Model(inputs, outputs, name="residual")


def _convolve(x, width, strides=1):
    x = keras.layers.Conv2D(width, 3, strides, padding="same", use_bias=False)(x)
    return keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))


class Bar(keras.callbacks.Callback):
    """Moves one task of a rich progress bar."""

    def __init__(self, progress, description):
        super().__init__()
        self.progress = progress
        self.description = description

    def on_train_begin(self, logs=None):
        total = self.params["epochs"] * self.params["steps"]
        self.task = self.progress.add_task(self.description, total=total)

    def on_train_batch_end(self, batch, logs=None):
        self.progress.advance(self.task)

    def on_epoch_end(self, epoch, logs=None):
        description = f"{self.description}: training accuracy {logs['accuracy']:.1%}"
        self.progress.update(self.task, description=description)


def fit(model, train, epochs, batch_size, callbacks):
    """Trains with Adam and a learning rate that falls to zero."""
    steps = epochs * -(-len(train[0]) // batch_size)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(*train, batch_size, epochs, verbose=0, callbacks=callbacks, shuffle=True)


def run(settings, progress):
    """Does the whole job and returns what was measured."""
    keras.utils.set_random_seed(settings.seed)
    train, test = load_data(settings)
    dense = build(train[0].shape[1:], settings.widths)
    pruned = prune(dense, train, settings, progress)
    task = progress.add_task("exporting and measuring", total=3)
    paths = []
    for name, model in (("dense", dense), ("pruned", pruned)):
        settings.output.mkdir(parents=True, exist_ok=True)
        path = tfprune.export(model, settings.output / name, overwrite=True)
        paths.append(path)
        progress.advance(task)
    difference = reload_elsewhere(pruned, paths[1], test[0])
    latency = tfprune.benchmark(
        {"dense": dense, "pruned": pruned}, settings.batch_size, settings.rounds
    )
    progress.advance(task)
    before, after = (
        measure(model, path, row.median, test)
        for model, path, row in zip((dense, pruned), paths, latency.rows, strict=True)
    )
    return Result(before, after, latency, difference)


def prune(dense, train, settings, progress):
    """Trains `dense` in place and returns a pruned, smaller model."""
    batch_size, epochs = settings.batch_size, settings.epochs
    fit(dense, train, epochs[0], batch_size, [Bar(progress, "training")])

    gated = tfprune.prune_wrap(dense)
    budget = tfprune.Budget(flops_reduction=settings.flops_reduction)
    pruning = tfprune.callbacks.PruneToBudget("magnitude", budget)
    fit(gated, train, epochs[1], batch_size, [pruning, Bar(progress, "pruning")])

    small = tfprune.compact(gated)
    fit(small, train, epochs[2], batch_size, [Bar(progress, "fine-tuning")])
    return small


_RELOAD = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tfprune":
            raise ImportError("this process must do without tfprune")

sys.meta_path.insert(0, Refuse())
import numpy as np
import tensorflow as tf

model = tf.saved_model.load(sys.argv[1])
np.save(sys.argv[3], model.serve(np.load(sys.argv[2])).numpy())
assert "tfprune" not in sys.modules
"""


def reload_elsewhere(model, path, images):
    """Returns how far a process without tfprune is from `model`, relative."""
    with tempfile.TemporaryDirectory() as room:
        inputs, outputs = Path(room, "inputs.npy"), Path(room, "outputs.npy")
        np.save(inputs, images)
        done = subprocess.run(
            [sys.executable, "-c", _RELOAD, path, inputs, outputs],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"the SavedModel does not run alone:\n{done.stderr}")
        expected = model.predict(images, verbose=0)
        return float(np.abs(np.load(outputs) - expected).max() / np.abs(expected).max())


def measure(model, path, latency, test):
    cost = tfprune.cost(model)
    accuracy = np.mean(model.predict(test[0], verbose=0).argmax(-1) == test[1])
    return reports.Measurements(
        cost.params, cost.macs, reports.bytes_on_disk(path), latency, float(accuracy)
    )


def failures(result, settings):
    """Returns what a run must not do, and did, as a list of sentences."""
    before, after = result.before, result.after
    reduction = 1 - after.macs / before.macs
    loss = 100 * (before.accuracy - after.accuracy)
    speedup = result.latency["pruned"].speedup
    checks = (
        (reduction >= settings.flops_reduction, f"FLOPs fell by {reduction:.1%} only"),
        (loss < 2, f"{loss:.2f} points of accuracy were lost"),
        (speedup >= 1.3, f"the pruned model is {speedup:.2f}x faster only"),
        (result.difference < 1e-4, f"outputs differ by {result.difference:.1e}"),
    )
    return [sentence for passed, sentence in checks if not passed]


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", choices=sorted(EPOCHS), default="digits")
    parser.add_argument("--data-dir", help="where tensorflow-datasets keeps its data")
    parser.add_argument("--download", action="store_true", help="let it fetch them")
    parser.add_argument("--limit", type=int, help="use the first images only")
    parser.add_argument(
        "--epochs",
        type=int,
        nargs=3,
        metavar=("TRAIN", "PRUNE", "TUNE"),
        help="lengths of the three trainings",
    )
    parser.add_argument("--output", type=Path, default=Settings.output)
    options = vars(parser.parse_args(arguments))
    options["epochs"] = tuple(options["epochs"] or EPOCHS[options["data"]])
    return Settings(**options)


def main(arguments=None):
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    settings = parse(arguments)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        result = run(settings, progress)
    speedup = result.latency["pruned"].speedup
    table = reports.comparison_table(
        result.before, result.after, speedup, title=f"{settings.data}: before and after"
    )
    latency = result.latency
    table.caption = (
        f"latency: batch {latency.batch_size}, median of {latency.rounds} interleaved "
        f"rounds, {latency.threads}\n"
        f"{settings.output / 'pruned'} loaded without tfprune: largest relative "
        f"difference of its outputs {result.difference:.1g}"
    )
    Console().print(table)
    failed = failures(result, settings)
    for sentence in failed:
        print(f"demo: error: {sentence}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
