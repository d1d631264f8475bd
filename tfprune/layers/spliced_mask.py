"""SplicedMask: a mask whose weights go on learning behind it."""

import keras
from keras import ops

from tfprune.layers.kernel_gate import KernelGate


@keras.saving.register_keras_serializable("tfprune")
class SplicedMask(KernelGate):
    """Masks single weights, and lets the masked ones train on, so they can come back.

    A masked weight is zero in the forward pass, and gets the gradient of what stands in
    its place. `tfprune.callbacks.NetworkSurgery` changes the masks.

    Args:
        layer: a layer of any type with kernels.
        kernels: dotted attributes of the kernels to mask. By default all of them.

    Source: Guo et al., "Dynamic network surgery for efficient DNNs", 2016, equation 2.

    Example:

    ```python
    model = tfprune.prune_wrap(model, tfprune.layers.SplicedMask)
    ```
    """

    def build_gate(self):
        self.masks, self.thresholds = [], []
        for index, kernel in enumerate(self.gated_kernels.values()):
            self.masks.append(self.add_mask(index, kernel))
            # Below zero: not chosen yet.
            self.thresholds.append(
                self.add_gate_weight(
                    "threshold",
                    index,
                    kernel,
                    shape=(),
                    dtype="float32",
                    initializer=keras.initializers.Constant(-1.0),
                    trainable=False,
                )
            )

    def gated(self, index, kernel):
        masked = ops.where(self.masks[index], kernel, ops.zeros((), kernel.dtype))
        return kernel + ops.stop_gradient(masked - kernel)

    def mask(self, index):
        return ops.convert_to_tensor(self.masks[index])

    def set_mask(self, index, mask):
        self.masks[index].assign(mask)
