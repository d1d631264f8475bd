"""Letting go of the scales once enough of them are at zero."""

import warnings

from tfprune import thresholds, training
from tfprune.callbacks.budgeted import BudgetedCallback
from tfprune.costs import cost
from tfprune.graph import Graph
from tfprune.importances import Scale
from tfprune.regularizers import SharedTerm
from tfprune.selection import select


class ReleaseScales(BudgetedCallback):
    """Freezes the regularized scales once a threshold would remove enough.

    After each epoch it counts what `threshold` would remove. Once that meets the
    budget, the scales that the regularizer acts on stand still, so that it has no
    more say, and training goes on with the other weights. The masks are then those of
    `tfprune.select(graph, "scale", threshold=threshold)`.

    Every epoch's logs receive `"flops_reduction"` and `"sparsity"`. The callback
    carries no state: resumed after any epoch, it finds out from the scales.

    Args:
        budget: a `tfprune.Budget` with a target.
        threshold: what prunes, as `tfprune.select` takes it. Defaults to `"valley"`.

    Raises:
        ValueError: when training begins, if the model has no regularizer over scales.

    Source: Zhuang et al., "Neuron-level structured pruning using polarization
    regularizer", 2020, the option for MobileNet-v2.

    Example:

    ```python
    model = tfprune.regularize(model, tfprune.regularizers.Polarization(1.0, 1e-4))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    release = tfprune.callbacks.ReleaseScales(tfprune.Budget(flops_reduction=0.3))
    model.fit(train, epochs=100, callbacks=[release])
    ```
    """

    def __init__(self, budget, threshold="valley"):
        super().__init__(budget)
        thresholds.check(threshold)
        self.threshold = threshold

    def read_model(self):
        terms = SharedTerm.all_of(self.model.trainable_variables)
        self._scales = [scale for scales in terms.values() for scale in scales]
        if not self._scales:
            raise ValueError(
                "`ReleaseScales` waits for a regularizer over scales, and the model "
                f"has none. Received: model={self.model.name!r}. Train "
                "`tfprune.regularize(model, tfprune.regularizers.Polarization(...))`."
            )
        self.graph = Graph(self.model)
        self._dense = cost(self.graph)

    def masks(self):
        """Returns the masks that the threshold makes now."""
        with warnings.catch_warnings():
            # Early in training no layer has a gap.
            warnings.simplefilter("ignore")
            return select(self.graph, Scale(), threshold=self.threshold)

    def on_train_begin(self, logs=None):
        self.read_model()
        if not self.model.optimizer.built:
            # On all variables, before some of them are frozen.
            self.model.optimizer.build(self.model.trainable_variables)
        self._is_frozen = False

    def on_epoch_begin(self, epoch, logs=None):
        # Not in `on_train_begin`: `BackupAndRestore` may load another state there.
        if epoch:
            self._freeze_if_met()

    def on_epoch_end(self, epoch, logs=None):
        self._freeze_if_met()
        self.write_logs(logs)

    def on_train_end(self, logs=None):
        training.undo(self.model, self._let_train)
        self.warn_unless_met(
            "The scales were never released.",
            "Train longer or raise the regularizer's strength.",
        )

    def summary(self):
        """Returns what the current `fit` will do, as text."""
        return (
            f"ReleaseScales: freezes the scales of {len(self._scales)} layers once "
            f"the threshold {self.threshold!r} meets {self.budget}"
        )

    def _freeze_if_met(self):
        if self._is_frozen or not self.meets(self.budget):
            return
        self._is_frozen = True
        for scale in self._scales:
            scale.trainable = False
        self.model.make_train_function(force=True)
        training.undo_on_error(self.model, self._let_train)

    def _let_train(self):
        for scale in self._scales:
            scale.trainable = True
        self.model.train_function = None
