"""Sparsities for TensorBoard."""

import keras

from tfprune import training
from tfprune.graph import Graph
from tfprune.surgery import masks_in
from tfprune.surgery.gates import has_kernel_gates


class MaskSummaries(keras.callbacks.Callback):
    """Writes what the gates remove to TensorBoard after each epoch, group by group.

    For every group it writes `sparsity/<group>`, and `sparsity` for the whole model,
    over the optimizer's steps, or over batches where another callback has a `part`. What
    other callbacks log, such as `"flops_reduction"`, is written by
    `keras.callbacks.TensorBoard`. Needs the package tensorboard.

    Args:
        log_dir: str or `pathlib.Path`. Directory of the logs.

    Example:

    ```python
    model = tfprune.prune_wrap(model)
    model.compile("adam", "sparse_categorical_crossentropy")
    prune = tfprune.callbacks.PruneToBudget("magnitude", budget)
    summaries = tfprune.callbacks.MaskSummaries("logs")
    model.fit(x, y, epochs=20, callbacks=[prune, summaries])
    ```
    """

    def __init__(self, log_dir):
        super().__init__()
        self.log_dir = str(log_dir)

    def on_train_begin(self, logs=None):
        import tensorflow as tf

        model = training.pruned_model(self)
        unit = "weight" if has_kernel_gates(model) else "channel"
        self._graph = Graph(model, unit=unit)
        is_part = model is not self.model
        self._batches = training.Batches(self.model, self.params) if is_part else None
        self._writer = tf.summary.create_file_writer(self.log_dir)

    def on_epoch_begin(self, epoch, logs=None):
        if self._batches is not None:
            self._batches.begin_epoch(epoch)

    def on_train_batch_end(self, batch, logs=None):
        if self._batches is not None:
            self._batches.end_batch(batch)

    def on_epoch_end(self, epoch, logs=None):
        import tensorflow as tf

        masks = masks_in(self._graph)
        with self._writer.as_default(step=self._step()):
            tf.summary.scalar("sparsity", 1 - masks.density())
            for name, mask in masks.items():
                tf.summary.scalar(f"sparsity/{name}", 1 - mask.mean())
            self._writer.flush()

    def on_train_end(self, logs=None):
        self._writer.close()

    def _step(self):
        batches = self._batches
        return batches.position if batches else training.iterations(self.model)
