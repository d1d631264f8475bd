"""Polarization beside its rivals, on MNIST at 14x14: python benchmarks/polarization.py

    --only compare      Polarization, network slimming, DeepHoyer, uniform scaling: same
                        network, training and FLOPs; three seeds
    --only search       GridSearch: trials until -50 % FLOPs are met
    --only independent  residual blocks pruned each on its own: what scattering costs

Every regularizer is tried with the same six pushes (strength times the sum of the
learning rates over 1 - momentum), each 1.4 times the last; a best one at either end may
not be the best there is. All networks are cut to the same FLOPs by the global order of
their scales, a tenth of every layer staying. The push is chosen on validation images by
the accuracy right after pruning; test images are looked at once per row.

Weight decay is scaled to the length of the run, as the push is: the paper's 200 epochs
shrink a shift that nothing holds by e^28. The shifts that short runs leave on channels
of zero scale are what pruning loses, and what compact(fold=True) keeps.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))

import keras
import loading
import numpy as np
import published
import structure
import tensorflow as tf

import tfprune
from tfprune import regularizers

WIDTHS = (16, 16, 32, 32, 64, 64)
PUSHES = (0.8, 1.1, 1.6, 2.2, 3.1, 4.4)
REDUCTIONS = (0.5, 0.6, 0.7)
LEARNING_RATE, MOMENTUM, BATCH = 0.1, 0.9, 64
# The sum of weight decay times learning rate: what nothing holds shrinks by e^-7.5.
DECAY = 7.5
METHODS = {
    "Polarization": lambda strength: regularizers.Polarization(1.2, strength),
    "network slimming": regularizers.NetworkSlimming,
    "DeepHoyer, on scales": regularizers.HoyerSquare,
}


@dataclasses.dataclass(frozen=True)
class Images:
    """Images and labels to train on, to choose by, and to report on."""

    train: tuple
    validation: tuple
    test: tuple


@dataclasses.dataclass
class Cut:
    """One trained network cut to a FLOPs reduction."""

    method: str
    push: float
    seed: int
    flops_reduction: float
    small: keras.Model
    folded: keras.Model
    validation: float


def load(data_dir, number):
    """Returns MNIST at 14x14: so many training images, 2,000 for validation."""
    splits = loading.arrays("mnist", data_dir)
    (x, y), (test_x, test_y) = [(_halved(x), y) for x, y in splits]
    order = np.random.default_rng(0).permutation(len(x))[: number + 2_000]
    train, validation = order[:number], order[number:]
    return Images(
        (x[train], y[train]), (x[validation], y[validation]), (test_x, test_y)
    )


def _halved(x):
    x = x.astype("float32") / 255
    return x.reshape(len(x), 14, 2, 14, 2, 1).mean((2, 4))


def network():
    """Six convolutions; scales of about 0.5, not all equal."""
    scales = keras.initializers.RandomNormal(0.5, 0.01)
    x = inputs = keras.Input((14, 14, 1))
    for number, width in enumerate(WIDTHS):
        strides = 2 if number in (2, 4) else 1
        x = keras.layers.Conv2D(width, 3, strides, "same", use_bias=False)(x)
        x = keras.layers.BatchNormalization(momentum=0.9, gamma_initializer=scales)(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, x)


def schedule(peak, steps):
    return keras.optimizers.schedules.PolynomialDecay(peak, max(steps, 1), 0.0)


def train(model, images, epochs, peak, seed):
    """Trains with a learning rate that falls to zero; returns the model."""
    steps = epochs * (len(images.train[0]) // BATCH)
    decay = DECAY / regularizers.push(1.0, schedule(LEARNING_RATE, steps), steps)
    optimizer = keras.optimizers.SGD(
        schedule(peak, steps), momentum=MOMENTUM, weight_decay=decay
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    data = tf.data.Dataset.from_tensor_slices(images.train)
    data = data.shuffle(len(images.train[0]), seed=seed).batch(BATCH, True).prefetch(2)
    model.fit(data, epochs=epochs, verbose=0)
    return model


def accuracy(model, data):
    scores = np.concatenate(
        [
            np.asarray(model.predict_on_batch(part))
            for part in np.array_split(data[0], 8)
        ]
    )
    return 100 * float(np.mean(scores.argmax(-1) == data[1]))


# Comparison --------------------------------------------------------------------------


def compare(options, images):
    """Everything at the same FLOPs, three seeds."""
    cuts, scales, valleys = [], {}, []
    for seed in range(options.seeds):
        for method in METHODS:
            for push in PUSHES:
                model = regularized(method, push, images, options.epochs, seed)
                scales.setdefault((method, push), []).append(_scales(model))
                cuts += [cut(model, method, push, seed, f, images) for f in REDUCTIONS]
                valleys.append((method, push, valley(model)))
                print(method, push, seed, file=sys.stderr, flush=True)
        for reduction in REDUCTIONS:
            cuts.append(uniform(reduction, images, options.epochs, seed))
    options.console.print(_valley_table(valleys))
    chosen = {}
    for method in (*METHODS, "uniform scaling"):
        for reduction in REDUCTIONS:
            chosen[method, reduction] = best(cuts, method, reduction)
    rows = {key: finish(each, images, options.epochs) for key, each in chosen.items()}
    options.console.print(_table(chosen, rows))
    options.console.print(published.table("ResNet-56"))
    if options.plots:
        _plot(scales, Path(options.plots))
    return _claims(rows, cuts, valleys)


def regularized(method, push, images, epochs, seed):
    keras.utils.set_random_seed(seed)
    steps = epochs * (len(images.train[0]) // BATCH)
    rates = schedule(LEARNING_RATE, steps)
    strength = regularizers.strength_for_push(push, rates, steps, MOMENTUM)
    model = tfprune.regularize(network(), METHODS[method](strength))
    return train(model, images, epochs, LEARNING_RATE, seed)


def cut(model, method, push, seed, reduction, images):
    graph = tfprune.Graph(model)
    budget = tfprune.Budget(flops_reduction=reduction, max_sparsity=0.9)
    masks = tfprune.select(graph, "scale", budget)
    small = tfprune.compact(model, masks)
    folded = tfprune.compact(model, masks, fold=True)
    after = accuracy(small, images.validation)
    return Cut(method, push, seed, reduction, small, folded, after)


def uniform(reduction, images, epochs, seed):
    keras.utils.set_random_seed(seed)
    model = network()
    model = tfprune.scale_width(model, tfprune.width_for(model, reduction))
    train(model, images, epochs, LEARNING_RATE, seed)
    after = accuracy(model, images.validation)
    return Cut("uniform scaling", 0.0, seed, reduction, model, model, after)


def valley(model):
    """Returns the FLOPs reduction of the paper's own threshold."""
    graph = tfprune.Graph(model)
    masks = tfprune.select(graph, "scale", threshold="valley")
    return 1 - tfprune.cost(graph, masks).macs / tfprune.cost(graph).macs


