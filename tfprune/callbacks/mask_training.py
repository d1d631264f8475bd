"""AutoPrune: masks that are trained beside the weights, inside `fit`."""

import keras
import numpy as np
import tensorflow as tf

from tfprune import training
from tfprune.budget import Budget, most_removed
from tfprune.callbacks.budgeted import BudgetedCallback
from tfprune.callbacks.data import num_batches
from tfprune.callbacks.score_updates import (
    ScoreUpdates,
    scored_channels,
    scored_kernels,
)
from tfprune.checks import check_number
from tfprune.costs import Counter
from tfprune.losses import loss_of
from tfprune.selection import select
from tfprune.surgery.mask import gate_masks


class MaskTraining(BudgetedCallback):
    """Trains the masks of `TrainableMask`s during `fit`.

    Each score m moves by `m -= learning_rate * (dm + strength * slope(m))`, where dm is
    its gradient by the estimator and rule of the gate, for channels divided by the norm
    of what it gates. So with the modified rule a weight stays useful as long as its
    gradient, when it is closed, is larger than `strength`. The model's optimizer trains
    the other weights, and never moves a closed one: it comes back with the value that
    it had.

    With `mask_data` the two alternate: in every step of `fit` the scores make a step on
    a batch of `mask_data`, data that the weights are not trained on, and the weights
    make one on theirs. Without, both learn from the same batch, in one backward pass.

    Scores stand still again when `fit` ends: train on without this callback to tune
    the weights that are open, then `tfprune.strip`, or for channels `tfprune.compact`.

    Every epoch's logs receive `"sparsity"`, for channels `"flops_reduction"`,
    `"time_open"` (the share of time that scores were open, over the epoch),
    `"recoveries"` (how often one opened again) and `"density/<layer>"`.

    Args:
        mask_data: a batched `tf.data.Dataset` of known length in a fixed order, held
            out from the data of `fit`; None to train both on the same batches.
        learning_rate: float or `LearningRateSchedule`. Of the scores. Defaults to 5.0.
        strength: float. Push towards closing (the paper's mu), for a loss that is the
            mean over a batch. Defaults to 3e-4.
        budget: a `tfprune.Budget`: nothing is pushed down any more while it is met; a
            density of d is `Budget(sparsity=1 - d)`. With `flops_reduction` channels
            are pushed in proportion to the work they make. `max_sparsity` and
            `min_channels` hold for every layer. Defaults to None: the push goes on.
        hysteresis: float. How far a score is put beyond the threshold when it crosses,
            so that it does not come back at once. Defaults to 0.
        min_density: float. The share of scores of a layer that stays open in any case,
            rounded up: a layer that has closed gets no gradients and would stay so.
            0 for no such guard. Defaults to 0.0005.
        log_layers: bool. Whether densities of layers are logged. Defaults to True.

    Raises:
        ValueError: for arguments out of range; when training begins, if the model has
            no trainable masks, trains on several replicas, or cannot meet the budget.

    Source: Xiao et al., "AutoPrune", 2019, equations 7 and 9, algorithm 1. The norm in
    equation 9 is taken as the number of open scores. `budget` follows the density term
    of AutoReP (Peng et al., 2023); `hysteresis` too.

    Example:

    ```python
    model = tfprune.prune_wrap(model, tfprune.layers.TrainableMask)
    model.compile("adam", "sparse_categorical_crossentropy")
    masks = tfprune.callbacks.MaskTraining(second_half)
    model.fit(first_half, epochs=30, callbacks=[masks])
    ```
    """

    units = ("channel", "weight")

    def __init__(
        self,
        mask_data=None,
        learning_rate=5.0,
        strength=3e-4,
        budget=None,
        hysteresis=0.0,
        min_density=0.0005,
        log_layers=True,
    ):
        super().__init__(Budget(sparsity=0.0) if budget is None else budget)
        self.mask_data = mask_data
        self.learning_rate = learning_rate
        self.strength = strength
        self.hysteresis = hysteresis
        self.min_density = min_density
        self.log_layers = log_layers
        self._has_budget = budget is not None
        self._check_arguments()
        if mask_data is not None:
            self._num_batches = num_batches("mask_data", mask_data)

    # Training ------------------------------------------------------------------

    def on_train_begin(self, logs=None):
        self.read_model()
        self._check_model()
        optimizer = self.model.optimizer
        if not optimizer.built:
            # Without the scores, which are none of its business.
            optimizer.build(self.model.trainable_variables)
        self._updates = self._make_updates()
        self._updates.sync()
        self._updates.leave_slope(True)
        # Masks take a step a batch, however many the optimizer gathers.
        self._batches_of_fit = training.Batches(self.model, self.params)
        # How many batches of `mask_data` the run has taken.
        self._taken = None
        vars(optimizer)["apply"] = self._routed(optimizer)
        self._set_trainable(self.mask_data is None)
        self.model.make_train_function(force=True)
        training.undo_on_error(self.model, self._undo)
        self._mask_step = tf.function(self._train_masks)

    def on_epoch_begin(self, epoch, logs=None):
        # Not in `on_train_begin`: `BackupAndRestore` may load another state there.
        self._batches_of_fit.begin_epoch(epoch)
        self._updates.begin_epoch()
        self._looks = 0
        self._look()
        position = self._batches_of_fit.position
        if self.mask_data is not None and position != self._taken:
            # Skipped batches are read all the same, so only where it is needed.
            self._taken = position
            start = self._taken % self._num_batches
            self._batches = iter(self.mask_data.repeat().skip(start))

    def on_train_batch_begin(self, batch, logs=None):
        if self.mask_data is None:
            return
        left = (self.params["steps"] or float("inf")) - batch
        for _ in range(min(self.model.steps_per_execution, left)):
            batch = keras.utils.unpack_x_y_sample_weight(next(self._batches))
            self._mask_step(*batch)
            self._taken += 1

    def on_train_batch_end(self, batch, logs=None):
        self._batches_of_fit.end_batch(batch)
        if self._has_budget and self.graph.unit == "channel":
            # Costs are counted in Python: often enough to notice, rarely enough.
            every = max(1, (self.params["steps"] or 100) // 20)
            # Several batches may have passed since it was asked last.
            if (batch + 1) // every != self._looks:
                self._looks = (batch + 1) // every
                self._look()

    def on_epoch_end(self, epoch, logs=None):
        self.write_logs(logs)
        if logs is not None:
            logs.update(self._updates.logs(self.log_layers))

    def on_train_end(self, logs=None):
        training.undo(self.model, self._undo)
        if self._has_budget:
            self.warn_unless_met(
                "Scores were pushed down all the time.",
                "Train longer, or raise `strength` or `learning_rate`.",
            )

    def summary(self):
        """Returns what the current `fit` will do, as text."""
        number = sum(int(np.prod(s.scores.shape)) for s in self._updates.scored)
        how = (
            "from the batches of `fit`"
            if self.mask_data is None
            else f"from {self._num_batches} batches of their own, in turns"
        )
        lines = [
            f"MaskTraining: {number} scores of {len(self._updates.scored)} masks learn "
            f"{how}",
            f"  a score needs a gradient above {self.strength:.3g} to stay open",
        ]
        lines += [f"  until {self.budget} is met"] * self._has_budget
        return "\n".join(lines)

    def _undo(self):
        """Lets scores stand still again."""
        vars(self.model.optimizer).pop("apply", None)
        self._set_trainable(False)
        self._updates.leave_slope(False)
        self.model.train_function = None

    # Steps ---------------------------------------------------------------------

    def _routed(self, optimizer):
        """Returns `apply` that keeps scores from the optimizer."""
        apply = type(optimizer).apply
        updates, is_joint = self._updates, self.mask_data is None
        places = {id(each.scores): n for n, each in enumerate(updates.scored)}

        def routed(grads, trainable_variables=None):
            variables = trainable_variables
            if variables is None:
                variables = optimizer._trainable_variables
            pairs = list(zip(grads, variables, strict=True))
            own = {places[id(v)]: g for g, v in pairs if id(v) in places}
            others = [pair for pair in pairs if id(pair[1]) not in places]
            scale = optimizer.scale_loss(tf.ones(()))
            with updates.holding():
                if others:
                    apply(optimizer, *zip(*others, strict=True))
            if is_joint:
                self._move(own, scale)

        return routed

    def _move(self, gradients: dict, scale):
        rate = self.learning_rate
        if callable(rate):
            rate = rate(self.model.optimizer.iterations)
        unscaled = [gradients.get(n) for n in range(len(self._updates.scored))]
        unscaled = [g if g is None else g / scale for g in unscaled]
        self._updates.step(unscaled, rate)

    def _train_masks(self, x, y=None, sample_weight=None):
        model, optimizer = self.model, self.model.optimizer
        variables = [each.scores.value for each in self._updates.scored]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            y_pred = model(x, training=True)
            loss = loss_of(model, x, y, y_pred, sample_weight, training=True)
            scaled = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, variables)
        self._move(dict(enumerate(gradients)), optimizer.scale_loss(tf.ones(())))

    # The run -------------------------------------------------------------------

    def _make_updates(self):
        is_channels = self.graph.unit == "channel"
        scored = (
            scored_channels(self.graph, self._work())
            if is_channels
            else scored_kernels(self.graph)
        )
        if not scored:
            raise ValueError(
                "`MaskTraining` trains the scores of trainable masks, and the model "
                f"has none. Received: model={self.model.name!r}. Train "
                "`tfprune.prune_wrap(model, tfprune.layers.TrainableMask)`."
            )
        sizes = [int(np.prod(each.scores.shape)) for each in scored]
        least = [
            max(int(np.ceil(self.min_density * size)), floor)
            for size, floor in zip(sizes, self._floors(scored), strict=True)
        ]
        target = None
        if self._has_budget and not is_channels:
            # The budget is of all weights, also of those that have no scores.
            removed = np.ceil(self.graph.num_units * self.budget.target[1] - 1e-6)
            target = sum(sizes) - int(removed)
        return ScoreUpdates(scored, self.strength, self.hysteresis, least, target)

    def _floors(self, scored) -> list[int]:
        """Returns how many scores of each variable the budget keeps in any case."""
        if not self._has_budget:
            return [0] * len(scored)
        graph = self.graph
        sizes = np.array([group.size for group in graph.groups])
        least = sizes - most_removed(graph, self.budget)
        if graph.unit == "weight":
            by_name = dict(zip((g.name for g in graph.groups), least, strict=True))
            return [int(by_name[each.name]) for each in scored]
        group_of = np.full(graph.num_units + 1, len(sizes))
        for number, units in enumerate(graph.members):
            group_of[units] = number
        units = {id(v): graph.units(labels) for v, labels in gate_masks(graph)}
        counts = [
            np.bincount(group_of[units[id(each.mask)]], minlength=len(sizes))
            for each in scored
        ]
        return [int(np.minimum(own[: len(sizes)], least).sum()) for own in counts]

    def _work(self) -> dict:
        """Returns how much work each channel makes, beside the mean, for its push."""
        if not self._has_budget or self.budget.target[0] != "flops_reduction":
            return {}
        graph, counter = self.graph, Counter(self.graph)
        keep = np.ones(graph.num_units + 1, bool)
        whole, work = counter.macs(keep), np.zeros(graph.num_units + 1, np.float32)
        for units in graph.members:
            keep[units[0]] = False
            work[units] = whole - counter.macs(keep)
            keep[units[0]] = True
        work /= max(1.0, float(work[:-1].mean()))
        masks = {id(v): graph.units(labels) for v, labels in gate_masks(graph)}
        return {key: work[units] for key, units in masks.items()}

    def _look(self):
        """Stops the push on channels while the budget is met."""
        if self._has_budget and self.graph.unit == "channel":
            self._updates.is_pushing.assign(float(not self.meets(self.budget)))

    def _set_trainable(self, flag):
        for each in self._updates.scored:
            each.scores.trainable = flag

    # Checks --------------------------------------------------------------------

    def _check_model(self):
        training.check_strategy(self.model)
        replicas = self.model.distribute_strategy.num_replicas_in_sync
        if replicas > 1:
            raise ValueError(
                "`MaskTraining` trains on one replica. Received: "
                f"model={self.model.name!r} with {replicas} replicas. Make and compile "
                "it outside of the strategy's scope."
            )
        if self.mask_data is None and training.inner_optimizer(self.model).use_ema:
            raise ValueError(
                "An optimizer with `use_ema=True` would overwrite scores with averages "
                "of weights when `fit` ends. Received: "
                f"optimizer={self.model.optimizer.name!r}. Leave it out, or give "
                "`mask_data`."
            )
        if self._has_budget:
            self._check_budget()

    def _check_budget(self):
        graph = self.graph
        if graph.unit == "weight" and self.budget.target[0] != "sparsity":
            raise ValueError(
                "A budget for masks on single weights has a `sparsity`. "
                f"Received: {self.budget}"
            )
        most = most_removed(graph, self.budget)
        names = [group.name for group in graph.groups]
        self.check_gates([name for name, n in zip(names, most, strict=True) if n])
        # Raises if it is out of reach, whatever closes.
        select(graph, "random", self.budget)

    def _check_arguments(self):
        if self.budget.multiple_of != 1:
            raise ValueError(
                "`MaskTraining` learns masks one by one, so it cannot round widths. "
                f"Received: budget={self.budget}. Use `multiple_of=1`."
            )
        check_number("strength", self.strength, "[0, inf)")
        check_number("hysteresis", self.hysteresis, "[0, inf)")
        check_number("min_density", self.min_density, "[0, 1]")
        if not callable(self.learning_rate):
            check_number("learning_rate", self.learning_rate, "(0, inf)")
