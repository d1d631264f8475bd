"""One trial of a search: train, prune by a threshold, measure."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from tfprune.costs import cost
from tfprune.evaluating import as_fit_takes_it, evaluate, score
from tfprune.graph import Graph
from tfprune.importances import Scale
from tfprune.regularizers import Polarization
from tfprune.search.trials import Trial
from tfprune.selection import select
from tfprune.surgery import apply_masks


@dataclasses.dataclass(frozen=True)
class Job:
    """What all trials of a search have in common; see `GridSearch` and its `run`."""

    build: Callable
    threshold: object
    seed: int
    train: object
    validation_data: object
    epochs: int
    fit_arguments: dict


def run_trial(job: Job, strength: float, t: float, callbacks=()) -> Trial:
    """Trains a model with one pair of hyper-parameters and returns how it pruned.

    Args:
        job: the `Job`.
        strength: float.
        t: float.
        callbacks: more callbacks for `fit`.
    """
    start = time.perf_counter()
    keras.utils.set_random_seed(job.seed)
    model = job.build(Polarization(t, strength))
    if not isinstance(model, keras.Model) or not model.compiled:
        raise ValueError(
            "`build` must return a compiled model: "
            "`model = tfprune.regularize(model, regularizer); model.compile(...)`. "
            f"Received: {model!r}"
        )
    x, arguments = as_fit_takes_it(job.train)
    arguments = {"verbose": 0, **arguments, **job.fit_arguments, "epochs": job.epochs}
    # Those of the search first: they bring back a state that the others should see.
    callbacks = [*callbacks, *arguments.pop("callbacks", ())]
    model.fit(x, callbacks=callbacks, **arguments)
    weights = model.get_weights()
    if not all(np.isfinite(np.sum(each)) for each in weights if each.dtype.kind == "f"):
        # Diverged: one such trial is no end of a search.
        nothing = float("-inf")
        return Trial(strength, t, 0.0, nothing, time.perf_counter() - start)
    graph = Graph(model)
    masks = select(graph, Scale(), threshold=job.threshold)
    reduction = 1 - cost(graph, masks).macs / cost(graph).macs
    pruned, data = apply_masks(graph, masks), job.validation_data or job.train
    _, accuracy = score(pruned, evaluate(pruned, model, data))
    return Trial(strength, t, reduction, accuracy, time.perf_counter() - start)


def trial_directory(directory: Path, strength: float, t: float) -> Path:
    return directory / f"trial_strength_{strength:.6g}_t_{t:.6g}"
