"""What callbacks need to know about the run they are in.

All of it is derived from `optimizer.iterations`, which is saved with the model,
and from what `fit` tells its callbacks; so a resumed run answers as an
uninterrupted one does.
"""

import contextlib
import functools
import itertools
import weakref

import keras
import tensorflow as tf

# model -> the tfprune callbacks that were given it. Weak on both sides: a callback
# holds its model, so a strong reference to it would keep the model alive for ever.
_announced = weakref.WeakKeyDictionary()


class PruningCallback(keras.callbacks.Callback):
    """Base of the callbacks that others in the same `fit` can find by `siblings`.

    Attributes:
        prunes: whether masks change by it, or it only looks on.
    """

    prunes = True

    def set_model(self, model):
        super().set_model(model)
        _announced.setdefault(model, weakref.WeakSet()).add(self)


def siblings(callback):
    """Returns the other tfprune callbacks of the `fit` that `callback` is in.

    Keras gives a callback no access to the others, but hands all callbacks of
    one `fit` the same `params` object. Callbacks of an earlier `fit` on the same
    model, finished or failed, carry another one.
    """
    known = _announced.get(callback.model, ())
    others = [c for c in known if c is not callback and c.params is callback.params]
    return tuple(sorted(others, key=lambda other: type(other).__name__))


def pruned_model(callback):
    """Returns the model whose gates close in a callback's `fit`: all, or a part."""
    models = [getattr(other, "pruned", None) for other in siblings(callback)]
    return next((model for model in models if model is not None), callback.model)


def undo_on_error(model, undo):
    """Lets `undo` be called if the `fit` that runs now ends with an error.

    Keras tells callbacks nothing of errors, nor of Ctrl-C, so what they have changed
    for the time of a `fit` would stay. After an error in a step it is undone at once,
    after any other the next `fit` does it first.

    Args:
        model: the model in its `fit`.
        undo: function without arguments.
    """
    vars(model).setdefault("_undo_on_error", []).append(undo)
    # Found before that of the class; `fit` calls it without arguments when it begins.
    vars(model)["make_train_function"] = functools.partial(_make_watched, model)
    model.train_function = _watched(model)


def undo(model, only=None):
    """Undoes now what `undo_on_error` was told of, if anything, and forgets it.

    Args:
        model: the model.
        only: one of the functions; None for all.
    """
    waiting = vars(model).get("_undo_on_error", [])
    for function in [each for each in waiting if only in (None, each)]:
        waiting.remove(function)
        function()
    if not waiting:
        vars(model).pop("make_train_function", None)


@contextlib.contextmanager
def inner_fit(model):
    """Lets a callback call `fit` on the model that is being trained."""
    make = vars(model).pop("make_train_function", None)
    # Keras lets a backup say at which epoch the `fit` after it begins.
    initial_epoch, model._initial_epoch = model._initial_epoch, None
    try:
        yield
    finally:
        model._initial_epoch = initial_epoch
        model.reset_metrics()
        if make is not None:
            vars(model)["make_train_function"] = make


def _make_watched(model, force=False):
    if not force:
        undo(model)
    type(model).make_train_function(model, force)
    if force:
        model.train_function = _watched(model)


def _watched(model):
    function = model.train_function

    @functools.wraps(function)
    def watched(iterator):
        try:
            return function(iterator)
        except (StopIteration, tf.errors.OutOfRangeError):
            # That is how data end.
            raise
        except BaseException:
            undo(model)
            raise

    return watched


