"""WeightMask: a mask on the single weights of a layer."""

import keras
import tensorflow as tf
from keras import ops

from tfprune.layers.kernel_gate import KernelGate


@keras.saving.register_keras_serializable("tfprune")
class WeightMask(KernelGate):
    """Masks single weights of any layer: one bool for each entry of its kernels.

    A masked weight is zero in the forward pass and gets no gradient. It is also held at
    exactly zero in the kernel itself, by the optimizer, in every step: momentum and
    weight decay do not bring it back, and whatever is saved, at any time, is sparse.
    The mask is a weight of the layer, so it is saved and restored with it. Callbacks
    such as `tfprune.callbacks.PruneToBudget` change it; wrapping changes no output.

    Args:
        layer: a layer of any type with kernels: dense, convolutions, `Embedding`,
            `MultiHeadAttention`, recurrent layers, layers made of layers.
        kernels: dotted attributes of the kernels to mask, such as
            `["cell.recurrent_kernel"]`. By default all of them.

    Raises:
        ValueError: if the layer has no such kernel.

    Example:

    ```python
    model = tfprune.prune_wrap(model, tfprune.layers.WeightMask)
    ```
    """

    def build_gate(self):
        self.masks = []
        for index, kernel in enumerate(self.gated_kernels.values()):
            mask = self.add_mask(index, kernel)
            self.masks.append(mask)
            kernel.constraint = _HoldZeros(mask, kernel.constraint)

    def gated(self, index, kernel):
        return _zeroed(kernel, self.masks[index])

    def mask(self, index):
        return ops.convert_to_tensor(self.masks[index])

    def set_mask(self, index, mask):
        kernel = self.kernel(index)
        mask = tf.convert_to_tensor(mask, tf.bool)
        self.masks[index].assign(mask)
        kernel.assign(_zeroed(kernel, mask))


class _HoldZeros(keras.constraints.Constraint):
    """Holds masked weights at zero, after the variable's own constraint."""

    def __init__(self, mask, constraint):
        self.mask = mask
        self.constraint = constraint

    def __call__(self, w):
        w = w if self.constraint is None else self.constraint(w)
        return _zeroed(w, self.mask)


def holder_of(variable):
    """Returns what has a variable's own constraint: it, or the one of its mask."""
    constraint = variable.constraint
    return constraint if isinstance(constraint, _HoldZeros) else variable


def _zeroed(kernel, mask):
    # A product would turn infinite weights into NaN.
    kernel = tf.convert_to_tensor(kernel)
    return tf.where(mask, kernel, tf.constant(0, kernel.dtype))
