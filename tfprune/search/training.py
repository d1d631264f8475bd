"""One trial of a search: train, prune by a threshold, measure."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import keras

from tfprune.costs import cost
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
    x, arguments = _as_fit_takes_it(job.train)
    arguments = {"verbose": 0, **arguments, **job.fit_arguments, "epochs": job.epochs}
    # Those of the search first: they bring back a state that the others should see.
    callbacks = [*callbacks, *arguments.pop("callbacks", ())]
    model.fit(x, callbacks=callbacks, **arguments)
    graph = Graph(model)
    masks = select(graph, Scale(), threshold=job.threshold)
    reduction = 1 - cost(graph, masks).macs / cost(graph).macs
    accuracy = _accuracy(model, apply_masks(graph, masks), job)
    return Trial(strength, t, reduction, accuracy, time.perf_counter() - start)


def trial_directory(directory: Path, strength: float, t: float) -> Path:
    return directory / f"trial_strength_{strength:.6g}_t_{t:.6g}"


def _accuracy(model, pruned, job) -> float:
    """Returns the first metric of the pruned model, else its negated loss."""
    pruned.compile(loss=model.loss, metrics=_metrics_of(model))
    x, arguments = _as_fit_takes_it(job.validation_data or job.train)
    found = pruned.evaluate(x, verbose=0, return_dict=True, **arguments)
    loss = found.pop("loss")
    return float(next(iter(found.values()), -loss))


def _metrics_of(model):
    config = model.get_compile_config() or {}
    return keras.saving.deserialize_keras_object(config.get("metrics"))


def _as_fit_takes_it(data):
    """Returns `(x, other arguments)`: data may be a pair of arrays, or a function."""
    data = data() if callable(data) else data
    if isinstance(data, tuple) and len(data) == 2:
        return data[0], {"y": data[1]}
    return data, {}
