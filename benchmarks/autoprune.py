"""AutoPrune beside gradual magnitude pruning: python benchmarks/autoprune.py

    --only lenet300   LeNet-300-100 on MNIST: 3 estimators, both rules, gradual magnitude
                      at the density that AutoPrune reached; five seeds
    --only lenet5     LeNet-5 on MNIST, three seeds
    --only steps      time per training step over that without masks, tfmot's beside
    --only update     one global choice of masks over 25 million weights

Runs go to a file, a line each with seed, epochs and command, as soon as they are done; a
run that is in it is not repeated. Masks learn on one half of the training images while
weights learn on the other; then the open weights are tuned on all. Gradual magnitude
trains on all images for as many epochs, along the cubic schedule over the first half, to
the same number of weights. Test images are looked at when a run is over.
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
import loading
import networks
import numpy as np
import structure
import tensorflow as tf
from timing import FREQUENCY, amortized, interleave, paired_ratio

import tfprune
from tfprune.callbacks import MaskTraining, PruneToBudget
from tfprune.layers import TrainableMask, WeightMask
from tfprune.surgery import set_masks

BATCH = 256
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
GRADUAL = "gradual magnitude"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a network is trained.

    Attributes:
        epochs: of masks and weights in turns, each on its half of the images.
        tuning: epochs of the open weights on all images.
        density: share of the weights that the push stops at.
        strengths: push by rule; the coarse rule's gradients are smaller by the size of
            the weights.
        settings: other arguments of `MaskTraining`.
    """

    epochs: int
    tuning: int
    density: float
    strengths: dict
    settings: dict


PLANS = {
    "lenet300": Plan(
        40, 12, 1 / 81, {"modified": 4e-4, "coarse": 2.5e-5}, {"hysteresis": 0.1}
    ),
    "lenet5": Plan(30, 10, 1 / 310, {"modified": 4e-4}, {"hysteresis": 0.1}),
}
METHODS = {
    f"{estimator}, {rule}": {"estimator": estimator, "rule": rule}
    for rule in ("modified", "coarse")
    for estimator in ("softplus", "linear", "leaky_relu")
}


class Results:
    """Finished runs, a line of JSON each.

    Args:
        path: the file.
    """

    def __init__(self, path):
        self._path = Path(path)
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        self.rows = [json.loads(line) for line in lines]

    def find(self, **keys):
        """Returns the run with these entries, None if there is none."""
        rows = (r for r in self.rows if all(r[k] == v for k, v in keys.items()))
        return next(rows, None)

    def add(self, row):
        self.rows.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), file=sys.stderr, flush=True)


# Accuracy ----------------------------------------------------------------------------


def lenet300(options):
    """LeNet-300-100: every method at one density, five seeds."""
    data = digits(options.data_dir, flat=True)
    results = Results(options.results)
    for seed in range(options.seeds or 5):
        first = auto_prune("lenet300", "softplus, modified", seed, data, results)
        gradual("lenet300", seed, first["density"], data, results)
    for method in METHODS:
        for seed in range(options.seeds or 5):
            auto_prune("lenet300", method, seed, data, results)
    options.console.print(_table("lenet300", results))
    ours = _runs(results, "lenet300", "softplus, modified")
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
    for seed in range(options.seeds or 3):
        first = auto_prune("lenet5", "softplus, modified", seed, data, results)
        gradual("lenet5", seed, first["density"], data, results)
    options.console.print(_table("lenet5", results))
    ours = _runs(results, "lenet5", "softplus, modified")
    for name, limit, unit in (("compression", 310.0, "x"), ("loss", 0.0, " points")):
        found = float(np.mean([row[name] for row in ours]))
        claim = f"AutoPrune, LeNet-5, {name} (the paper's {limit:.0f}{unit})"
        better = name == "compression"
        yield structure.Row(claim, found, limit, unit, "mean of the seeds", better)


def digits(data_dir, flat):
    """Returns `(train, test)` of MNIST, each images and labels."""

    def prepared(images, labels):
        images = (images / np.float32(255) - 0.1307) / 0.3081
        shape = (-1, 784) if flat else (-1, 28, 28, 1)
        return images.reshape(shape).astype("float32"), labels

    return tuple(prepared(*part) for part in loading.arrays("mnist", data_dir))


def batches(images, labels, seed):
    data = tf.data.Dataset.from_tensor_slices((images, labels))
    data = data.shuffle(len(images), seed=seed).batch(BATCH, drop_remainder=True)
    return data.prefetch(2)