def best(cuts, method, reduction):
    """Returns the cuts of the push with the best mean on validation images."""
    found = [x for x in cuts if x.method == method and x.flops_reduction == reduction]
    means = {
        push: np.mean([x.validation for x in found if x.push == push])
        for push in {x.push for x in found}
    }
    return [x for x in found if x.push == max(means, key=means.get)]


def finish(cuts, images, epochs):
    """Returns test accuracies right after pruning, folded, and fine-tuned, by seed."""
    before, folded, after = [], [], []
    for each in cuts:
        before.append(accuracy(each.small, images.test))
        folded.append(accuracy(each.folded, images.test))
        keras.utils.set_random_seed(each.seed)
        train(each.small, images, max(1, epochs // 4), LEARNING_RATE / 5, each.seed)
        after.append(accuracy(each.small, images.test))
    return np.array(before), np.array(folded), np.array(after)


def _scales(model):
    norms = (x for x in model.layers if isinstance(x, keras.layers.BatchNormalization))
    return np.concatenate([norm.gamma.numpy() for norm in norms])


def _is(cut, method, push, reduction):
    return (cut.method, cut.push, cut.flops_reduction) == (method, push, reduction)


def _claims(rows, cuts, valleys):
    ours, theirs = rows["Polarization", 0.6], rows["network slimming", 0.6]
    for place, how in enumerate(("", ", shifts folded")):
        gap = ours[place].mean() - theirs[place].mean()
        claim = f"Polarization over network slimming, right after -60 % FLOPs{how}"
        detail = "mean of the seeds, each with its best of six pushes"
        yield structure.Row(claim, float(gap), 0.0, "points", detail, True)
    for push in PUSHES:
        means = [
            np.mean([x.validation for x in cuts if _is(x, method, push, 0.6)])
            for method in ("Polarization", "network slimming")
        ]
        claim = f"the same at a push of {push} for both"
        detail = "{:.1f} and {:.1f} %, validation images".format(*means)
        yield structure.Row(claim, means[0] - means[1], None, "points", detail, True)
    means = [
        np.mean([f for m, p, f in valleys if m == "Polarization" and p == push])
        for push in PUSHES
    ]
    claim = "smallest rise of the valley's FLOPs reduction with the push"
    detail = ", ".join(f"{mean:.0%}" for mean in means)
    yield structure.Row(
        claim, float(np.diff(means).min() * 100), 0.0, "points", detail, True
    )


# Search ------------------------------------------------------------------------------


def search(options, images):
    """Trials of three epochs from a push of 0.8 on."""
    epochs = max(1, options.epochs * 3 // 8)
    steps = epochs * (len(images.train[0]) // BATCH)

    def build(regularizer):
        model = tfprune.regularize(network(), regularizer)
        rates = schedule(LEARNING_RATE, steps)
        optimizer = keras.optimizers.SGD(rates, momentum=MOMENTUM)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, metrics=["accuracy"])
        return model

    rates = schedule(LEARNING_RATE, steps)
    strength = regularizers.strength_for_push(0.8, rates, steps, MOMENTUM)
    grid = tfprune.search.GridSearch(build, 0.5, strength=strength, max_trials=8)
    result = grid.run(
        images.train,
        epochs,
        validation_data=images.validation,
        workers=options.workers,
        batch_size=BATCH,
    )
    if options.plots:
        result.plot(Path(options.plots) / "search.png")
    off = abs(result.best.flops_reduction - 0.5) * 100
    detail = f"{len(result.trials)} trials of {epochs} epochs"
    yield structure.Row("search: off -50 % FLOPs by", off, 5.0, "points", detail)


# Residual blocks pruned independently -------------------------------------------------


def independent(options, images):
    """ResNet-56 at -50 % FLOPs: groups against blocks on their own."""
    for name, model in structure.loader(options.models_dir)("resnet56"):
        small = {"dense": model}
        for residual in ("coupled", "independent"):
            graph = tfprune.Graph(model, residual=residual)
            budget = tfprune.Budget(flops_reduction=0.5)
            masks = tfprune.select(graph, "magnitude", budget)
            small[residual] = tfprune.compact(graph, masks)
        written = tfprune.cost(graph, masks).scattered
        for row in tfprune.benchmark(small, batch_size=64).rows[1:]:
            detail = f"{written:,} entries written an image" * (row.name == residual)
            claim = f"{name}, -50 % FLOPs, {row.name} branches: faster than dense"
            yield structure.Row(claim, row.speedup, None, "x", detail, True)


MEASUREMENTS = {f.__name__: f for f in (compare, search, independent)}


# Tables and pictures -----------------------------------------------------------------


def _table(chosen, rows):
    from rich import box
    from rich.table import Table

    result = Table(
        title="MNIST at 14x14: accuracy right after pruning and after fine-tuning, %",
        caption="mean of the seeds, lowest and highest; folded: what the shifts of "
        "pruned channels make goes into the next layers.",
        box=box.SIMPLE_HEAD,
    )
    result.add_column("method")
    for name in ("FLOPs", "push", "pruned", "", "folded", "", "fine-tuned", ""):
        result.add_column(name, justify="right")
    for (method, reduction), each in rows.items():
        cuts = chosen[method, reduction]
        result.add_row(
            method,
            f"-{reduction:.0%}",
            f"{cuts[0].push:.1f}" if cuts[0].push else "",
            *(text for values in each for text in _spread(values)),
        )
    return result


def _spread(values):
    return f"{values.mean():.2f}", f"{values.min():.2f}-{values.max():.2f}"


def _valley_table(valleys):
    from rich import box
    from rich.table import Table

    result = Table(title="FLOPs reduction of the valley rule", box=box.SIMPLE_HEAD)
    result.add_column("push", justify="right")
    for method in METHODS:
        result.add_column(method, justify="right")
    for push in PUSHES:
        found = [
            np.mean([f for m, p, f in valleys if m == method and p == push])
            for method in METHODS
        ]
        result.add_row(f"{push:.1f}", *(f"-{each:.1%}" for each in found))
    return result


def _plot(scales, directory):
    """Histograms of the scales, a row a method, a column a push."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(PUSHES), 2 * len(METHODS)), layout="constrained")
    panels = figure.subplots(len(METHODS), len(PUSHES), sharex=True, squeeze=False)
    for row, method in zip(panels, METHODS, strict=True):
        for axes, push in zip(row, PUSHES, strict=True):
            axes.hist(np.concatenate(scales[method, push]), 60, (0, 1.2), log=True)
            axes.set_title(f"{method}, push {push}", fontsize=8)
    directory.mkdir(parents=True, exist_ok=True)
    figure.savefig(directory / "scales.png")


def main(arguments=None):
    from rich.console import Console

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", default="../shared/tfds")
    parser.add_argument("--models-dir", default="../shared/models")
    parser.add_argument("--only", nargs="+", choices=sorted(MEASUREMENTS))
    parser.add_argument("--images", type=int, default=8_000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, help="trials at once, on Ray Tune")
    parser.add_argument("--plots", help="directory for pictures")
    options = parser.parse_args(arguments)
    options.console = Console()
    if not options.console.is_terminal:
        options.console.width = 120
    rows, images = [], load(options.data_dir, options.images)
    for name in options.only or MEASUREMENTS:
        rows += MEASUREMENTS[name](options, images)
    options.console.print(structure.table(rows, "tfprune, Polarization"))


if __name__ == "__main__":
    main()
