"""Tick-Tock beside one-shot pruning, on CIFAR-10: python benchmarks/gate_decorator.py

    --only resnet20    -50 % FLOPs within six epochs' worth of images, and uniform L2
                       within four; fine-tuned from labels, and from the dense network
    --only criteria    the same budget and training by several importances, three seeds
    --only resnet56    -60 and -70 %, Tick-Tock and one-shot (the authors' own network)
    --only mobilenet   MobileNetV2 at 32 px goes through
    --only steps       what gates, scores and Ticks cost

An epoch is 50,000 training images, whatever shows them: Ticks, Tocks, scoring,
fine-tuning. The sizes are those that two cores can do; --full takes the paper's.
Settings are chosen with --tune, which holds out 5,000 training images and measures on
them; without it all are trained on, and the test set is evaluated, once per row.
Finished runs go to the file of --results, and are not run again.
"""

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))

import cifar
import keras
import numpy as np
import published
import structure
import timing
from results import Results

import tfprune
from tfprune.callbacks import TickTock

EPOCH = 50_000


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a network is pruned and trained; all sizes in images."""

    flops_reduction: float
    images: int
    tick_images: int = 2_500
    tock_images: int = 6_250
    ticks: int = 4
    rounds: int = 4
    peak: float = 0.03
    batch_size: int = 128
    max_sparsity: float | None = 0.9
    share: float | None = None
    reduction: str = "mean"
    distilled: bool = False

    @property
    def budget(self):
        return tfprune.Budget(
            flops_reduction=self.flops_reduction, max_sparsity=self.max_sparsity
        )


@dataclasses.dataclass
class Outcome:
    """What came out: a row of a table."""

    method: str
    flops_reduction: float
    before: float
    after: float
    epochs: float
    seconds: float
    curve: list


def tick_tock(model, images, plan, seed):
    """Prunes with Tick-Tock; returns the small model and the images it took."""
    gated = cifar.compiled(tfprune.prune_wrap(model), 1e-3)
    ticks = images.batches(plan.batch_size, seed + 1, plan.tick_images)
    callback = TickTock(
        ticks,
        plan.budget,
        share=plan.share,
        cycle=(plan.ticks, 1),
        gate_l1=1e-3,
        reduction=plan.reduction,
    )
    met = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: setattr(
            gated,
            "stop_training",
            logs["flops_reduction"] >= plan.flops_reduction - 1e-9,
        )
    )
    history = gated.fit(
        images.batches(plan.batch_size, seed).repeat(),
        epochs=2 * plan.rounds,
        steps_per_epoch=max(1, plan.tock_images // plan.batch_size),
        callbacks=[callback, met],
        verbose=0,
    ).history
    tocks = len(history["loss"]) * plan.tock_images
    used = tocks + history["ticks"][-1] * min(plan.tick_images, len(images.train[0]))
    return tfprune.compact(gated), used


def one_shot(importance, scope="global"):
    """Returns a method that prunes at once, by an importance."""

    def prune(model, images, plan, seed):
        scorer, used = importance(seed), 0
        if hasattr(scorer, "update_state"):
            cifar.compiled(model, 1e-3)
            for x, y in images.batches(plan.batch_size, seed, plan.tick_images):
                scorer.update_state(model, x, y)
            used = plan.tick_images
        budget = (
            plan.budget if scope == "global" else tfprune.Budget(plan.flops_reduction)
        )
        masks = tfprune.select(tfprune.Graph(model), scorer, budget, scope=scope)
        return tfprune.compact(model, masks), used

    return prune


L2 = one_shot(lambda seed: tfprune.importances.Magnitude(), "uniform")
METHODS = {
    "Tick-Tock": tick_tock,
    "one-shot, gate Taylor": one_shot(lambda seed: tfprune.importances.Taylor()),
    "one-shot, BN scale": one_shot(lambda seed: tfprune.importances.Scale()),
    "one-shot, Molchanov": one_shot(lambda seed: tfprune.importances.Molchanov()),
    "one-shot, random": one_shot(tfprune.importances.Random),
}


def run(method, model, images, plan, options, seed=0, prune=None):
    """Prunes and fine-tunes a network with what is left of the plan's images."""
    results = Results(options.results)
    key = {
        "network": model.name,
        "method": method,
        "plan": dataclasses.asdict(plan),
        "seed": seed,
        "tune": options.tune,
    }
    found = results.find(**key)
    if found is None:
        outcome = measured(method, model, images, plan, options.tune, seed, prune)
        found = key | {"outcome": dataclasses.asdict(outcome)}
        results.add(found)
    return Outcome(**found["outcome"])


