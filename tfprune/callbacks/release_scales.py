"""Letting go of the scales once enough of them are at zero."""

import warnings

from tfprune import thresholds, training
from tfprune.budget import Budget
from tfprune.callbacks.budgeted import BudgetedCallback
from tfprune.checks import is_number
from tfprune.costs import cost
from tfprune.graph import Graph
from tfprune.graph.scales import scale_variable, scaled_members
from tfprune.importances import Scale
from tfprune.regularizers import SharedTerm
from tfprune.selection import select


class ReleaseScales(BudgetedCallback):
    """Freezes the scales once a threshold would remove enough.

    After each epoch it counts what `threshold` would remove. Once that meets the
    budget, the scales that the regularizer acts on or the threshold looks at stand
    still, so that neither has any more say, and training goes on with the other
    weights. The masks are then those of
    `tfprune.select(graph, "scale", threshold=threshold)`.

    Every epoch's logs receive `"flops_reduction"` and `"sparsity"`. The callback
    carries no state: resumed after any epoch, it finds out from the scales.

    Args:
        budget: a `tfprune.Budget` with `flops_reduction`, `params_reduction` or
            `sparsity`, and without floors, of which a threshold knows nothing.
        threshold: what prunes, as `tfprune.select` takes it. Defaults to `"valley"`.

    Raises:
        ValueError: for arguments out of range; when training begins, if the model has
            no regularizer over scales, or the optimizer averages weights.

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
        name, fraction = budget.target
        if name == "n_of_m" or budget != Budget(**{name: fraction}):
            raise ValueError(
                "`ReleaseScales` waits for a fraction that `threshold` removes, and "
                "nothing but the threshold says where. Received: "
                f"budget={budget}. Pass `flops_reduction`, `params_reduction` or "
                "`sparsity` alone."
            )
        thresholds.check(threshold)
        self.threshold = threshold

    def read_model(self):
        terms = SharedTerm.all_of(self.model.trainable_variables)
        regularized = [scale for scales in terms.values() for scale in scales]
        if not regularized:
            raise ValueError(
                "`ReleaseScales` waits for a regularizer over scales, and the model "
                f"has none. Received: model={self.model.name!r}. Train "
                "`tfprune.regularize(model, tfprune.regularizers.Polarization(...))`."
            )
        if training.inner_optimizer(self.model).use_ema:
            raise ValueError(
                "`ReleaseScales` freezes scales within the run, and an optimizer with "
                "`use_ema=True` cannot go on without some of its weights. Received: "
                f"optimizer={training.inner_optimizer(self.model).name!r}. Leave "
                "`use_ema` out."
            )
        self.graph = Graph(self.model)
        self._dense = cost(self.graph)
        scales = {id(v): v for v in [*regularized, *self._looked_at()] if v.trainable}
        self._scales = list(scales.values())

    def _looked_at(self) -> list:
        """Returns the scales that the threshold is applied to."""
        members = scaled_members(self.graph)
        if not is_number(self.threshold):
            by_rule = Scale().by_layer(self.graph)
            members = [member for member in members if member.path in by_rule]
        scales = [scale_variable(member.layer) for member in members]
        return [scale for scale in scales if scale is not None]

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
            "The scales were released, and have changed since."
            if self._is_frozen
            else "The scales were never released.",
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
