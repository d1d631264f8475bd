"""KeepRatioSchedule: fewer and fewer channels stay, as training goes on."""

import bisect

from tfprune import schedules, training
from tfprune.checks import check_number
from tfprune.runtime.gates import gates_of
from tfprune.schedules import Periodic


class KeepRatioSchedule(training.PruningCallback):
    """Lowers the ratio of channels that runtime gates keep, from all to `keep_ratio`.

    While all channels are open, the gates learn what each is worth for which image. A
    channel that is closed for all images from the beginning never learns, and the gates
    go on choosing the same ones. For gates without agents; `PolicyTraining` has a
    `warm_up` of its own.

    The callback carries no state: the ratio follows from `optimizer.iterations`, and
    stands in the model. Every epoch's logs receive `"keep_ratio"`.

    Args:
        keep_ratio: float in (0, 1]. The ratio when the schedule ends.
        schedule: when to lower it, see `tfprune.schedules`. Defaults to
            `Periodic()`: 20 equal steps in the first half of the run.

    Raises:
        ValueError: when training begins, if the model has no runtime gates or they have
            agents, or if the schedule does not finish within the run.

    Source: Gao et al., "Dynamic channel pruning: feature boosting and suppression",
    2019, section 4.

    Example:

    ```python
    model = tfprune.prune_wrap(
        base, tfprune.layers.RuntimeGate, agent=None, rectify=True
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    lower = tfprune.callbacks.KeepRatioSchedule(0.5)
    model.fit(train, epochs=40, callbacks=[lower])
    ```
    """

    def __init__(self, keep_ratio, schedule=None):
        super().__init__()
        check_number("keep_ratio", keep_ratio, "(0, 1]")
        self.keep_ratio = keep_ratio
        self.schedule = Periodic() if schedule is None else schedule
        schedules.check(self.schedule)

    def on_train_begin(self, logs=None):
        gates = gates_of(self.model)
        if not gates or gates[0].policy is not None:
            which = "gates with agents" if gates else "none"
            raise ValueError(
                "`KeepRatioSchedule` is for runtime gates without agents. Received: "
                f"model={self.model.name!r}, which has {which}. Train `tfprune."
                "prune_wrap(model, tfprune.layers.RuntimeGate, agent=None)`."
            )
        self._ratios = [gate.keep_ratio for gate in gates]
        self._steps = training.OptimizerSteps(self.model, self.params)
        self._updates = training.simulate(self.schedule, self._steps.total)

    def on_epoch_begin(self, epoch, logs=None):
        # Not in `on_train_begin`: `BackupAndRestore` may load another state there.
        if self._steps.position is None:
            self._num_done = -1
        self._steps.begin_epoch(epoch)
        self._advance()

    def on_train_batch_end(self, batch, logs=None):
        if self._num_done < len(self._updates):
            self._advance()

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["keep_ratio"] = float(self._ratios[0].numpy())

    def summary(self):
        """Returns what the schedule will do in the current `fit`, as text."""
        first, last = self._updates[0].step, self._updates[-1].step
        return (
            f"KeepRatioSchedule: {len(self._ratios)} gates keep all channels at first, "
            f"less after step {first}, and {self.keep_ratio} after step {last}"
        )

    def _advance(self):
        position = self._steps.position
        num_due = bisect.bisect_right(self._updates, position, key=lambda u: u.step)
        if num_due == self._num_done:
            return
        self._num_done = num_due
        fraction = self._updates[num_due - 1].fraction if num_due else 0.0
        for ratio in self._ratios:
            ratio.assign(1 - fraction * (1 - self.keep_ratio))
