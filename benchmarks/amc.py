"""AMC beside one fraction for all groups, and one ranking: python benchmarks/amc.py

Each finds masks for half of the FLOPs of a trained ResNet-20, by the same importance
and without training. AMC scores on training images, so what counts is the test set,
looked at once.
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))

import cifar
import structure

import tfprune


def measure(options):
    images = cifar.load(options.data_dir)
    model = cifar.compiled(cifar.network(options.models_dir, "resnet20"), 0.1)
    x, y = images.held_out
    scored_on = x[: options.images].astype("float32"), y[: options.images]
    budget = tfprune.Budget(flops_reduction=0.5, max_sparsity=0.8)
    graph = tfprune.Graph(model)
    start = time.perf_counter()
    found = tfprune.search.AMC(model, budget, seed=options.seed).run(
        scored_on, options.episodes, options.random_episodes
    )
    seconds = time.perf_counter() - start
    masks = {
        "AMC": found.masks,
        "one ranking": tfprune.select(graph, "magnitude", budget),
        "one fraction": tfprune.select(graph, "magnitude", budget, scope="uniform"),
    }
    accuracy = {}
    for name, own in masks.items():
        small = cifar.compiled(tfprune.compact(model, own), 0.1)
        accuracy[name] = cifar.accuracy(small, images.test)
        macs = 1 - tfprune.cost(model, own).macs / tfprune.cost(model).macs
        detail = f"{macs:.1%} fewer FLOPs, before any training"
        if name == "AMC":
            detail += f"; {len(found.scores)} episodes in {seconds:.0f} s"
        yield structure.Row(name, accuracy[name], None, " %", detail, True)
    for name in ("one ranking", "one fraction"):
        gap = accuracy["AMC"] - accuracy[name]
        yield structure.Row(f"AMC over {name}", gap, 0.0, " points", "", True)
    third = len(found.scores) - options.random_episodes
    early = found.scores[: options.random_episodes]
    late = found.scores[-max(1, third // 3) :]
    learned = 100 * (sum(late) / len(late) - sum(early) / len(early))
    detail = "mean score of the last episodes over that of the random ones"
    yield structure.Row("what the agent learned", learned, 0.0, " points", detail, True)


def main(arguments=None):
    from rich.console import Console

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", default="../shared/tfds")
    parser.add_argument("--models-dir", default="../shared/models")
    parser.add_argument("--images", type=int, default=1_000)
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--random-episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    rows = list(measure(parser.parse_args(arguments)))
    console = Console()
    if not console.is_terminal:
        console.width = 130
    console.print(structure.table(rows, "tfprune, AMC"))


if __name__ == "__main__":
    main()
