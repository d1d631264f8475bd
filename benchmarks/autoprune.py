"""AutoPrune beside gradual magnitude pruning: python benchmarks/autoprune.py

    --only lenet300   LeNet-300-100: 3 estimators, both rules, gradual magnitude at the
                      density that AutoPrune reached; MNIST, five seeds
    --only lenet5     LeNet-5; MNIST, three seeds
    --only steps      time per training step over that without masks; tfmot's beside
    --only update     one global choice of masks over 25 million weights

Runs go to a file, a line each with seed, epochs and command, as soon as they are done;
a run that is in it is not repeated. Masks and weights learn for the first half of the
epochs, from the same images, or "in turns" each from its half of them; then the open
weights are tuned. Gradual magnitude trains for as many epochs, along the cubic schedule
over the first half, to the same number of weights. All with Adam at 1e-3, which falls
to zero over the second half. Test images are looked at when a run is over.
"""

import argparse
import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))

import keras
import networks
import numpy as np
import structure
from mnist import accuracy, batches, digits
from results import Results
from timing import FREQUENCY, amortized, interleave, paired_ratio

import tfprune
from tfprune.callbacks import MaskTraining, PruneToBudget
from tfprune.layers import TrainableMask, WeightMask
from tfprune.surgery import set_masks

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
DENSE, GRADUAL = "dense", "gradual magnitude"
NETWORKS = 5


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a network is trained.

    Attributes:
        epochs: half of them with masks that change.
        density: share of the weights that the push stops at.
        strength: push of the modified rule.
    """

    epochs: int
    density: float
    strength: float

    def settings(self, rule):
        """Returns the arguments of `MaskTraining`.

        With the coarse rule gradients are smaller by the size of a weight, about 1/15:
        a smaller push and a higher rate make up for it.
        """
        smaller = {"modified": 1, "coarse": 15}[rule]
        return {
            "strength": self.strength / smaller,
            "learning_rate": 5.0 * smaller,
            "budget": tfprune.Budget(sparsity=1 - self.density),
            "hysteresis": 0.1,
        }


PLANS = {"lenet300": Plan(40, 1 / 81, 3e-4), "lenet5": Plan(20, 1 / 310, 5e-4)}
METHODS = {
    f"{estimator}, {rule}": {"estimator": estimator, "rule": rule}
    for rule in ("modified", "coarse")
    for estimator in ("softplus", "linear", "leaky_relu")
}
BEST, IN_TURNS = "softplus, modified", "softplus, modified, in turns"
METHODS[IN_TURNS] = METHODS[BEST]


# Accuracy ----------------------------------------------------------------------------


def lenet300(options):
    """LeNet-300-100: every method at one density, five seeds."""
    data = digits(options.data_dir, flat=True)
    results = Results(options.results)
    for seed in options.seeds or range(5):
        first = auto_prune("lenet300", BEST, seed, data, results)
        gradual("lenet300", seed, first["density"], data, results)
    for method in METHODS:
        for seed in options.seeds or range(5):
            auto_prune("lenet300", method, seed, data, results)
    options.console.print(_table("lenet300", results))
    ours = _runs(results, "lenet300", BEST)
    theirs = _runs(results, "lenet300", GRADUAL)
    gap = np.mean([r["tuned"] for r in ours]) - np.mean([r["tuned"] for r in theirs])
    yield structure.Row(
        "AutoPrune over gradual magnitude, LeNet-300-100, equal density and epochs",
        gap,
        0.0,
        " points",
        f"{len(ours)} seeds",
        True,
    )
    for name, limit, unit in (("tuned", 97.7, " %"), ("compression", 80.0, "x")):
        found = float(np.mean([row[name] for row in ours]))
        claim = f"AutoPrune, LeNet-300-100, {name}"
        yield structure.Row(claim, found, limit, unit, "mean of the seeds", True)


def lenet5(options):
    """LeNet-5: one setting, three seeds."""
    data = digits(options.data_dir, flat=False)
    results = Results(options.results)
    for seed in options.seeds or range(3):
        first = auto_prune("lenet5", BEST, seed, data, results)
        gradual("lenet5", seed, first["density"], data, results)
    options.console.print(_table("lenet5", results))
    ours = _runs(results, "lenet5", BEST)
    for name, limit, unit in (("compression", 310.0, "x"), ("loss", 0.0, " points")):
        found = float(np.mean([row[name] for row in ours]))
        claim = f"AutoPrune, LeNet-5, {name} (the paper's {limit:.0f}{unit})"
        better = name == "compression"
        yield structure.Row(claim, found, limit, unit, "mean of the seeds", better)


def auto_prune(net, method, seed, data, results):
    """One run of AutoPrune from scratch; returns its row."""
    images, labels = data[0]

    def first_half(base, data_of_all):
        model = tfprune.prune_wrap(base, TrainableMask, **METHODS[method])
        for_weights, for_masks = data_of_all, None
        if method == IN_TURNS:
            order = np.random.default_rng(seed).permutation(len(images))
            for_weights, for_masks = (
                batches(images[half], labels[half], seed + place)
                for place, half in enumerate(np.array_split(order, 2))
            )
        settings = PLANS[net].settings(METHODS[method]["rule"])
        callback = MaskTraining(for_masks, **settings)
        return model, for_weights, [callback]

    return run(net, method, seed, data, results, first_half)


def gradual(net, seed, density, data, results):
    """One run of cubic gradual magnitude pruning to a density; returns its row."""

    def first_half(base, data_of_all):
        budget = tfprune.Budget(sparsity=1 - density)
        schedule = tfprune.schedules.Polynomial(end=1.0, frequency=0.05)
        callback = PruneToBudget("magnitude", budget, schedule)
        return tfprune.prune_wrap(base, WeightMask), data_of_all, [callback]

    return run(net, GRADUAL, seed, data, results, first_half)


def dense(net, seed, data, results):
    """One run of the network as it is, for as many epochs; returns its row."""
    return run(net, DENSE, seed, data, results, lambda base, images: (base, images, []))


def run(net, method, seed, data, results, first_half):
    """Trains a network, unless that was done before; returns its row.

    Args:
        first_half: function `(network, data) -> (model, data, callbacks)` for the first
            half of the epochs.
    """
    found = results.find(net=net, method=method, seed=seed)
    if found:
        return found
    keras.utils.set_random_seed(seed)
    start = time.perf_counter()
    epochs, data_of_all = PLANS[net].epochs, batches(*data[0], seed)
    model, images, callbacks = first_half(getattr(networks, net)(keras), data_of_all)
    fit(model, images, epochs // 2, *callbacks)
    before = accuracy(model, data[1])
    fit(model, data_of_all, epochs // 2, falling=True)
    tuned, seconds = accuracy(model, data[1]), time.perf_counter() - start
    whole = tuned if method == DENSE else dense(net, seed, data, results)["tuned"]
    masks = tfprune.read_masks(tfprune.Graph(tfprune.strip(model), unit="weight"))
    row = {
        "net": net,
        "method": method,
        "seed": seed,
        "epochs": epochs,
        "density": masks.density(),
        "compression": 1 / masks.density(),
        "kept": {name: int(mask.sum()) for name, mask in masks.items()},
        "before": before,
        "tuned": tuned,
        "loss": whole - tuned,
        "seconds": round(seconds, 1),
        "command": shlex.join(["python", *sys.argv]),
    }
    results.add(row)
    return row


def fit(model, data, epochs, *callbacks, falling=False):
    """Trains a model; `falling`: at a learning rate that falls to zero."""
    rate = 1e-3
    if falling:
        steps = epochs * int(data.cardinality())
        rate = keras.optimizers.schedules.PolynomialDecay(rate, steps, 0.0)
    model.compile(keras.optimizers.Adam(rate), LOSS)
    model.fit(data, epochs=epochs, shuffle=False, verbose=0, callbacks=[*callbacks])


def _runs(results, net, method):
    return [r for r in results.rows if (r["net"], r["method"]) == (net, method)]


def _table(net, results):
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{net}, MNIST: accuracy when the masks stand still, and after tuning, %",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("method")
    for name in ("seeds", "epochs", "compression", "before", "tuned", "lowest-highest"):
        table.add_column(name, justify="right")
    for method in (DENSE, GRADUAL, *METHODS):
        runs = _runs(results, net, method)
        if runs:
            tuned = np.array([run["tuned"] for run in runs])
            table.add_row(
                method,
                str(len(runs)),
                str(runs[0]["epochs"]),
                f"{np.mean([run['compression'] for run in runs]):.1f}x",
                f"{np.mean([run['before'] for run in runs]):.2f}",
                f"{tuned.mean():.2f}",
                f"{tuned.min():.2f}-{tuned.max():.2f}",
            )
    return table


# Time --------------------------------------------------------------------------------


def steps(options):
    """Training steps with masks over steps without, ours and tfmot's."""
    for net in ("resnet20", "lenet5"):
        ours = _median(_our_steps, net, options.rounds)
        theirs = _median(_their_steps, net, options.rounds)
        limits = {"WeightMask": 1.05, "gradual": 1.05, "TrainableMask": 1.10}
        for name, limit in limits.items():
            peer = theirs.get("held" if name == "WeightMask" else "gradual")
            is_peer = peer is not None and name != "TrainableMask"
            detail = f"median of {NETWORKS} networks, batch 128"
            detail += f"; tfmot in tf_keras {peer:.3f}x" if is_peer else ""
            claim = f"step with {name} / without, {net}"
            yield structure.Row(claim, ours[name], limit, "x", detail)
            if is_peer:
                claim = f"the same, beyond tfmot's ratio, {net}"
                yield structure.Row(claim, ours[name] - peer, 0.02, "")


