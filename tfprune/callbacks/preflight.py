"""Checks a pruning run before its first step."""

import warnings

import keras

from tfprune import training


class Preflight(keras.callbacks.Callback):
    """Says what the pruning callbacks of a `fit` will do, before the first step.

    It prints how many mask updates there will be, when, the target, and which
    layers keep all their channels for want of a rule; and it refuses setups in
    which training would go wrong without a word. Its place in the list of
    callbacks does not matter.

    Args:
        verbose: 0 or 1. Whether to print. Defaults to `1`.

    Raises:
        ValueError: when training begins, if a schedule would do nothing or not
            finish within the run, if nothing in the model can train, or if the
            model does not belong to the distribution strategy in use.

    Example:

    ```python
    prune = tfprune.callbacks.PruneToBudget("magnitude", budget)
    model.fit(x, y, callbacks=[prune, tfprune.callbacks.Preflight()])
    ```
    """

    def __init__(self, verbose=1):
        super().__init__()
        self.verbose = verbose

    def on_train_begin(self, logs=None):
        _check_trainable(self.model)
        training.check_strategy(self.model)
        self._is_reported = False

    def on_epoch_begin(self, epoch, logs=None):
        # Every callback has seen `on_train_begin`, so each knows its plan.
        if not self._is_reported:
            self._is_reported = True
            self._report()

    def _report(self):
        others = training.siblings(self)
        if not others:
            warnings.warn(
                "`Preflight` found no tfprune callback in this `fit`: nothing will be "
                "pruned. Add one, such as `tfprune.callbacks.PruneToBudget`.",
                stacklevel=2,
            )
        if self.verbose:
            for other in others:
                print(other.summary())


def _check_trainable(model):
    if not model.trainable_variables:
        raise ValueError(
            "All layers of the model are frozen, so it cannot recover from pruning. "
            f"Received: model={model.name!r} without trainable variables. Set "
            "`layer.trainable = True` on the layers to train, then compile."
        )
