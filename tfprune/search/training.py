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
from tfprune.regularizers.shared import SharedTerm
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
    model = _built(job, Polarization(t, strength))
    _fit(job, model, callbacks)
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


def _built(job: Job, regularizer) -> keras.Model:
    model = job.build(regularizer)
    if not isinstance(model, keras.Model) or not model.compiled:
        raise ValueError(
            "`build` must return a compiled model: "
            "`model = tfprune.regularize(model, regularizer); model.compile(...)`. "
            f"Received: {model!r}"
        )
    if not SharedTerm.all_of(model.variables):
        raise ValueError(
            "`build` must return a model with the regularizer in it, or all trials are "
            "the same: `model = tfprune.regularize(model, regularizer)`. Received: "
            f"model {model.name!r} without a regularizer over scales."
        )
    return model


def _fit(job: Job, model, callbacks) -> None:
    x, arguments = as_fit_takes_it(job.train)
    arguments = {"verbose": 0, **arguments, **job.fit_arguments, "epochs": job.epochs}
    given = keras.tree.flatten(arguments.pop("callbacks", None) or ())
    if any(str(getattr(each, "monitor", "")).startswith("val_") for each in given):
        data = job.validation_data
        if data is None and not arguments.get("validation_split"):
            data = job.train
        arguments["validation_data"] = data() if callable(data) else data
    # Those of the search first: they bring back a state that the others should see.
    model.fit(x, callbacks=[*callbacks, *given], **arguments)


def trial_directory(directory: Path, strength: float, t: float) -> Path:
    return directory / f"trial_strength_{strength:.6g}_t_{t:.6g}"
