"""Gradual pruning to a budget, inside `fit`."""

import bisect
import warnings
from collections.abc import Mapping

import keras
import numpy as np

from tfprune import importances, training
from tfprune.costs import cost
from tfprune.graph import Graph
from tfprune.schedules import Polynomial
from tfprune.selection import Budget, select
from tfprune.surgery import has_gates, set_masks
from tfprune.surgery.mask import dead_masks, gate_masks


class PruneToBudget(keras.callbacks.Callback):
    """Closes gates during `fit` until the model meets a budget.

    At each update of `schedule` all units are ranked anew by `importance`, and
    the gates of the least important ones are closed such that the part of
    `budget` then in force is met. Between updates the masks stand still and the
    weights train. Only values change; `tfprune.compact` then makes the model
    smaller.

    The callback carries no state: what is due follows from `optimizer.iterations`,
    and the masks live in the model. Training that is interrupted and resumed with
    `initial_epoch` (or by `BackupAndRestore`) goes on as if it had not been. A run
    from epoch 0 begins the schedule anew, and its first update opens gates that an
    earlier run closed.

    Every epoch's logs receive `"flops_reduction"` and `"sparsity"`, the fractions
    of the multiply-accumulates and of the units that the gates remove. List this
    callback before those that save the model in the middle of an epoch or read
    these logs.

    Note that `ModelCheckpoint(save_best_only=True)` and
    `EarlyStopping(restore_best_weights=True)` prefer models from before the budget
    was met: use them in a second `fit`, which trains the final masks.

    Args:
        importance: name of an importance such as `"magnitude"`, or a callable
            `importance(graph) -> {group name: scores of shape (group.size,)}`,
            higher = keep.
        budget: a `tfprune.Budget`: how much to remove. It is a floor, met when
            the schedule ends.
        schedule: when to update, see `tfprune.schedules`. Defaults to
            `Polynomial()`: 20 updates in the first half of the run.
        scope: how the budget is shared between layers, as in `tfprune.select`.
            Defaults to `"global"`.

    Raises:
        ValueError: when training begins, if the model has no gates, the budget is
            out of its reach, or the schedule does not finish within the run.

    Example:

    ```python
    model = tfprune.prune_wrap(model)
    model.compile("adam", "sparse_categorical_crossentropy")
    budget = tfprune.Budget(flops_reduction=0.5)
    prune = tfprune.callbacks.PruneToBudget("magnitude", budget)
    model.fit(x, y, epochs=20, callbacks=[prune])
    small = tfprune.compact(model)
    ```
    """

    def __init__(self, importance, budget, schedule=None, scope="global"):
        super().__init__()
        if not isinstance(budget, Budget) or budget.target is None:
            raise ValueError(
                "`budget` must be a `tfprune.Budget` with a target, such as "
                f"`tfprune.Budget(flops_reduction=0.5)`. Received: budget={budget!r}"
            )
        self.importance = _get_importance(importance)
        self.budget = budget
        self.schedule = Polynomial() if schedule is None else schedule
        self.scope = scope

    def set_model(self, model):
        super().set_model(model)
        training.announce(self, model)

    def on_train_begin(self, logs=None):
        if not has_gates(self.model):
            raise ValueError(
                "`PruneToBudget` closes gates, and the model has none. Received: "
                f"model={self.model.name!r}. Train `tfprune.prune_wrap(model)`, "
                "which computes the same, and compile it."
            )
        self._total = training.total_steps(self.model, self.params)
        self._updates = training.simulate(self.schedule, self._total)
        self._graph = Graph(self.model)
        self._check_gates()
        self._dense = cost(self._graph)
        # Raises here, before the first step, if the budget is out of reach.
        self._forecast = self._removed(self._choose(1.0))
        self._origin = None

    def on_epoch_begin(self, epoch, logs=None):
        # Not in `on_train_begin`: `BackupAndRestore` may load another state there.
        if self._origin is None:
            self._origin = training.origin(self.model, self.params, epoch)
            self._catch_up()

    def on_train_batch_end(self, batch, logs=None):
        if self._num_done < len(self._updates):
            self._advance(self._position())

    def on_epoch_end(self, epoch, logs=None):
        is_last = epoch + 1 == self.params["epochs"] and not self.model.stop_training
        if is_last and self._total and training.skips_steps(self.model):
            self._advance(self._total)
        if logs is not None:
            removed = self._removed(dead_masks(self._graph))
            logs["flops_reduction"] = removed["flops_reduction"]
            logs["sparsity"] = removed["sparsity"]

    def on_train_end(self, logs=None):
        if not self._meets(self.budget):
            removed = self._removed(dead_masks(self._graph))
            warnings.warn(
                f"Training ended before the budget was met: {self.budget} was asked, "
                f"and the gates remove {_format(removed)}. {self._progress()} Train "
                "on with `initial_epoch`, or let the schedule end earlier. If "
                "`EarlyStopping` restored earlier weights, it restored their masks.",
                stacklevel=2,
            )

    def summary(self):
        """Returns what the schedule will do in the current `fit`, as text."""
        first, last = self._updates[0].step, self._updates[-1].step
        steps = "an unknown number of" if self._total is None else self._total
        skipped = self._graph.skipped.items()
        return "\n".join(
            (
                f"PruneToBudget: {self.schedule}",
                f"  mask updates: {len(self._updates)}, the first after step {first}, "
                + f"the last after step {last} of {steps} steps",
                f"  target: {self.budget}",
                f"  chosen now it would remove {_format(self._forecast)}",
                *(f"  kept whole: {path} ({reason})" for path, reason in skipped),
            )
        )

    def _check_gates(self):
        gated = np.zeros(self._graph.num_units + 1, bool)
        for _, labels in gate_masks(self._graph):
            gated[self._graph.units(labels)] = True
        gated = self._graph.masks_of(gated)
        bare = [name for name in self._names_in_scope() if not gated[name].all()]
        if bare:
            raise ValueError(
                "`PruneToBudget` can only remove channels with gates, and groups in "
                f"its `scope` have none. Received: scope={self.scope!r}, groups "
                f"without gates: {', '.join(bare[:8])}. Call `prune_wrap` without "
                "`layers`, or name gated layers: `scope={path pattern: fraction}`."
            )

    def _names_in_scope(self):
        if isinstance(self.scope, Mapping):
            matches = [self._graph.match(pattern) for pattern in self.scope]
            return {group.name: None for groups in matches for group in groups}
        return [group.name for group in self._graph.groups]

    def _position(self):
        return training.iterations(self.model) - self._origin

    def _catch_up(self):
        """Makes good an update that a resumed model has not seen."""
        position = self._position()
        self._num_done = self._num_due(position)
        if not self._num_done:
            return
        fraction = self._updates[self._num_done - 1].fraction
        # Masks that meet what is in force are those of the interrupted run: a new
        # choice, from weights trained since, would differ from them.
        if not self._meets(self.budget.scaled(fraction)):
            self._update(fraction)

    def _advance(self, position):
        num_due = self._num_due(position)
        if num_due > self._num_done:
            self._update(self._updates[num_due - 1].fraction)
            self._num_done = num_due

    def _num_due(self, position):
        return bisect.bisect_right(self._updates, position, key=lambda u: u.step)

    def _update(self, fraction):
        set_masks(self._graph, self._choose(fraction))

    def _choose(self, fraction):
        budget = self.budget.scaled(fraction)
        return select(self._graph, self.importance, budget, scope=self.scope)

    def _meets(self, budget):
        name, target = budget.target
        return self._removed(dead_masks(self._graph))[name] >= target - 1e-9

    def _removed(self, masks):
        """The fractions that `masks` remove, under the names `Budget` gives them."""
        left, whole = cost(self._graph, masks), self._dense
        return {
            "flops_reduction": 1 - left.macs / max(whole.macs, 1),
            "params_reduction": 1 - left.params / whole.params,
            "sparsity": 1 - masks.density(),
        }

    def _progress(self):
        if self._origin is None:
            return "No epoch was run."
        return (
            f"It stopped after step {self._position()}; the schedule has "
            f"{len(self._updates)} updates, the last after step "
            f"{self._updates[-1].step}, of which {self._num_done} were due."
        )


def _get_importance(importance):
    needs_data = callable(getattr(importance, "update_state", None))
    if needs_data:
        raise ValueError(
            "`PruneToBudget` does not show data to an importance, and this one needs "
            f"data (it has `update_state`). Received: importance={importance!r}. Use "
            '"magnitude", or, if you call `update_state` yourself during `fit`, '
            "pass `lambda graph: importance(graph)`."
        )
    return importances.get(importance)


def _format(removed):
    return ", ".join(f"{name}={value:.4f}" for name, value in removed.items())