def _median(measure, net, rounds):
    """Medians over networks: two of the same code differ by as much as 0.04."""
    found = [measure(net, rounds) for _ in range(NETWORKS)]
    return {name: float(np.median([each[name] for each in found])) for name in found[0]}


def _our_steps(net, rounds):
    make = getattr(networks, net)
    random = np.random.default_rng(0)
    x = random.normal(size=(128, *make(keras).input_shape[1:])).astype("float32")
    y = random.integers(0, 10, 128)

    def stepper(model, before=None):
        model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), LOSS)

        def step():
            if before is not None:
                before()
            model.train_on_batch(x, y)

        return model, step

    def masked(updates):
        model = tfprune.prune_wrap(make(keras), WeightMask)
        graph = tfprune.Graph(model, unit="weight")
        budget = tfprune.Budget(sparsity=0.8)

        def update():
            set_masks(graph, tfprune.select(graph, "magnitude", budget))

        update()
        return stepper(model, update if updates else None)[1]

    trained, train = stepper(tfprune.prune_wrap(make(keras), TrainableMask))
    callback = MaskTraining()
    callback.set_params({"steps": 10**6, "epochs": 1})
    callback.set_model(trained)
    callback.on_train_begin()
    callback.on_epoch_begin(0)

    def learn():
        callback.on_train_batch_begin(0)
        train()

    functions = [stepper(make(keras))[1], masked(False), masked(True), learn]
    interleave(functions, 3)
    seconds = interleave(functions, rounds)
    return {
        "WeightMask": paired_ratio(seconds[:, :2]),
        "gradual": amortized(seconds[:, :3], FREQUENCY),
        "TrainableMask": paired_ratio(seconds[:, [0, 3]]),
    }