def inner_optimizer(model):
    """Returns a model's optimizer, without the one that scales the loss around it."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def iterations(model):
    """Returns the number of optimizer steps that `model` has taken, as an int."""
    # `int` alone cannot read a variable that is mirrored on several devices.
    return int(model.optimizer.iterations.numpy())


def total_steps(model, params):
    """Returns the number of optimizer steps in the run, or None if unknown.

    Args:
        model: the compiled model.
        params: the `params` of a callback.
    """
    if params["steps"] is None:
        return None
    return _optimizer_steps(model, params["steps"] * params["epochs"])


def origin(model, params, epoch):
    """Returns the value of `optimizer.iterations` at the start of epoch 0 of the run.

    In a run resumed at `epoch` that start lies in the past (before a load), or,
    where the optimizer is new, at a negative value.

    Args:
        model: the compiled model, before its first step in this `fit`.
        params: the `params` of a callback.
        epoch: the epoch that is about to begin.
    """
    now = iterations(model)
    if epoch == 0:
        return now
    if params["steps"] is None:
        return 0
    shift = now - _optimizer_steps(model, params["steps"] * epoch)
    # `iterations` strays a little from batches: loss scaling skips a step with
    # infinite gradients, `steps_per_execution` overshoots the end of an epoch of
    # repeated data, a backup may lie within an epoch. Only a whole epoch is a sign
    # of training before this run.
    strayed = abs(shift) < _optimizer_steps(model, params["steps"])
    return 0 if strayed else shift


class OptimizerSteps:
    """Where a `fit` is, by the steps of its optimizer since epoch 0 of the run.

    Args:
        model: the compiled model.
        params: the `params` of a callback.

    Attributes:
        total: steps of the whole run, None if that is not known.
        position: steps so far, None before the first epoch.
    """

    def __init__(self, model, params):
        self._model, self._params = model, params
        self._origin = None
        self.total = total_steps(model, params)

    @property
    def position(self):
        return None if self._origin is None else iterations(self._model) - self._origin

    def begin_epoch(self, epoch):
        if self._origin is None:
            self._origin = origin(self._model, self._params, epoch)

    def end_batch(self, batch):
        pass


class Batches:
    """Where a `fit` is, by its batches: whichever optimizers a model trains with.

    Arguments and attributes are those of `OptimizerSteps`.
    """

    def __init__(self, model, params):
        self._per_epoch = params["steps"]
        self.total = self._per_epoch and self._per_epoch * params["epochs"]
        self.position = None

    def begin_epoch(self, epoch):
        unknown = self._per_epoch is None
        self._before = (self.position or 0) if unknown else self._per_epoch * epoch
        self.position = self._before

    def end_batch(self, batch):
        self.position = self._before + batch + 1


def skips_steps(model):
    """Whether the optimizer may leave a batch out without counting it."""
    return isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


def simulate(schedule, steps):
    """Returns the updates of `schedule` in a run of `steps` optimizer steps.

    Args:
        schedule: an object with `updates(total_steps)`, see `tfprune.schedules`.
        steps: int, or None if unknown.

    Raises:
        ValueError: if the schedule would do nothing, goes back in time or never
            asks for the whole budget.
    """
    updates = tuple(schedule.updates(steps))
    if not updates:
        raise ValueError(
            "`schedule` must update the masks at least once. Received: "
            f"{schedule}, which does nothing in a run of {steps} steps."
        )
    if any(b.step <= a.step for a, b in itertools.pairwise(updates)):
        raise ValueError(
            "The steps of a schedule's updates must increase strictly. Received: "
            f"{schedule}, with updates at {[update.step for update in updates][:20]}."
        )
    if updates[-1].fraction != 1.0 or (steps is not None and updates[-1].step > steps):
        raise ValueError(
            "The last update of a schedule must have `fraction=1.0` and come before "
            f"the run ends, or the budget is not met. Received: {schedule}, whose "
            f"last update is {updates[-1]} in a run of {steps} steps."
        )
    return updates


def check_strategy(model):
    """Raises ValueError if a model does not fit the distribution strategy in use."""
    strategy = model.distribute_strategy
    is_mirrored = isinstance(strategy, tf.distribute.MirroredStrategy)
    variables = [*model.variables, *model.optimizer.variables]
    replicated = [
        isinstance(v.value, tf.distribute.DistributedValues) for v in variables
    ]
    if not all(replicated) and (is_mirrored or any(replicated)):
        stray = variables[replicated.index(False)].path
        raise ValueError(
            "A model that trains on several devices must be made within "
            "`strategy.scope()`, all of it. Received: model="
            f"{model.name!r}, whose variable {stray!r} was made outside. Call "
            "`tfprune.prune_wrap` and `compile` within the scope."
        )
    if strategy.num_replicas_in_sync > 1 and model.jit_compile:
        raise ValueError(
            "`jit_compile=True` does not work on several replicas in TensorFlow. "
            f"Received: model={model.name!r} with "
            f"{strategy.num_replicas_in_sync} replicas. Compile with "
            "`jit_compile=False`."
        )


def _optimizer_steps(model, batches):
    return batches // (inner_optimizer(model).gradient_accumulation_steps or 1)