def measured(method, model, images, plan, tune, seed, prune):
    keras.utils.set_random_seed(seed)
    judge = images.held_out if tune else images.test
    start = time.perf_counter()
    small, used = (prune or METHODS[method])(model, images, plan, seed)
    before = cifar.accuracy(cifar.compiled(small, 0.0), images.held_out)
    steps = max(4, int(plan.images - used) // plan.batch_size)
    curve = [(used / EPOCH, before)]

    def watch(done):
        now = used + done * steps * plan.batch_size
        curve.append((now / EPOCH, cifar.accuracy(small, images.held_out)))

    teacher = model if plan.distilled else None
    cifar.fine_tune(
        small, images, steps, plan.peak, plan.batch_size, seed, watch, teacher
    )
    macs = tfprune.cost(small).macs / tfprune.cost(model).macs
    return Outcome(
        f"{method}, distilled" if plan.distilled else method,
        1 - macs,
        before,
        cifar.accuracy(small, judge),
        (used + steps * plan.batch_size) / EPOCH,
        time.perf_counter() - start,
        curve,
    )


def cost_of(accuracy, outcome):
    """Returns the epochs after which held-out accuracy is reached, interpolated."""
    for (e0, a0), (e1, a1) in zip(outcome.curve, outcome.curve[1:], strict=False):
        if a1 >= accuracy > a0:
            return e0 + (e1 - e0) * (accuracy - a0) / (a1 - a0)
    return outcome.curve[0][0] if outcome.curve[0][1] >= accuracy else float("inf")


# What is measured --------------------------------------------------------------------


def resnet20(options, images, console):
    """At most six epochs in all, beside uniform L2 pruning and four of fine-tuning."""
    model = cifar.network(options.models_dir, "resnet20")
    plan = Plan(0.5, options.images or 6 * EPOCH)
    shorter = dataclasses.replace(plan, images=plan.images * 4 // 6)
    ours, uniform = ("Tick-Tock", plan, None), ("uniform L2, one-shot", shorter, L2)
    rows = []
    for (method, each, prune), distilled in (
        (ours, True),
        (uniform, False),
        (uniform, True),
        (ours, False),
    ):
        # Held-out accuracy: 91.2 % at a peak of 0.06, 92.6 at 0.03, 93.4 at 0.015.
        peak = 0.015 if distilled else each.peak
        each = dataclasses.replace(each, distilled=distilled, peak=peak)
        rows.append(run(method, model, images, each, options, prune=prune))
    console.print(table("ResNet-20, -50 % FLOPs", rows))
    claim = "accuracy of ResNet-20 at -50 % FLOPs within 6 epochs, distilled"
    yield structure.Row(claim, rows[0].after, 90.0, "%", "91.73 % dense", True)
    seconds = _dense_epoch(model, images)
    claim = "its time, all in all, in epochs of the dense network"
    detail = f"{rows[0].seconds:.0f} s and {seconds:.0f} s"
    yield structure.Row(claim, rows[0].seconds / seconds, 6.0, "epochs", detail)


def _dense_epoch(model, images, steps=100, batch_size=128):
    """Returns the seconds of an epoch of the dense network, from a part of one."""
    twin = cifar.compiled(keras.models.clone_model(model), 1e-3)
    ends = []
    clock = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter())
    )
    # The first steps are those of tracing and of filling the buffers.
    batches = images.batches(batch_size, 0).repeat()
    twin.fit(batches, steps_per_epoch=20 + steps, callbacks=[clock], verbose=0)
    return (ends[-1] - ends[19]) / (steps * batch_size) * EPOCH