def auto_prune(net, method, seed, data, results):
    """One run of AutoPrune from scratch; returns its row."""
    found = results.find(net=net, method=method, seed=seed)
    if found:
        return found
    plan, (train, test) = PLANS[net], data
    keras.utils.set_random_seed(seed)
    start = time.perf_counter()
    base = getattr(networks, net)(keras)
    dense = _dense(net, seed, data, results)
    model = tfprune.prune_wrap(base, TrainableMask, **METHODS[method])
    order = np.random.default_rng(seed).permutation(len(train[0]))
    for_weights, for_masks = np.array_split(order, 2)
    callback = MaskTraining(
        batches(train[0][for_masks], train[1][for_masks], seed + 1),
        strength=plan.strengths[METHODS[method]["rule"]],
        budget=tfprune.Budget(sparsity=1 - plan.density),
        **plan.settings,
    )
    _compile(model)
    halves = batches(train[0][for_weights], train[1][for_weights], seed)
    model.fit(
        halves, epochs=plan.epochs, shuffle=False, verbose=0, callbacks=[callback]
    )
    before = accuracy(model, test)
    _compile(model)
    all_images = batches(*train, seed)
    model.fit(all_images, epochs=plan.tuning, shuffle=False, verbose=0)
    epochs = plan.epochs + plan.tuning
    row = _row(net, method, seed, epochs, model, before, test, dense, start)
    results.add(row)
    return row


def gradual(net, seed, density, data, results):
    """One run of cubic gradual magnitude pruning to a density; returns its row."""
    found = results.find(net=net, method=GRADUAL, seed=seed)
    if found:
        return found
    plan, (train, test) = PLANS[net], data
    keras.utils.set_random_seed(seed)
    start = time.perf_counter()
    model = tfprune.prune_wrap(getattr(networks, net)(keras), WeightMask)
    _compile(model)
    epochs = plan.epochs + plan.tuning
    callback = PruneToBudget("magnitude", tfprune.Budget(sparsity=1 - density))
    data_of_all = batches(*train, seed)
    model.fit(
        data_of_all, epochs=epochs, shuffle=False, verbose=0, callbacks=[callback]
    )
    dense = _dense(net, seed, data, results)
    after = accuracy(model, test)
    row = _row(net, GRADUAL, seed, epochs, model, after, test, dense, start)
    results.add(row)
    return row


def _dense(net, seed, data, results):
    """Returns the accuracy of the network as it is, trained for as many epochs."""
    found = results.find(net=net, method="dense", seed=seed)
    if found:
        return found["tuned"]
    plan, (train, test) = PLANS[net], data
    keras.utils.set_random_seed(seed)
    start = time.perf_counter()
    model = getattr(networks, net)(keras)
    _compile(model)
    epochs = plan.tuning
    model.fit(batches(*train, seed), epochs=epochs, shuffle=False, verbose=0)
    after = accuracy(model, test)
    row = _row(net, "dense", seed, epochs, model, after, test, after, start)
    results.add(row)
    return after


def _compile(model):
    model.compile(keras.optimizers.Adam(1e-3), LOSS)


def accuracy(model, data):
    parts = np.array_split(data[0], 10)
    scores = np.concatenate([np.asarray(model.predict_on_batch(x)) for x in parts])
    return 100 * float(np.mean(scores.argmax(-1) == data[1]))


def _row(net, method, seed, epochs, model, before, test, dense, start):
    graph = tfprune.Graph(tfprune.strip(model), unit="weight")
    masks = tfprune.read_masks(graph)
    density = masks.density()
    tuned = accuracy(model, test)
    return {
        "net": net,
        "method": method,
        "seed": seed,
        "epochs": epochs,
        "density": density,
        "compression": 1 / density,
        "kept": {name: int(mask.sum()) for name, mask in masks.items()},
        "before": before,
        "tuned": tuned,
        "loss": dense - tuned,
        "seconds": round(time.perf_counter() - start, 1),
        "command": shlex.join(["python", *sys.argv]),
    }


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
    for method in ("dense", GRADUAL, *METHODS):
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
        ours = _our_steps(net, options.rounds)
        theirs = _their_steps(net, options.rounds)
        limits = {"WeightMask": 1.05, "gradual": 1.05, "TrainableMask": 1.10}
        for name, limit in limits.items():
            peer = theirs.get("held" if name == "WeightMask" else "gradual")
            is_peer = peer is not None and name != "TrainableMask"
            detail = f"batch 128; tfmot in tf_keras {peer:.3f}x" if is_peer else ""
            claim = f"step with {name} / without, {net}"
            yield structure.Row(claim, ours[name], limit, "x", detail)
            if is_peer:
                claim = f"the same, beyond tfmot's ratio, {net}"
                yield structure.Row(claim, ours[name] - peer, 0.02, "")


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
    parser.add_argument("--seeds", type=int, help="as above by default")
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
