"""TrainableMask: a mask that is learned, cut out of a trainable score per weight."""

import dataclasses

import keras
from keras import ops

from tfprune import straight_through
from tfprune.checks import check_number
from tfprune.layers.channel_gate import ChannelMask
from tfprune.layers.kernel_gate import KernelGate

# How far from the threshold a score is put that is opened or closed by hand.
_CLEAR = 1e-3


@dataclasses.dataclass(frozen=True)
class _Learning:
    """How scores learn: the arguments that all trainable masks share."""

    estimator: str
    rule: str
    negative_slope: float
    initial: float

    def __post_init__(self):
        known = {
            "estimator": straight_through.ESTIMATORS,
            "rule": straight_through.RULES,
        }
        for name, allowed in known.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"`{name}` must be one of {allowed}. "
                    f"Received: {name}={getattr(self, name)!r}"
                )
        for name in ("negative_slope", "initial"):
            why = "a score that is not is closed, and a slope of zero would leave it so"
            check_number(name, getattr(self, name), "(0, inf)", why)

    def sloped(self, values, scores):
        """Returns values times the estimator's derivative at `scores`."""
        return straight_through.sloped(
            values, scores, self.estimator, self.negative_slope
        )


@keras.saving.register_keras_serializable("tfprune")
class TrainableMask(KernelGate):
    """Masks the weights of any layer by scores that are trained: open above zero.

    Every weight w has a score m, the paper's auxiliary parameter, and runs as
    `w * (m > 0)`. A closed weight keeps its value, and comes back when its score
    rises again. Scores are trained by `tfprune.callbacks.MaskTraining`, with a rule
    and a learning rate of their own; in a `fit` without it they stand still, and the
    open weights train. Wrapping changes no output.

    With `prune_wrap(model, TrainableMask, unit="channel")` there is one score for each
    channel of a group instead, inside a `ChannelGate`.

    Args:
        layer: a layer of any type with kernels.
        estimator: what stands in for the derivative of the mask: `"softplus"` (its
            derivative), `"linear"`, `"leaky_relu"` or `"softplus_value"`.
        rule: `"modified"` (the paper's: a score moves by the sign of its weight times
            the gradient, whatever the weight's size) or `"coarse"` (the chain rule).
        negative_slope: float above zero, of `"leaky_relu"`. Defaults to 0.2.
        initial: float above zero. Score at the start. Defaults to 0.5.
        kernels: dotted attributes of the kernels to mask. By default all of them.

    Raises:
        ValueError: for arguments out of range, or a layer without such a kernel.

    Source: Xiao et al., "AutoPrune: automatic network pruning by regularizing
    auxiliary parameters", 2019, equation 7. The paper does not give the initial score.

    Example:

    ```python
    model = tfprune.prune_wrap(model, tfprune.layers.TrainableMask)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(train, epochs=30, callbacks=[tfprune.callbacks.MaskTraining()])
    sparse = tfprune.strip(model)
    ```
    """

    def __init__(
        self,
        layer,
        estimator="softplus",
        rule="modified",
        negative_slope=0.2,
        initial=0.5,
        kernels=None,
        **kwargs,
    ):
        self.learning = _Learning(estimator, rule, negative_slope, initial)
        # Whether gradients of scores come without the estimator's derivative, because
        # what trains them applies it, to them and to its push at once.
        self.leaves_slope = False
        super().__init__(layer, kernels, **kwargs)

    def build_gate(self):
        self.scores = [
            self._add_score(index, kernel)
            for index, kernel in enumerate(self.gated_kernels.values())
        ]

    def _add_score(self, index, kernel):
        initializer = keras.initializers.Constant(self.learning.initial)
        score = self.add_gate_weight(
            "score", index, kernel, dtype="float32", initializer=initializer
        )
        _set_aside(self, score)
        return score

    def gated(self, index, kernel):
        learning = self.learning
        return straight_through.masked(
            kernel,
            self.scores[index],
            "linear" if self.leaves_slope else learning.estimator,
            learning.rule,
            learning.negative_slope,
        )

    def mask(self, index):
        return ops.convert_to_tensor(self.scores[index]) > 0

    def set_mask(self, index, mask):
        set_scores(self.scores[index], mask)

    def get_config(self):
        return {**super().get_config(), **dataclasses.asdict(self.learning)}


@keras.saving.register_keras_serializable("tfprune")
class TrainableChannelMask(ChannelMask):
    """The mask of the gates of one group's channels, cut out of trainable scores.

    Args:
        size: number of channels.
        estimator: see `TrainableMask`.
        rule: `"modified"`: what moves a score is the gradient along the weights that it
            gates, over their norm, which for one weight is the paper's rule; or
            `"coarse"`: the gradient as such.
        negative_slope: see `TrainableMask`.
        initial: see `TrainableMask`.
    """

    def __init__(
        self,
        size,
        estimator="softplus",
        rule="modified",
        negative_slope=0.2,
        initial=0.5,
        **kwargs,
    ):
        super().__init__(size, **kwargs)
        self.learning = _Learning(estimator, rule, negative_slope, initial)
        self.leaves_slope = False
        self.scores = self.add_weight(
            shape=(size,),
            dtype="float32",
            initializer=keras.initializers.Constant(initial),
            autocast=False,
            name="score",
        )
        _set_aside(self, self.scores)

    def factors(self):
        learning = self.learning
        estimator = "linear" if self.leaves_slope else learning.estimator
        return straight_through.passing(
            self.mask, self.scores, estimator, learning.negative_slope
        )

    def get_config(self):
        return {**super().get_config(), **dataclasses.asdict(self.learning)}


def _set_aside(layer, score) -> None:
    """Makes a score no business of the model's optimizer.

    It is made to train, as TensorFlow never lets a variable train that was not.
    """
    score.trainable = False
    # Among those that train, `layer.trainable = True` would make it train.
    layer._untrack_variable(score)
    layer._track_variable(score)


def set_scores(scores, mask) -> None:
    """Moves scores to the other side of the threshold where a mask asks for it.

    Args:
        scores: variable.
        mask: bool array of its shape, True = keep.
    """
    values = ops.convert_to_tensor(scores)
    away = ops.where(mask, _CLEAR, -_CLEAR)
    scores.assign(ops.where((values > 0) == mask, values, away))