def criteria(options, images, console):
    """Several importances, same budget and same training."""
    model = cifar.network(options.models_dir, "resnet20")
    plan = Plan(
        0.5, options.images or EPOCH, tick_images=1_500, tock_images=4_000, rounds=3
    )
    rows = {
        method: [run(method, model, images, plan, options, seed) for seed in range(3)]
        for method in METHODS
    }
    level = min(np.mean([r.curve[-1][1] for r in each]) for each in rows.values())
    console.print(comparison(rows, level, plan))
    return ()


def resnet56(options, images, console):
    """The network of the paper's authors."""
    model = cifar.network(options.models_dir, "resnet56b")
    rows = []
    for flops_reduction in (0.6, 0.7):
        plan = Plan(flops_reduction, options.images or 2 * EPOCH, tick_images=3_000)
        if options.full:
            # The authors' settings, for a GPU: 10 Ticks of all images at a share of
            # 0.002, 10 epochs of Tock, 50 epochs of fine-tuning.
            full = {"tick_images": EPOCH, "tock_images": 10 * EPOCH, "ticks": 10}
            plan = dataclasses.replace(
                plan,
                images=363 * EPOCH,
                rounds=16,
                share=0.002,
                peak=1e-2,
                reduction="sum",
                **full,
            )
        rows += [
            run(method, model, images, plan, options)
            for method in ("Tick-Tock", "one-shot, gate Taylor")
        ]
    console.print(table("ResNet-56, 93.09 % dense", rows))
    console.print(published.table("ResNet-56"))
    return ()


def mobilenet(options, images, console):
    """A network of depthwise convolutions goes through."""
    model = keras.applications.MobileNetV2((32, 32, 3), weights=None, classes=10)
    few = cifar.Images(*(tuple(a[:2_000] for a in part) for part in _parts(images)))
    plan = Plan(0.5, 10_000, tick_images=1_000, tock_images=2_000, rounds=2, ticks=6)
    row = run("Tick-Tock", model, few, plan, options)
    console.print(table("MobileNetV2 at 32 px, random weights, 2,000 images", [row]))
    claim = "FLOPs reduction of MobileNetV2, Tick-Tock"
    yield structure.Row(claim, row.flops_reduction, 0.5, "", "", True)


def _parts(images):
    return images.train, images.held_out, images.test


def steps(options, images, console):
    """Steps of training: plain, with scores, in a Tick and in a Tock."""
    from tfprune.callbacks.gate_scores import GateScores
    from tfprune.callbacks.ticks import Ticks
    from tfprune.graph.gates import gated_members

    model = cifar.network(options.models_dir, "resnet20")
    batch = next(iter(images.batches(128, 0)))
    plain = cifar.compiled(keras.models.clone_model(model), 1e-3)
    scored = cifar.compiled(tfprune.prune_wrap(model), 1e-3)
    scored.optimizer.build(scored.trainable_variables)
    scores = GateScores(scored, gated_members(tfprune.Graph(scored)))
    with scores.collecting():
        scored.train_on_batch(*batch)
    gated = cifar.compiled(tfprune.prune_wrap(model), 1e-3)
    gated.optimizer.build(gated.trainable_variables)
    ticks = Ticks(gated, tfprune.Graph(gated), None)
    ticks.begin()
    ticks.set_l1(1e-3)
    gated.train_on_batch(*batch)
    with ticks.in_tick():
        gated.train_on_batch(*batch)

    def tick():
        # As `run` does, without its own fit.
        with ticks.in_tick():
            gated.train_on_batch(*batch)

    frozen = keras.models.clone_model(model)
    for layer in frozen.layers:
        layer.trainable = not isinstance(layer, keras.layers.Conv2D)
    cifar.compiled(frozen, 1e-3)
    functions = [
        lambda: plain.train_on_batch(*batch),
        lambda: scored.train_on_batch(*batch),
        lambda: gated.train_on_batch(*batch),
        tick,
        lambda: frozen.train_on_batch(*batch),
    ]
    timing.interleave(functions, 2)
    seconds = timing.interleave(functions, 20, time.process_time)
    plain_ms, scored_ms, tock_ms, tick_ms, _ = 1e3 * np.median(seconds, 0)
    detail = f"batch 128, CPU time, {scored_ms:.0f} and {plain_ms:.0f} ms"
    ratio = timing.paired_ratio(seconds[:, [0, 1]])
    yield structure.Row("step with scores / plain step", ratio, 1.10, "x", detail)
    detail = f"batch 128, CPU time, {tick_ms:.0f} and {tock_ms:.0f} ms"
    ratio = timing.paired_ratio(seconds[:, [2, 3]])
    yield structure.Row("step of a Tick / of a Tock", ratio, 0.70, "x", detail)
    ratio = timing.paired_ratio(seconds[:, [0, 4]])
    claim = "what Keras needs with its convolutions frozen / plain step"
    yield structure.Row(claim, ratio, None, "x", "a Tick cannot do with less")


