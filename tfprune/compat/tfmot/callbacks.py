"""Callbacks that change and report masks, tfmot's way."""

import warnings

import keras
import numpy as np

from tfprune import training
from tfprune.compat.tfmot.schedules import due_sparsity, is_regular
from tfprune.compat.tfmot.wrapping import pruned_layers


class UpdatePruningStep(training.PruningCallback):
    """Changes the masks of pruned layers when their schedules say.

    Every `fit` of a model with pruned layers needs it. In a training loop of your own
    call `set_model`, `on_train_begin`, and in the loop `on_train_batch_begin` and
    `on_epoch_end`; the model's `optimizer` has to be set.

    At step s, counted from 1, masks are those of the weights before that step.
    """

    def on_train_begin(self, logs=None):
        self._layers = pruned_layers(self.model)
        self._schedules = [
            str(layer.pruning_schedule.get_config()) for layer in self._layers
        ]
        for layer in self._layers:
            if int(layer.pruning_step.numpy()) < 0:
                layer.pruning_step.assign(0)
        self._began = None

    def on_train_batch_begin(self, batch, logs=None):
        if self._began is None:
            # Not in `on_train_begin`: `BackupAndRestore` may load another state there.
            self._began = training.iterations(self.model)
            self._start = [int(each.pruning_step.numpy()) for each in self._layers]
            self._seen = list(self._start)
            self._warn_if_idle()
        taken = training.iterations(self.model) - self._began
        # Layers that are pruned alike are asked for once: a schedule is slow to ask.
        due: dict[tuple, float | None] = {}
        for number, layer in enumerate(self._layers):
            first, last = self._seen[number] + 1, self._start[number] + taken + 1
            key = (self._schedules[number], first, last)
            if key not in due:
                due[key] = due_sparsity(layer.pruning_schedule, first, last)
            self._seen[number] = last
            if due[key] is not None:
                layer.update_masks(due[key])

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 == (self.params or {}).get("steps"):
            # Before other callbacks save the model at the end of the epoch.
            self._write_steps()

    def on_epoch_end(self, batch, logs=None):
        if self._began is not None:
            self._write_steps()

    def summary(self):
        """Returns what the current `fit` will do, as text."""
        kinds = sorted({type(each.pruning_schedule).__name__ for each in self._layers})
        number = len(self._layers)
        return f"UpdatePruningStep: masks of {number} layers by {', '.join(kinds)}"

    def _write_steps(self):
        taken = training.iterations(self.model) - self._began
        for start, layer in zip(self._start, self._layers, strict=True):
            layer.pruning_step.assign(start + taken)

    def _warn_if_idle(self):
        params = self.params or {}
        steps = params.get("steps") and params["steps"] * params.get("epochs", 1)
        if not self._layers:
            warnings.warn(
                "`UpdatePruningStep` found no pruned layer in the model: nothing will "
                "be pruned. Wrap it with `prune_low_magnitude`.",
                stacklevel=2,
            )
        for start, layer in zip(self._start, self._layers, strict=True):
            schedule = layer.pruning_schedule
            if not steps or not is_regular(schedule):
                # To ask one of a user's own about every step could take minutes.
                continue
            if due_sparsity(schedule, start + 1, start + steps) is None:
                warnings.warn(
                    f"{layer.name!r} will not be pruned: {steps} steps of training "
                    f"hold no update of {schedule.get_config()}. Lower its "
                    "`frequency` or train longer.",
                    stacklevel=2,
                )
                return


class PruningSummaries(keras.callbacks.TensorBoard):
    """Writes the sparsity and the threshold of every mask to TensorBoard.

    Args:
        log_dir: str. Directory of the logs; the summaries go to `metrics` in it.
        update_freq: as in `keras.callbacks.TensorBoard`. Defaults to `"epoch"`.
        **kwargs: as in `keras.callbacks.TensorBoard`.
    """

    def __init__(self, log_dir, update_freq="epoch", **kwargs):
        if not isinstance(log_dir, str) or not log_dir:
            raise ValueError(
                f"`log_dir` must be a non-empty string. Received: log_dir={log_dir!r}"
            )
        super().__init__(log_dir=log_dir, update_freq=update_freq, **kwargs)
        self._writer = None

    def on_epoch_begin(self, epoch, logs=None):
        import tensorflow as tf

        if logs is not None:
            super().on_epoch_begin(epoch, logs)
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(f"{self.log_dir}/metrics")
        step = training.iterations(self.model)
        with self._writer.as_default():
            for name, value in self._summaries().items():
                tf.summary.scalar(name, value, step=step)
            self._writer.flush()

    def _summaries(self) -> dict:
        found = {}
        for layer in pruned_layers(self.model):
            for index, (name, kernel) in enumerate(layer.gated_kernels.items()):
                mask = np.asarray(layer.mask(index))
                kept = np.abs(kernel.numpy()[mask])
                path = f"{layer.name}/{name}"
                found[f"{path}/sparsity"] = 1 - mask.mean()
                found[f"{path}/threshold"] = kept.min() if kept.size else 0.0
        return found
