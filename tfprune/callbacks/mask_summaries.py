"""Sparsities for TensorBoard."""

import keras

from tfprune import training
from tfprune.graph import Graph
from tfprune.surgery import masks_in
from tfprune.surgery.gates import has_kernel_gates


class MaskSummaries(keras.callbacks.Callback):
    """Writes what the gates remove to TensorBoard after each epoch, group by group.

    For every group it writes `sparsity/<group>`, and `sparsity` for the whole model,
    over the optimizer's steps. What other callbacks log, such as `"flops_reduction"`,
    is written by `keras.callbacks.TensorBoard`. Needs the package tensorboard.

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

        unit = "weight" if has_kernel_gates(self.model) else "channel"
        self._graph = Graph(self.model, unit=unit)
        self._writer = tf.summary.create_file_writer(self.log_dir)

    def on_epoch_end(self, epoch, logs=None):
        import tensorflow as tf

        masks = masks_in(self._graph)
        with self._writer.as_default(step=training.iterations(self.model)):
            tf.summary.scalar("sparsity", 1 - masks.density())
            for name, mask in masks.items():
                tf.summary.scalar(f"sparsity/{name}", 1 - mask.mean())
            self._writer.flush()

    def on_train_end(self, logs=None):
        self._writer.close()
