"""The base of regularizers over the scales of all layers together."""

import abc

import keras
from keras import ops

from tfprune.checks import check_number


class OverScales(keras.regularizers.Regularizer, abc.ABC):
    """Base of the regularizers over all scale factors of a model, as one vector.

    Subclasses define `term`. Called on a tensor, it returns the regularizer's value
    there; Keras would call it on the scales of one layer at a time, which raises:
    `tfprune.regularize` puts it into a model.

    Args:
        strength: float, at least 0: what the term is multiplied with in the loss.

    Attributes:
        clips: whether all scales of the model are held in `[0, upper]`.
        pull: about the gradient of the term at a small scale, None if it depends.
    """

    clips = False
    upper = None
    pull: float | None = None

    def __init__(self, strength: float):
        check_number("strength", strength, "[0, inf)")
        self.strength = float(strength)

    @abc.abstractmethod
    def term(self, scales):
        """Returns the scalar that is multiplied with the strength.

        Args:
            scales: float32 tensor of shape `(scale factors of the model,)`.
        """

    def __call__(self, x):
        if isinstance(x, keras.Variable):
            name = type(self).__name__
            raise ValueError(
                f"`{name}` is about the scales of all layers together, and Keras shows "
                f"it one layer's. Received: variable {x.path!r}. Leave it out of the "
                f"layers and call `model = tfprune.regularize(model, {name}(...))`."
            )
        if not self.strength:
            return ops.zeros(())
        return self.strength * self.term(ops.reshape(ops.cast(x, "float32"), (-1,)))

    def get_config(self):
        return {"strength": self.strength}
