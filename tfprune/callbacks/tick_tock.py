"""Tick-Tock: gates scored in Ticks, closed, and recovered from in Tocks."""

import math
import warnings

import keras
import numpy as np

from tfprune import training
from tfprune.callbacks.budgeted import BudgetedCallback, describe
from tfprune.callbacks.data import num_batches
from tfprune.callbacks.ticks import Ticks
from tfprune.checks import check_number, is_integer, is_number
from tfprune.importances.members import check_reduction
from tfprune.shares import remove_share


class TickTock(BudgetedCallback):
    """Closes the least important gates step by step until the model meets a budget.

    The epochs of `fit` are Tocks: the whole model trains, with an L1 term on its gates
    and a learning rate that rises and falls once per Tock. After each Tock come Ticks:
    over `tick_data` only gates, the shifts of batch normalizations and the last layer
    train, at the lowest learning rate, each gate's importance |phi * dL/dphi| is
    summed, and the share of the filters that scored least is closed. Once the budget is
    met the epochs that are left fine-tune, as one long Tock without L1 term.

    The callback carries no state: how many Ticks were run follows from
    `optimizer.iterations` and the epoch. Stopped after any epoch or Tick and resumed
    with `initial_epoch`, training goes on as if it had not been, provided that the
    optimizer was new at epoch 0, the data come in the same order, loss scaling has left
    out fewer steps than a Tick has, and `steps_per_execution` divides the steps of an
    epoch. Where steps tell of several numbers of Ticks, or of none, it warns and goes
    on as if all had been run. Masks only shrink.

    Every epoch's logs receive `"flops_reduction"`, `"sparsity"` and `"ticks"`. Put
    this callback before those that save the model.

    Args:
        tick_data: batched `tf.data.Dataset` or `keras.utils.PyDataset` of known length:
            the training data, or a part of them. `fit(class_weight=...)` does not
            reach it: give it sample weights.
        budget: a `tfprune.Budget`: how much to remove. Its `max_sparsity` and
            `min_channels` hold in every group; `multiple_of` must be 1.
        share: float: fraction of the filters left that one Tick closes. The paper takes
            0.002 to 0.005. None lets each Tick close as many as it takes to come
            nearer to the budget by the same factor, so that it is met halfway through
            the run.
        cycle: `(ticks, tock_epochs)`: Ticks after each Tock, and epochs of a Tock.
            Defaults to the paper's `(10, 10)`.
        learning_rates: `(lowest, highest)`; the optimizer keeps the last one that was
            set. None leaves the optimizer's alone; the steps of Ticks count in its
            schedule, too. Defaults to the paper's `(1e-3, 1e-2)`, for SGD with momentum.
        gate_l1: strength of the L1 term on the gates in Tocks. Defaults to 1e-3.
        reduction: `"sum"` or `"mean"`: how the scores of the layers of a group make
            one. Defaults to `"sum"`.

    Raises:
        ValueError: when training begins, if the model has no gates, the budget is out
            of reach, the number of steps is not known, there is no epoch after the
            first Tock, or the optimizer clips, averages or accumulates gradients.

    Source: You et al., "Gate Decorator: global filter pruning method for accelerating
    deep convolutional neural networks", 2019, algorithm 1.

    Example:

    ```python
    model = tfprune.prune_wrap(model, tfprune.layers.ChannelGate)
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), loss, metrics=["accuracy"])
    budget = tfprune.Budget(flops_reduction=0.7)
    model.fit(train, epochs=60, callbacks=[tfprune.callbacks.TickTock(train, budget)])
    small = tfprune.compact(model)
    ```
    """

    def __init__(
        self,
        tick_data,
        budget,
        share=None,
        cycle=(10, 10),
        learning_rates=(1e-3, 1e-2),
        gate_l1=1e-3,
        reduction="sum",
    ):
        super().__init__(budget)
        self.tick_data = tick_data
        self.share = share
        self.cycle = cycle
        self.learning_rates = learning_rates
        self.gate_l1 = gate_l1
        self.reduction = check_reduction(reduction)
        self._check_arguments()
        self._tick_steps = num_batches("tick_data", tick_data, takes_py_dataset=True)
        self._ticks = None

    # Training --------------------------------------------------------------------

    def on_train_begin(self, logs=None):
        self.read_model()
        self.check_gates([group.name for group in self.graph.groups])
        self._check_optimizer()
        self._check_length()
        if not self.model.optimizer.built:
            # On all variables, before some of them are frozen.
            self.model.optimizer.build(self.model.trainable_variables)
        self._ticks = Ticks(self.model, self.graph, self.tick_data)
        self._check_trainable()
        self._counts = self._count_members()
        self._check_reachable()
        self._ticks.begin()
        self._num_ticks = None

    def on_epoch_begin(self, epoch, logs=None):
        # Not in `on_train_begin`: `BackupAndRestore` may load another state there.
        if self._num_ticks is None:
            self._catch_up(epoch)
        self._ticks.set_l1(0.0 if self._is_met else self.gate_l1)

    def on_train_batch_begin(self, batch, logs=None):
        if self.learning_rates is not None:
            self._set_rate(self._triangle(*self._place_in_tock(batch)))

    def on_epoch_end(self, epoch, logs=None):
        self._epoch = epoch + 1
        tock_ends = self._epoch % self.cycle[1] == 0
        is_last = self._epoch >= self.params["epochs"] or self.model.stop_training
        if tock_ends and not is_last and not self._is_met:
            self._run_ticks(self.cycle[0])
        self.write_logs(logs)
        if logs is not None:
            logs["ticks"] = self._num_ticks

    def on_train_end(self, logs=None):
        self._ticks.end()
        self.warn_unless_met(
            f"It ran {self._num_ticks or 0} Ticks; {self._pace()}.",
            "Train longer, or raise `share` or the Ticks of `cycle`.",
        )

    def on_tick_end(self, tick, logs):
        """Called after each Tick, when its gates are closed; for subclasses.

        Args:
            tick: the number of Ticks so far, in all.
            logs: the metrics of the Tick, and `"flops_reduction"` and `"sparsity"`.
        """

    def summary(self):
        """Returns what the current `fit` will do, as text."""
        ticks, epochs = self.cycle
        rounds = (self.params["epochs"] - 1) // epochs
        lines = [
            f"TickTock: {rounds} times {ticks} Ticks of {self._tick_steps} steps, "
            f"each after a Tock of {epochs} epochs, until the budget is met",
            f"  {self._num_filters()} filters; {self._pace()}",
            f"  target: {self.budget}",
        ]
        skipped = self.graph.skipped.items()
        lines += [f"  kept whole: {path} ({reason})" for path, reason in skipped]
        return "\n".join(lines)

    # Ticks -----------------------------------------------------------------------

    def _run_ticks(self, number):
        for _ in range(number):
            # The `fit` of a Tick would forget that training is to stop.
            if self._is_met or self.model.stop_training:
                break
            if self.learning_rates is not None:
                self._set_rate(self.learning_rates[0])
            self._say(f"Tick {self._num_ticks + 1}")
            logs = self._ticks.run(self.params.get("verbose", 0))
            self._close()
            self._num_ticks += 1
            logs.update(self.removed(self.masks()))
            self._say(f"closed so far: {describe(self.removed(self.masks()))}")
            self.on_tick_end(self._num_ticks, logs)

    def _close(self):
        """Closes the gates that scored least, and no more than this Tick has to."""
        before = self.masks()
        scores = self._ticks.scores.by_group(self.graph, self.reduction)

        def after(share):
            return remove_share(
                self.graph, before, scores, self._counts, share, self.budget
            )

        budget, most = self._aim()
        masks = after(most)
        if self.meets(budget, masks):
            low, high = -2, most
            while high - low > 1:
                middle = (low + high) // 2
                if self.meets(budget, after(middle)):
                    high = middle
                else:
                    low = middle
            masks = after(high)
        self.set_masks(masks)
        if self.meets(self.budget):
            self._met_at = self._epoch

    def _aim(self):
        """Returns the budget of the next Tick, and the most filters that it closes."""
        if self.share is not None:
            return self.budget, int(self.share * self._num_filters())
        done = min(1, (self._num_ticks + 1) / self._planned_ticks())
        target = self.budget.target[1]
        goal = 1 - (1 - target) ** done
        return self.budget.scaled(goal / target), self._num_filters()

    def _planned_ticks(self):
        """Returns the Ticks in the first half of the run."""
        ticks, tock_epochs = self.cycle
        return ticks * max(1, math.ceil(self.params["epochs"] / tock_epochs / 2))

    def _pace(self):
        if self.share is None:
            return f"{self._planned_ticks()} Ticks in even steps meet the budget"
        return f"a Tick closes {self.share:.4g} of those left"

    def _count_members(self):
        counts = np.zeros(self.graph.num_units + 1, np.int64)
        for member in self._ticks.members:
            np.add.at(counts, self.graph.units(member.labels), 1)
        return self.graph.masks_of(counts)

    def _num_filters(self):
        masks = self.masks()
        return int(sum(self._counts[name][masks[name]].sum() for name in masks))

    # Where training is -------------------------------------------------------------

    @property
    def _is_met(self):
        return self._met_at is not None

    def _catch_up(self, epoch):
        """Finds out what a resumed run has done, and runs the Ticks it still owes."""
        ticks, tock_epochs = self.cycle
        due = ticks * (epoch // tock_epochs)
        is_met = self.meets(self.budget)
        self._epoch, self._met_at = epoch, epoch if is_met else None
        self._num_ticks = due
        if epoch == 0:
            return
        done = self._ticks_done(epoch, due, 0 if is_met else due - ticks)
        if done is None:
            warnings.warn(
                "The optimizer's steps do not tell how many Ticks were run before "
                f"epoch {epoch}: training goes on as if all {due} had been. Resume "
                "with the optimizer's state, one that was new at epoch 0, and let "
                "`steps_per_execution` divide the steps of an epoch.",
                stacklevel=2,
            )
            return
        self._num_ticks = done
        if is_met:
            self._met_at = tock_epochs * math.ceil(done / ticks)
        else:
            self._run_ticks(due - done)

    def _ticks_done(self, epoch, due, least):
        """Returns how many Ticks the optimizer's steps tell of, None if they do not."""
        steps = self.params["steps"]
        found = training.iterations(self.model) - epoch * steps
        # Data that are repeated are read on to the end of an execution, others end.
        beyond = epoch * (-steps % self.model.steps_per_execution)
        both = {self._in_ticks(n, due, not beyond) for n in (found, found - beyond)}
        possible = [n for n in both if n is not None and n >= least]
        return possible[0] if len(possible) == 1 else None

    def _in_ticks(self, steps, due, is_sure):
        """Returns how many Ticks make a number of steps, None if none do."""
        done = steps / self._tick_steps
        if done >= due:
            # A backup may lie within an epoch, see `training.origin`.
            return (
                due if steps < due * self._tick_steps + self.params["steps"] else None
            )
        if training.skips_steps(self.model):
            return math.ceil(done)
        return math.floor(done) if is_sure or done == int(done) else None

    def _place_in_tock(self, batch):
        """Returns the step within the current Tock, and the steps it has."""
        tock_epochs, epochs = self.cycle[1], self.params["epochs"]
        first = self._epoch - self._epoch % tock_epochs
        last = min(first + tock_epochs, epochs)
        if self._is_met:
            first, last = self._met_at, epochs
        steps = self.params["steps"]
        return (self._epoch - first) * steps + batch, (last - first) * steps

    def _triangle(self, step, steps):
        lowest, highest = self.learning_rates
        rise = 1 - abs(2 * step / max(steps - 1, 1) - 1)
        return lowest + (highest - lowest) * rise

    def _set_rate(self, rate):
        self.model.optimizer.learning_rate = rate

    def _say(self, text):
        if self.params.get("verbose"):
            print(text)

    # Bad input ---------------------------------------------------------------------

    def _check_arguments(self):
        if self.share is not None:
            what = "the fraction of the filters left that one Tick closes"
            check_number("share", self.share, "(0, 1)", f"{what}, such as 0.002")
        if not _is_pair(self.cycle, is_integer) or min(self.cycle) < 1:
            raise ValueError(
                "`cycle` must be `(ticks, tock_epochs)`, two ints of at least 1. "
                f"Received: cycle={self.cycle!r}"
            )
        rates = self.learning_rates
        is_pair = rates is None or _is_pair(rates, is_number)
        if not is_pair or (rates is not None and not 0 < rates[0] <= rates[1]):
            raise ValueError(
                "`learning_rates` must be `(lowest, highest)` with 0 < lowest <= "
                f"highest, or None. Received: learning_rates={rates!r}"
            )
        check_number("gate_l1", self.gate_l1, "[0, inf)")
        if self.budget.multiple_of != 1:
            raise ValueError(
                "`TickTock` closes few gates at a time, so it cannot round widths. "
                f"Received: budget={self.budget}. Use `multiple_of=1`."
            )

    def _check_optimizer(self):
        optimizer = training.inner_optimizer(self.model)
        names = ("clipnorm", "clipvalue", "global_clipnorm", "use_ema")
        names += ("gradient_accumulation_steps",)
        found = [name for name in names if getattr(optimizer, name, None)]
        if found:
            raise ValueError(
                "`TickTock` scores gates by the gradients of each batch, as they are, "
                "and the optimizer changes or gathers them. Received: optimizer with "
                f"`{found[0]}={getattr(optimizer, found[0])}`. Leave it out."
            )
        schedule = keras.optimizers.schedules.LearningRateSchedule
        own = optimizer._learning_rate
        if self.learning_rates is not None and isinstance(own, schedule):
            raise ValueError(
                "`TickTock` sets the learning rate, and the optimizer has a schedule. "
                f"Received: learning_rate={own}. Compile with a float, or "
                "pass `learning_rates=None`."
            )
        training.check_strategy(self.model)

    def _check_trainable(self):
        trained = {id(variable) for variable in self.model.trainable_variables}
        for member in self._ticks.members:
            if id(member.layer.gate_variable) not in trained:
                raise ValueError(
                    "`TickTock` scores gates by their gradients, so all have to train. "
                    f"Received: a frozen gate on {member.path!r}. Set `trainable = "
                    "True` on that layer and compile again."
                )

    def _check_length(self):
        if not self.params["steps"]:
            raise ValueError(
                "`TickTock` has to know how many steps an epoch has. Received: data of "
                "unknown length. Pass `steps_per_epoch`, or use "
                "`dataset.apply(tf.data.experimental.assert_cardinality(batches))`."
            )
        if self.params["epochs"] <= self.cycle[1]:
            raise ValueError(
                "`TickTock` runs Ticks after each Tock but the last, and there is one "
                f"Tock only. Received: fit(epochs={self.params['epochs']}), cycle="
                f"{self.cycle}. Train for more than {self.cycle[1]} epochs, or shorten "
                "the Tocks: `cycle=(ticks, tock_epochs)`."
            )

    def _check_reachable(self):
        scores = {
            name: np.where(counts > 0, np.arange(1.0, len(counts) + 1), np.inf)
            for name, counts in self._counts.items()
        }
        everything = remove_share(
            self.graph, self.masks(), scores, self._counts, 2**62, self.budget
        )
        if not self.meets(self.budget, everything):
            raise ValueError(
                f"`budget` cannot be met: gates can remove at most "
                f"{describe(self.removed(everything))} within its floors. Received: "
                f"{self.budget}. Ask for less, or lower `min_channels` or raise "
                "`max_sparsity`."
            )


def _is_pair(value, kind) -> bool:
    return isinstance(value, (tuple, list)) and [*map(kind, value)] == [True, True]
