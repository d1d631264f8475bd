"""How good a model is, by the loss and metrics that another is compiled with."""

import warnings

import keras
import numpy as np


def evaluate(model, compiled, data) -> dict:
    """Returns the loss and the metrics of a model, by name.

    Args:
        model: the model to evaluate; it is compiled anew.
        compiled: the model whose loss and metrics are taken.
        data: a dataset of batches `(x, y)`, arrays `(x, y)` or `(x, y, sample_weight)`,
            or a function without arguments that returns either.

    Raises:
        ValueError: if `compiled` has no loss.
    """
    compile_like(model, compiled)
    return measure(model, data)


def measure(model, data) -> dict:
    """Returns the loss and the metrics of a compiled model, by name.

    Args:
        model: the model.
        data: as for `evaluate`.
    """
    x, arguments = as_fit_takes_it(data)
    return model.evaluate(x, verbose=0, return_dict=True, **arguments)


def compile_like(model, compiled) -> None:
    """Gives a model the loss and the metrics of another.

    Raises:
        ValueError: if `compiled` has no loss.
    """
    if getattr(compiled, "loss", None) is None:
        raise ValueError(
            f"Model {compiled.name!r} has no loss, so nothing tells how good it is. "
            "Call `model.compile(optimizer, loss, metrics=...)`."
        )
    # `get_compile_config` could not bring back functions of a user's own.
    config = getattr(compiled, "_compile_config", None)
    own = {} if config is None else config.config
    model.compile(
        loss=compiled.loss,
        loss_weights=own.get("loss_weights"),
        **{k: _fresh(own.get(k)) for k in ("metrics", "weighted_metrics")},
    )


def _fresh(metrics):
    """Returns metrics as `compile` takes them, those with a state as new objects."""

    def fresh(metric):
        if not isinstance(metric, keras.Metric):
            return metric
        try:
            return type(metric).from_config(metric.get_config())
        except Exception:
            # One of a function that has no name: every evaluation starts it anew.
            return metric

    return keras.tree.map_structure(fresh, metrics)


def score(model, found: dict) -> tuple[str, float]:
    """Returns the name and the value to go by, of which more is better.

    The first of the metrics that a model is compiled with; where less of it is better,
    as of an error, it is negated, and `"-"` is put before its name. One of which Keras
    does not know which is better, such as a function of a user's own, is passed over,
    with a warning. Without any it is the negated loss.

    Args:
        model: model compiled with the metrics, evaluated.
        found: its loss and metrics by name.
    """
    signs = {"up": ("", 1.0), "down": ("-", -1.0)}
    for name, metric in _named_metrics(model):
        mark, sign = signs.get(getattr(metric, "_direction", None), ("", 0.0))
        if sign:
            # That of several classes is their mean.
            return f"{mark}{name}", sign * float(np.mean(found[name]))
        warnings.warn(
            f"Keras does not know whether more or less of the metric {name!r} is "
            "better, so models are judged by the next one, or by the loss. Compile with "
            "one of Keras's metrics, too, if that is to decide.",
            stacklevel=2,
        )
    return "-loss", -float(found["loss"])


def _named_metrics(model):
    """Yields names and metrics in the order in which the model is compiled with them."""
    for each in model.metrics:
        if isinstance(each.result(), dict):
            yield from zip(each.result(), getattr(each, "metrics", ()), strict=False)


def as_fit_takes_it(data):
    """Returns `(x, other arguments)`: data may be arrays, or a function.

    Arrays are `(x, y)` or `(x, y, sample_weight)`.
    """
    data = data() if callable(data) else data
    if isinstance(data, tuple) and 2 <= len(data) <= 3:
        names = ("x", "y", "sample_weight")
        arguments = dict(zip(names, data, strict=False))
        return arguments.pop("x"), arguments
    return data, {}
