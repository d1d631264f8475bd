"""How good a model is, by the loss and metrics that another is compiled with."""

import keras


def evaluate(model, compiled, data) -> dict:
    """Returns the loss and the metrics of a model, by name.

    Args:
        model: the model to evaluate; it is compiled anew.
        compiled: the model whose loss and metrics are taken.
        data: a dataset of batches `(x, y)`, a pair of arrays, or a function without
            arguments that returns either.

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
    config = compiled.get_compile_config() or {}
    metrics = keras.saving.deserialize_keras_object(config.get("metrics"))
    model.compile(loss=compiled.loss, metrics=metrics)


def score(found: dict) -> tuple[str, float]:
    """Returns the name and value to go by: the first metric, else the negated loss."""
    metrics = [(name, value) for name, value in found.items() if name != "loss"]
    name, value = metrics[0] if metrics else ("-loss", -found["loss"])
    return name, float(value)


def as_fit_takes_it(data):
    """Returns `(x, other arguments)`: data may be a pair of arrays, or a function."""
    data = data() if callable(data) else data
    if isinstance(data, tuple) and len(data) == 2:
        return data[0], {"y": data[1]}
    return data, {}