MEASUREMENTS = {f.__name__: f for f in (resnet20, criteria, resnet56, mobilenet, steps)}


# Tables ------------------------------------------------------------------------------


def table(title, rows):
    from rich import box
    from rich.table import Table

    caption = "before fine-tuning: on 5,000 images of the training set"
    result = Table(title=title, box=box.SIMPLE_HEAD, caption=caption)
    names = ("method", "FLOPs", "before fine-tuning %", "accuracy %", "epochs", "s")
    for name in names:
        result.add_column(name, justify="left" if name == "method" else "right")
    for row in rows:
        result.add_row(
            row.method,
            f"-{row.flops_reduction:.1%}",
            f"{row.before:.2f}",
            f"{row.after:.2f}",
            f"{row.epochs:.2f}",
            f"{row.seconds:.0f}",
        )
    return result


def comparison(rows, level, plan):
    from rich import box
    from rich.table import Table

    result = Table(
        title=f"ResNet-20, -50 % FLOPs, {plan.images / EPOCH:.2g} epochs, three seeds",
        caption=f"cost: epochs to {level:.2f} % of the held-out images, the mean that "
        "the weakest method ends at.",
        box=box.SIMPLE_HEAD,
    )
    result.add_column("method")
    for name in ("FLOPs", "before %", "accuracy %", "lowest", "highest", "cost", "s"):
        result.add_column(name, justify="right")
    for method, outcomes in rows.items():
        after = [each.after for each in outcomes]
        costs = [cost_of(level, each) for each in outcomes]
        result.add_row(
            method,
            f"-{np.mean([each.flops_reduction for each in outcomes]):.1%}",
            f"{np.mean([each.before for each in outcomes]):.2f}",
            f"{np.mean(after):.2f}",
            f"{min(after):.2f}",
            f"{max(after):.2f}",
            f"{np.median(costs):.2f}",
            f"{np.mean([each.seconds for each in outcomes]):.0f}",
        )
    return result


def main(arguments=None):
    from rich.console import Console

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models-dir", default="../shared/models")
    parser.add_argument("--data-dir", default="../shared/tfds")
    parser.add_argument("--only", nargs="+", choices=sorted(MEASUREMENTS))
    parser.add_argument("--images", type=int, help="images in all, for every run")
    parser.add_argument(
        "--tune", action="store_true", help="measure on held-out images"
    )
    parser.add_argument("--full", action="store_true", help="the paper's sizes")
    parser.add_argument("--results", default="gate_decorator.jsonl")
    options = parser.parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console.width = 120
    rows = []
    for name in options.only or MEASUREMENTS:
        # The costs of `criteria` are read off curves on held-out images.
        images = cifar.load(options.data_dir, options.tune or name == "criteria")
        rows += MEASUREMENTS[name](options, images, console)
    if rows:
        console.print(structure.table(rows, "tfprune, Gate Decorator"))


if __name__ == "__main__":
    main()
