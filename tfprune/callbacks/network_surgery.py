"""Dynamic network surgery: weights are cut and spliced by two thresholds."""

import numpy as np
import tensorflow as tf

from tfprune import training
from tfprune.callbacks.budgeted import describe
from tfprune.checks import check_integer, check_number, check_time, is_integer
from tfprune.graph import Graph
from tfprune.layers import SplicedMask
from tfprune.surgery import masks_in
from tfprune.weight_cuts import removed_weights


class NetworkSurgery(training.PruningCallback):
    """Cuts weights that get small and splices back those that grow, while they train.

    Every kernel has a threshold, `max(mean + c * deviation, 0)` of the absolute values
    of its non-zero weights, taken once before the first step: later runs of the model
    go by it, too. When masks are refreshed, weights at or below 0.9 times the threshold
    are cut, those above 1.1 times come back, and others stay as they are. That happens
    at random, less and less often: after `s` steps with probability
    `(1 + gamma * s) ** -power`, and no more from `stop` on.

    Every epoch's logs receive `"sparsity"`. Biases are not masked.

    Args:
        c: float, or `{path pattern: float}` where the first that matches counts;
            kernels without a match take 0, which cuts those below the mean. Defaults
            to 1.0.
        gamma: float, not negative. How soon refreshing becomes rare, in 1 / steps.
            Defaults to 1e-4.
        power: float, not negative. How rare it becomes; 0 refreshes in every step.
            Defaults to 1.0.
        stop: int (steps) or float (fraction of the run). Defaults to 0.8.
        seed: int. Of the steps at which masks are refreshed. Defaults to 0.

    Raises:
        ValueError: when training begins, if the model has no `SplicedMask`s.

    Source: Guo et al., "Dynamic network surgery for efficient DNNs", 2016, equations 3
    and 4.

    Example:

    ```python
    model = tfprune.prune_wrap(model, tfprune.layers.SplicedMask)
    model.compile("sgd", "sparse_categorical_crossentropy")
    surgery = tfprune.callbacks.NetworkSurgery(c={"fc1/*": 1.5, "*": 1.0})
    model.fit(x, y, epochs=20, callbacks=[surgery])
    sparse = tfprune.strip(model)
    ```
    """

    def __init__(self, c=1.0, gamma=1e-4, power=1.0, stop=0.8, seed=0):
        super().__init__()
        self.c = c if isinstance(c, dict) else {"*": c}
        self.gamma = gamma
        self.power = power
        self.stop = stop
        self.seed = seed
        check_time("stop", stop)
        check_integer("seed", seed, 0)
        check_number("gamma", gamma, "[0, inf)")
        check_number("power", power, "[0, inf)")
        for pattern, factor in self.c.items():
            check_number(f"c[{pattern!r}]", factor, "(-inf, inf)")

    def on_train_begin(self, logs=None):
        self.graph = Graph(self.model, unit="weight")
        self._kernels = {
            name: kernel
            for name, kernel in self.graph.kernels.items()
            if isinstance(kernel.gate, SplicedMask)
        }
        if not self._kernels:
            raise ValueError(
                "`NetworkSurgery` changes spliced masks, and the model has none. "
                f"Received: model={self.model.name!r}. Train "
                "`tfprune.prune_wrap(model, tfprune.layers.SplicedMask)`."
            )
        self._choose_thresholds()
        self._refresh = tf.function(self._refresh_all)
        self._steps = training.OptimizerSteps(self.model, self.params)
        if self._steps.total is None and not is_integer(self.stop):
            raise ValueError(
                "`stop` is a fraction of the run, whose number of steps is unknown. "
                f"Received: stop={self.stop!r}. Pass `steps_per_epoch` to `fit`, or "
                "write it as an int (steps)."
            )

    def on_epoch_begin(self, epoch, logs=None):
        # Not in `on_train_begin`: `BackupAndRestore` may load another state there.
        self._steps.begin_epoch(epoch)

    def on_train_batch_begin(self, batch, logs=None):
        step = self._steps.position
        if step < self._stop() and self._is_due(step):
            self._refresh()

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["sparsity"] = self._removed()["sparsity"]

    def summary(self):
        """Returns what the current `fit` will do, as text."""
        return (
            f"NetworkSurgery: thresholds of {len(self._kernels)} kernels, masks are "
            f"refreshed up to step {self._stop():.0f}\n"
            f"  now removes {describe(self._removed())}"
        )

    def _removed(self):
        return removed_weights(self.graph, masks_in(self.graph))

    def _stop(self):
        if is_integer(self.stop):
            return self.stop
        return self.stop * self._steps.total

    def _is_due(self, step) -> bool:
        # Drawn from the step alone, so that a resumed run draws the same.
        chance = np.random.default_rng((self.seed, step)).random()
        return chance < (1 + self.gamma * step) ** -self.power

    def _choose_thresholds(self):
        factors: dict[str, float] = {}
        for pattern, factor in self.c.items():
            for group in self.graph.match(pattern):
                factors.setdefault(group.name, factor)
        for name, kernel in self._kernels.items():
            threshold = kernel.gate.thresholds[kernel.index]
            if float(threshold.numpy()) < 0:
                values = np.abs(kernel.variable.numpy())
                values = values[values > 0]
                chosen = 0.0
                if values.size:
                    chosen = values.mean() + factors.get(name, 0.0) * values.std()
                threshold.assign(max(0.0, float(chosen)))

    def _refresh_all(self):
        for kernel in self._kernels.values():
            gate, index = kernel.gate, kernel.index
            size = tf.abs(tf.cast(kernel.variable.value, "float32"))
            threshold = gate.thresholds[index].value
            kept = gate.masks[index].value
            kept = tf.logical_or(size > 1.1 * threshold, kept)
            gate.masks[index].assign(tf.logical_and(size > 0.9 * threshold, kept))
