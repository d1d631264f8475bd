"""HardConcrete: gates that are random while they train, with an L0 penalty."""

import math

import keras
from keras import ops

from tfprune.checks import check_number
from tfprune.layers.kernel_gate import KernelGate
from tfprune.layers.swapping import in_training

# The paper's temperature and stretch.
BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
_LOWEST, _HIGHEST = math.log(0.01), math.log(100.0)
_SMALLEST = 1e-6


@keras.saving.register_keras_serializable("tfprune")
class HardConcrete(KernelGate):
    """Learns which inputs of dense layers and which filters of others stay (L0).

    A gate z in [0, 1] stands on every row of a kernel with two axes, and on every output
    channel of others. In training it is drawn anew for every batch, such that
    it is exactly 0 or 1 with a probability that `log_alpha` says; otherwise it is its
    estimate. The penalty is `strength` times the expected number of gates that are not
    zero. All of it trains with the model's optimizer; `tfprune.strip` leaves the
    estimates in the kernels, and `tfprune.compact` takes out what is zero.

    Args:
        layer: a layer of any type with kernels.
        strength: float. Weight of the penalty, for each gate (λ in the paper).
        drop_rate: float in (0, 1). Share of gates that are zero at the start.
        seed: int or None. Of the gates that are drawn, by each layer others.
        kernels: dotted attributes of the kernels to gate. By default all of them.

    Source: Louizos et al., "Learning sparse neural networks through L0 regularization",
    2018, equations 10 to 13.

    Example:

    ```python
    model = tfprune.prune_wrap(model, tfprune.layers.HardConcrete, strength=1e-4)
    ```
    """

    def __init__(
        self, layer, strength=1e-4, drop_rate=0.5, seed=None, kernels=None, **kwargs
    ):
        check_number("drop_rate", drop_rate, "(0, 1)")
        check_number("strength", strength, "[0, inf)")
        self.strength = strength
        self.drop_rate = drop_rate
        self.seed = seed
        super().__init__(layer, kernels, **kwargs)

    def build_gate(self):
        seed = self.own_seed(self.seed)
        self.generator = keras.random.SeedGenerator(seed)
        self.log_alphas = [
            self.add_gate_weight(
                "log_alpha",
                index,
                kernel,
                shape=self._shape(index, kernel),
                dtype="float32",
                initializer=keras.initializers.RandomNormal(
                    math.log(1 / self.drop_rate - 1), 0.01, seed=seed
                ),
                regularizer=ExpectedGates(self.strength),
                constraint=_InRange(),
            )
            for index, kernel in enumerate(self.gated_kernels.values())
        ]

    def _shape(self, index, kernel) -> tuple:
        gated = (0,) if len(kernel.shape) == 2 else self.output_axes(index)
        sizes = enumerate(kernel.shape)
        return tuple(size if axis in gated else 1 for axis, size in sizes)

    def gated(self, index, kernel):
        return kernel * ops.cast(self.gates(index), kernel.dtype)

    def gates(self, index):
        """Returns the gates of a kernel, drawn in training, else estimated."""
        log_alpha = ops.convert_to_tensor(self.log_alphas[index])
        if not in_training():
            return _stretched(ops.sigmoid(log_alpha))
        noise = keras.random.uniform(
            log_alpha.shape, _SMALLEST, 1 - _SMALLEST, seed=self.generator
        )
        logistic = ops.log(noise) - ops.log(1 - noise)
        return _stretched(ops.sigmoid((logistic + log_alpha) / BETA))

    def mask(self, index):
        kernel = self.kernel(index)
        log_alpha = ops.convert_to_tensor(self.log_alphas[index])
        is_open = _stretched(ops.sigmoid(log_alpha)) > 0
        return ops.broadcast_to(is_open, kernel.shape)

    def set_mask(self, index, mask):
        raise ValueError(
            f"The gates of {self.name!r} are learned: `HardConcrete` takes no masks. "
            "Wrap with `tfprune.layers.WeightMask` for masks that a callback sets."
        )

    def get_config(self):
        return {
            **super().get_config(),
            "strength": self.strength,
            "drop_rate": self.drop_rate,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable("tfprune")
class ExpectedGates(keras.regularizers.Regularizer):
    """The expected number of hard concrete gates that are not zero, times a strength.

    Args:
        strength: float.
    """

    def __init__(self, strength):
        self.strength = strength

    def __call__(self, x):
        open_ = ops.sigmoid(x - BETA * math.log(-GAMMA / ZETA))
        return self.strength * ops.sum(open_)

    def get_config(self):
        return {"strength": self.strength}


class _InRange(keras.constraints.Constraint):
    """Keeps gates from being so certain that no gradient moves them any more."""

    def __call__(self, w):
        return ops.clip(w, _LOWEST, _HIGHEST)


def _stretched(s):
    return ops.clip(s * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)
