"""Checks a pruning run before its first step."""

import warnings

import keras
import numpy as np

from tfprune import training
from tfprune.callbacks.decay_plan import check_decay, describe_decay, sparse_momentum
from tfprune.layers import HardConcrete, RuntimeGate, TargetedDropout
from tfprune.regularizers import SharedTerm, push


class Preflight(keras.callbacks.Callback):
    """Says what the pruning callbacks of a `fit` will do, before the first step.

    It prints how many mask updates there will be, when, the target, and which
    layers keep all their channels for want of a rule; how far a regularizer over
    scales can move them in the run, and how far `GlobalSparseMomentum` lets weights
    decay, with a warning if that is too little to prune anything; and it refuses setups
    in which training would go wrong without a word.
    Its place in the list of callbacks does not matter.

    Args:
        verbose: 0 or 1. Whether to print. Defaults to `1`.

    Raises:
        ValueError: when training begins, if a schedule would do nothing or not
            finish within the run, if nothing in the model can train, or if the
            model does not belong to the distribution strategy in use.

    Example:

    ```python
    model = tfprune.prune_wrap(model)
    model.compile("adam", "sparse_categorical_crossentropy")
    prune = tfprune.callbacks.PruneToBudget("magnitude", budget)
    preflight = tfprune.callbacks.Preflight()
    model.fit(x, y, epochs=20, callbacks=[prune, preflight])
    ```
    """

    def __init__(self, verbose=1):
        super().__init__()
        self.verbose = verbose

    def on_train_begin(self, logs=None):
        _check_trainable(self.model)
        training.check_strategy(self.model)
        self._terms = SharedTerm.all_of(self.model.trainable_variables)
        for term, scales in self._terms.items():
            _check_complete(term, scales)
        self._is_reported = False

    def on_epoch_begin(self, epoch, logs=None):
        # Every callback has seen `on_train_begin`, so each knows its plan.
        if not self._is_reported:
            self._is_reported = True
            # A run that goes on began in the past, or with a new optimizer.
            self._start = max(0, training.origin(self.model, self.params, epoch))
            self._report()

    def _report(self):
        others = training.siblings(self)
        decays = sparse_momentum(self.model) is not None
        for term, scales in self._terms.items():
            _check_push(term, scales, self._reach(term))
        if decays:
            check_decay(self.model, self.params, self._start)
        prunes = any(other.prunes for other in others) or _closes_by_itself(self.model)
        if not prunes and not self._terms and not decays:
            warnings.warn(
                "`Preflight` found no callback that prunes in this `fit`: nothing will be "
                "pruned. Add one, such as `tfprune.callbacks.PruneToBudget`.",
                stacklevel=2,
            )
        if self.verbose:
            for term, scales in self._terms.items():
                print(_describe(term, scales, self._reach(term)))
            if decays:
                print(describe_decay(self.model, self.params, self._start))
            for other in others:
                print(other.summary())

    def _reach(self, term):
        """Returns how far scales can move, None if it cannot be told."""
        optimizer = training.inner_optimizer(self.model)
        steps = training.total_steps(self.model, self.params)
        pull = term.regularizer.pull
        if not steps or pull is None or type(optimizer) is not keras.optimizers.SGD:
            return None
        rate, momentum = optimizer._learning_rate, optimizer.momentum
        if not isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            rate = float(optimizer.learning_rate.numpy())
        strength = term.regularizer.strength
        return pull * push(strength, rate, steps, momentum, self._start)


def _closes_by_itself(model) -> bool:
    kinds = HardConcrete, TargetedDropout, RuntimeGate
    return any(isinstance(layer, kinds) for layer in model._flatten_layers())


def _check_trainable(model):
    if not model.trainable_variables:
        raise ValueError(
            "All layers of the model are frozen, so it cannot recover from pruning. "
            f"Received: model={model.name!r} without trainable variables. Set "
            "`layer.trainable = True` on the layers to train, then compile."
        )


def _check_complete(term, scales):
    if len(scales) != term.count:
        raise ValueError(
            f"`{type(term.regularizer).__name__}` is over the scales of {term.count} "
            f"layers, and {len(scales)} of them train. Received: only "
            f"{', '.join(scale.path for scale in scales[:8])}. Let all of them train "
            "or freeze all."
        )


def _check_push(term, scales, reach):
    """Warns if no scale can come to zero within the run."""
    mean = float(np.mean(np.concatenate([scale.numpy() for scale in scales])))
    if reach is None or not 0 < reach < mean:
        return
    name, strength = type(term.regularizer).__name__, term.regularizer.strength
    warnings.warn(
        f"`{name}` with strength={strength:.3g} moves scales by about {reach:.2g} in "
        f"this run, and their mean is {mean:.2g}: few or none will come to zero. Train "
        f"longer, or take a strength of {strength * 3 * mean / reach:.2g} or more, see "
        "`tfprune.regularizers.strength_for_push`. (Counted with the learning rate of "
        "the optimizer.)",
        stacklevel=2,
    )


def _describe(term, scales, reach):
    settings = keras.regularizers.serialize(term.regularizer)["config"]
    text = ", ".join(f"{name}={value}" for name, value in settings.items())
    number = sum(scale.shape[0] for scale in scales)
    far = "" if reach is None else f"\n  moves them by up to about {reach:.2g}"
    return (
        f"{type(term.regularizer).__name__}({text}): over {number} scales of "
        f"{len(scales)} layers{far}"
    )
