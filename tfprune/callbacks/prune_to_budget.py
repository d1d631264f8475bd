"""Gradual pruning to a budget, inside `fit`."""

import bisect
from collections.abc import Iterator, Mapping

import keras

from tfprune import importances, schedules, training
from tfprune.budget import most_removed
from tfprune.callbacks.budgeted import BudgetedCallback, describe
from tfprune.callbacks.data import check_batches
from tfprune.schedules import Polynomial
from tfprune.selection import select
from tfprune.weight_cuts import without_pattern

# Whose iterators never begin anew, as a loader's with an `__iter__` of its own may.
_READ_ONCE = {"builtins", "itertools", "tensorflow", "keras"}
# Kept layers in a summary; more of them would hide what it says.
MOST_LISTED = 8


class PruneToBudget(BudgetedCallback):
    """Closes gates during `fit` until the model meets a budget.

    The gates are of channels (`prune_wrap(model)`) or of single weights
    (`prune_wrap(model, tfprune.layers.WeightMask)`).

    At each update of `schedule` all units are ranked anew by `importance`, and
    the gates of the least important ones are closed such that the part of
    `budget` then in force is met. Between updates the masks stand still and the
    weights train. Only values change; `tfprune.compact` then makes the model
    smaller.

    The callback carries no state: what is due follows from `optimizer.iterations`,
    and the masks live in the model. Training that is interrupted and resumed with
    `initial_epoch` (or by `BackupAndRestore`) goes on as if it had not been, provided
    that before epoch 0 the optimizer was new or had trained for an epoch at least. A
    run from epoch 0 begins the schedule anew, and its first update opens gates that an
    earlier run closed.

    Every epoch's logs receive `"flops_reduction"`, with channels, and `"sparsity"`,
    the fractions of the multiply-accumulates and of the units that the gates remove.
    List this callback before those that save the model in the middle of an epoch or
    read these logs.

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
        block: for masks on weights, `(rows, columns)` of the blocks that go together,
            as in `tfprune.Graph`. Defaults to None: single weights.
        data: iterable of batches `(x, y)` or `(x, y, sample_weight)`, such as a batched
            `tf.data.Dataset`, that an importance such as `"taylor"` is shown at each
            update; no iterator, which ends after the first. Defaults to None, for
            importances that need none.
        part: the model with gates, where it is only a part of the one that is trained,
            such as a GAN's generator or the student of
            `keras.distillation.Distiller`. Batches count as steps then, whichever
            optimizers there are. Defaults to None: all that is trained.

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

    units = ("channel", "weight")

    def __init__(
        self,
        importance,
        budget,
        schedule=None,
        scope="global",
        data=None,
        block=None,
        part=None,
    ):
        super().__init__(budget, block, part)
        self.importance = importances.get(importance)
        _check_data(self.importance, data)
        self.schedule = Polynomial() if schedule is None else schedule
        schedules.check(self.schedule)
        self.scope = scope
        self.data = data

    def on_train_begin(self, logs=None):
        self.read_model()
        counts = training.OptimizerSteps if self.part is None else training.Batches
        self._steps = counts(self.model, self.params)
        self._updates = training.simulate(self.schedule, self._steps.total)
        self.check_gates(self._names_in_scope())
        # Raises here, before the first step, if the budget is out of reach.
        self._forecast = self.removed(self._choose(1.0))

    def on_epoch_begin(self, epoch, logs=None):
        # Not in `on_train_begin`: `BackupAndRestore` may load another state there.
        is_first = self._steps.position is None
        self._steps.begin_epoch(epoch)
        if is_first:
            self._catch_up()

    def on_train_batch_end(self, batch, logs=None):
        self._steps.end_batch(batch)
        if self._num_done < len(self._updates):
            self._advance(self._steps.position)

    def on_epoch_end(self, epoch, logs=None):
        is_last = epoch + 1 == self.params["epochs"] and not self.model.stop_training
        total = self._steps.total
        if is_last and total and training.skips_steps(self.model):
            self._advance(total)
        self.write_logs(logs)

    def on_train_end(self, logs=None):
        self.warn_unless_met(
            self._progress(),
            "Train on with `initial_epoch`, or let the schedule end earlier.",
        )

    def summary(self):
        """Returns what the schedule will do in the current `fit`, as text."""
        first, last = self._updates[0].step, self._updates[-1].step
        steps = self._steps.total
        steps = "an unknown number of" if steps is None else steps
        skipped = [f"{path} ({why})" for path, why in self.graph.skipped.items()]
        if self.budget.n_of_m is not None:
            left = without_pattern(self.graph, self.budget)
            skipped += [f"{name} (no pattern fits it)" for name in left]
        more = len(skipped) - MOST_LISTED
        skipped[MOST_LISTED:] = [f"{more} more, see `Graph.skipped`"] * (more > 0)
        return "\n".join(
            (
                f"PruneToBudget: {self.schedule}",
                f"  mask updates: {len(self._updates)}, the first after step {first}, "
                + f"the last after step {last} of {steps} steps",
                f"  target: {self.budget}",
                f"  chosen now it would remove {describe(self._forecast)}",
                *(f"  kept whole: {each}" for each in skipped),
            )
        )

    def _names_in_scope(self):
        if isinstance(self.scope, Mapping):
            matches = [self.graph.match(pattern) for pattern in self.scope]
            return {group.name: None for groups in matches for group in groups}
        most = most_removed(self.graph, self.budget)
        groups = zip(self.graph.groups, most, strict=True)
        return [group.name for group, number in groups if number]

    def _catch_up(self):
        """Makes good an update that a resumed model has not seen."""
        self._num_done = self._num_due(self._steps.position)
        if not self._num_done:
            return
        fraction = self._updates[self._num_done - 1].fraction
        # Masks that meet what is in force are those of the interrupted run: a new
        # choice, from weights trained since, would differ from them.
        if not self.meets(self.budget.scaled(fraction)):
            self._update(fraction)

    def _advance(self, position):
        num_due = self._num_due(position)
        if num_due > self._num_done:
            self._update(self._updates[num_due - 1].fraction)
            self._num_done = num_due

    def _num_due(self, position):
        return bisect.bisect_right(self._updates, position, key=lambda u: u.step)

    def _update(self, fraction):
        self.set_masks(self._choose(fraction))

    def _choose(self, fraction):
        if self.data is not None:
            self.importance.reset_state()
            for batch in self.data:
                x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
                self.importance.update_state(self.pruned, x, y, weight)
        budget = self.budget.scaled(fraction)
        return select(self.graph, self.importance, budget, scope=self.scope)

    def _progress(self):
        if self._steps.position is None:
            return "No epoch was run."
        return (
            f"It stopped after step {self._steps.position}; the schedule has "
            f"{len(self._updates)} updates, the last after step "
            f"{self._updates[-1].step}, of which {self._num_done} were due."
        )


def _check_data(importance, data):
    if data is not None:
        check_batches("data", data)
        home = type(data).__module__.split(".")[0]
        if isinstance(data, Iterator) and home in _READ_ONCE:
            raise ValueError(
                "`data` is read at each update, and can be read only once. Received: "
                f"a {type(data).__name__}. Pass a `tf.data.Dataset` or a list of "
                "batches."
            )
    if importances.needs_data(importance) == (data is not None):
        return
    what = "needs data" if data is None else "takes no data"
    raise ValueError(
        f"`importance` {what}, and `data` is {'not given' if data is None else 'given'}"
        f". Received: importance={importance!r}. Importances that look at gradients "
        'take `data=dataset`, batches of `(x, y)`; others, such as "magnitude", none.'
    )
