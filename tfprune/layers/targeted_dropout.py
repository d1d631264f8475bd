"""TargetedDropout: dropout of the weights that a cut by magnitude would take."""

import keras
import numpy as np
from keras import ops

from tfprune.checks import check_integer, check_number
from tfprune.layers.kernel_gate import KernelGate
from tfprune.layers.swapping import in_training


@keras.saving.register_keras_serializable("tfprune")
class TargetedDropout(KernelGate):
    """Drops small weights at random in training, and all of them otherwise.

    In every output column of a kernel the `target_rate` smallest weights are
    candidates; each is dropped with probability `drop_rate`, and none of the others.
    Nothing is scaled up. So the network learns to do without what is cut: outside of
    training, and in `tfprune.strip`, all candidates are zero.

    Args:
        layer: a layer of any type with kernels.
        target_rate: float in [0, 1]. Share of the weights that are candidates.
        drop_rate: float in [0, 1]. How often a candidate is dropped.
        unit: `"weight"`, or `"column"`: whole output columns, by their L2 norm.
        ramp_steps: int, at least 0. Calls of the layer in training, one a step if it
            is in a model once, over which both rates grow from 0.
        seed: int or None. Of what is dropped, by each layer something else.
        kernels: dotted attributes of the kernels to gate. By default all of them.

    Source: Gomez et al., "Learning sparse networks using targeted dropout", 2019,
    section 3.

    Example:

    ```python
    model = tfprune.prune_wrap(model, tfprune.layers.TargetedDropout, target_rate=0.9)
    ```
    """

    def __init__(
        self,
        layer,
        target_rate=0.75,
        drop_rate=0.5,
        unit="weight",
        ramp_steps=0,
        seed=None,
        kernels=None,
        **kwargs,
    ):
        check_number("target_rate", target_rate, "[0, 1]")
        check_number("drop_rate", drop_rate, "[0, 1]")
        check_integer("ramp_steps", ramp_steps, 0)
        if unit not in ("weight", "column"):
            raise ValueError(
                f'`unit` must be "weight" or "column". Received: unit={unit!r}'
            )
        self.target_rate = target_rate
        self.drop_rate = drop_rate
        self.unit = unit
        self.ramp_steps = ramp_steps
        self.seed = seed
        super().__init__(layer, kernels, **kwargs)

    def build_gate(self):
        self.generator = keras.random.SeedGenerator(self.own_seed(self.seed))
        self.step = self.add_weight(
            name="step", shape=(), dtype="int32", initializer="zeros", trainable=False
        )

    def swaps(self):
        values = super().swaps()
        if in_training() and self.ramp_steps:
            self.step.assign_add(1)
        return values

    def gated(self, index, kernel):
        is_candidate = self._candidates(index)
        if in_training():
            chance = keras.random.uniform(is_candidate.shape, seed=self.generator)
            is_candidate = is_candidate & (chance < self.drop_rate * self._progress())
        return ops.where(is_candidate, ops.zeros((), kernel.dtype), kernel)

    def _candidates(self, index):
        """Returns which weights are among the smallest of their column, as bools."""
        # The variable as it is: rounded to half precision, weights would tie.
        kernel = ops.convert_to_tensor(self.kernel(index)._value)
        outputs = self.output_axes(index)
        order = [n for n in range(len(kernel.shape)) if n not in outputs]
        kernel = ops.transpose(ops.abs(kernel), (*order, *outputs))
        columns = ops.reshape(kernel, (int(np.prod(kernel.shape[: len(order)])), -1))
        is_low = self._lowest(columns)
        return ops.transpose(
            ops.reshape(is_low, kernel.shape), np.argsort((*order, *outputs)).tolist()
        )

    def _lowest(self, columns):
        shape = columns.shape
        if self.unit == "column":
            columns = ops.sqrt(ops.sum(ops.square(columns), 0))[:, None]
        # The rank of every weight: exactly as many are below as are asked for.
        rank = ops.argsort(ops.argsort(columns, 0), 0)
        number = ops.cast(
            ops.floor(self.target_rate * self._progress() * columns.shape[0]),
            rank.dtype,
        )
        is_low = rank < number
        if self.unit == "column":
            return ops.broadcast_to(is_low[:, 0], shape)
        return is_low

    def _progress(self):
        if not self.ramp_steps:
            return 1.0
        steps = ops.cast(self.step, "float32")
        return ops.minimum(1.0, steps / self.ramp_steps)

    def mask(self, index):
        return ops.logical_not(self._candidates(index))

    def set_mask(self, index, mask):
        raise ValueError(
            f"`TargetedDropout` takes no masks: those of {self.name!r} follow from its "
            "weights. Wrap with `tfprune.layers.WeightMask` for masks of your own."
        )

    def get_config(self):
        names = ("target_rate", "drop_rate", "unit", "ramp_steps", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