def _their_steps(net, rounds):
    script = Path(__file__).with_name("tfmot_steps.py")
    command = [sys.executable, script, net, str(rounds)]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        print(f"tfmot left out: {found.stderr.splitlines()[-1]}", file=sys.stderr)
        return {}
    return json.loads(found.stdout.splitlines()[-1])


def update(options):
    """One global choice of masks, from weights to masks to weights."""
    model = tfprune.prune_wrap(keras.applications.ResNet50(weights=None), WeightMask)
    graph = tfprune.Graph(model, unit="weight")
    sparsities = iter(np.linspace(0.5, 0.9, options.rounds + 3))

    def choose():
        budget = tfprune.Budget(sparsity=float(next(sparsities)))
        set_masks(graph, tfprune.select(graph, "magnitude", budget))

    interleave([choose], 3)
    seconds = interleave([choose], options.rounds)
    detail = f"ResNet-50, {graph.num_units:,} weights, sparsity 0.5 to 0.9"
    yield structure.Row(
        "one global mask update", float(np.median(seconds)), 0.15, " s", detail
    )


MEASUREMENTS = {each.__name__: each for each in (lenet300, lenet5, steps, update)}


def main(arguments=None):
    from rich.console import Console

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", default="../shared/tfds")
    parser.add_argument("--only", nargs="+", choices=sorted(MEASUREMENTS))
    parser.add_argument("--seeds", type=int, nargs="+", help="0 1 2 ... by default")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results", default="autoprune.jsonl")
    options = parser.parse_args(arguments)
    options.console = Console()
    if not options.console.is_terminal:
        options.console.width = 120
    rows = [
        row
        for name in options.only or MEASUREMENTS
        for row in MEASUREMENTS[name](options)
    ]
    options.console.print(structure.table(rows, "tfprune, masks on weights"))


if __name__ == "__main__":
    main()
