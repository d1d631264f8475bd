"""Latency, measured: interleaved rounds, medians and quartiles, threads stated."""

import dataclasses
import os
import time

import keras
import numpy as np

from tfprune.checks import check_integer
from tfprune.surgery import certificate


@dataclasses.dataclass(frozen=True)
class Latency:
    """One model's measured latency.

    Attributes:
        name: str.
        median: float. Milliseconds for one batch.
        lower: float. First quartile, milliseconds.
        upper: float. Third quartile, milliseconds.
        speedup: float. How many times faster than the first model: the median over
            the rounds of the two times measured in the same round.
    """

    name: str
    median: float
    lower: float
    upper: float
    speedup: float

    def __str__(self):
        return (
            f"{self.name}: {self.median:.2f} ms [{self.lower:.2f}, {self.upper:.2f}], "
            f"{self.speedup:.2f}x"
        )


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What `benchmark` measured, and under which conditions.

    Attributes:
        rows: tuple of `Latency`, in the order the models were given.
        batch_size: int.
        rounds: int.
        threads: str. The cores and TensorFlow threads the forward passes could use.
    """

    rows: tuple[Latency, ...]
    batch_size: int
    rounds: int
    threads: str

    def __getitem__(self, name):
        return {row.name: row for row in self.rows}[name]

    def __str__(self):
        conditions = f"batch {self.batch_size}, {self.rounds} rounds, {self.threads}"
        return "\n".join([*map(str, self.rows), conditions])

    def table(self):
        """The same as a rich table."""
        from tfprune import reports

        return reports.benchmark_table(self)


def benchmark(
    models, batch_size=1, rounds=30, warmup=3, seed=0, inputs=None, freeze=False
):
    """Measures the latency of models against each other.

    Each forward pass is compiled once with `tf.function` and warmed up; then every
    round runs every model once, in random order, so that what else the machine does
    falls on all of them alike.

    Args:
        models: dict of name to Functional or Sequential model (of a subclassed one give
            `Graph(model).model`), a list of models, or one. The first is the one
            the others are compared with.
        batch_size: int. Samples in one forward pass. Defaults to 1; `inputs` bring
            their own.
        rounds: int. How often each model is measured. Defaults to 30.
        warmup: int. Forward passes before the first measured one. Defaults to 3.
        seed: int. Seed of the inputs and of the order within a round.
        inputs: what to feed every model instead of random inputs of its own shape.
        freeze: bool. Whether weights become constants of the compiled graph, as tools
            for deployment make them: TensorFlow then folds batch normalization into
            convolutions. Defaults to False, what serving a SavedModel does.

    Returns:
        A `Benchmark`.

    Raises:
        ValueError: no models, something that is not a Keras model, or fewer than one
            round.

    Example:

    ```python
    result = tfprune.benchmark({"dense": model, "pruned": small}, batch_size=64)
    print(result["pruned"].speedup)
    ```
    """
    models = _named(models)
    if inputs is not None:
        batch_size = len(keras.tree.flatten(inputs)[0])
    check_integer("batch_size", batch_size, 1)
    check_integer("rounds", rounds, 1)
    check_integer("warmup", warmup, 0)
    passes = [_compile(m, batch_size, seed, inputs, freeze) for m in models.values()]
    for run in passes:
        for _ in range(warmup):
            run()
    return Benchmark(
        _summarize(list(models), _measure(passes, rounds, seed)),
        batch_size,
        rounds,
        describe_threads(),
    )


def _named(models):
    if isinstance(models, keras.Model):
        models = [models]
    if not isinstance(models, dict):
        models = list(models)
        names = [getattr(model, "name", "") for model in models]
        repeated = len(set(names)) < len(names)
        models = {
            f"{i}: {name}" if repeated else name: model
            for i, (name, model) in enumerate(zip(names, models, strict=True))
        }
    wrong = [name for name, m in models.items() if not isinstance(m, keras.Model)]
    if wrong or not models:
        raise ValueError(
            "`models` must be a Keras model, or a list or a dict of them. Received: "
            + (f"something else under {wrong}." if wrong else "none.")
        )
    return models


def _compile(model, batch_size, seed, inputs, freeze=False):
    import tensorflow as tf

    if inputs is None:
        inputs = certificate.probe_inputs(model, batch_size=batch_size, seed=seed)
    tensors = [tf.convert_to_tensor(x) for x in keras.tree.flatten(inputs)]

    @tf.function
    def forward(*tensors):
        return certificate.run(model, keras.tree.pack_sequence_as(inputs, tensors))

    compiled = forward.get_concrete_function(*tensors)
    if freeze:
        compiled = _freeze(compiled)

    def run():
        compiled(*tensors)
        # An accelerator returns before it is done.
        tf.test.experimental.sync_devices()

    return run


def _freeze(function):
    from tensorflow.python.framework import convert_to_constants

    return convert_to_constants.convert_variables_to_constants_v2(function)


def _measure(passes, rounds, seed):
    """Returns seconds, an array of shape `(rounds, models)`."""
    generator = np.random.default_rng(seed)
    seconds = np.empty((rounds, len(passes)))
    for row in seconds:
        for i in generator.permutation(len(passes)):
            start = time.perf_counter()
            passes[i]()
            row[i] = time.perf_counter() - start
    return seconds


def _summarize(names, seconds):
    lower, median, upper = np.percentile(1e3 * seconds, (25, 50, 75), axis=0)
    speedup = np.median(seconds[:, :1] / seconds, axis=0)
    columns = zip(names, median, lower, upper, speedup, strict=True)
    return tuple(Latency(name, *map(float, values)) for name, *values in columns)


def describe_threads():
    """Returns the cores and TensorFlow threads of this process, as text."""
    import tensorflow as tf

    # The cores this process may use, where the system can tell.
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    threading = tf.config.threading
    intra = threading.get_intra_op_parallelism_threads() or "default"
    inter = threading.get_inter_op_parallelism_threads() or "default"
    return f"{cores} cores, threads within an op: {intra}, between ops: {inter}"
