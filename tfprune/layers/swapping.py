"""The one mechanism by which gates and masks act inside a layer."""

import abc
import contextlib
import functools

import keras
from keras.src.backend.common.global_state import get_global_attribute

from tfprune.layers.kernels import altered_kernel, owner_of


def load_layer(config, custom_objects=None):
    """Returns the layer of a config, or what is one already."""
    if isinstance(config, keras.layers.Layer):
        return config
    return keras.saving.deserialize_keras_object(config, custom_objects=custom_objects)


class SwapWrapper(keras.layers.Wrapper):
    """Runs a layer with tensors in the place of some of its attributes.

    Base of all gates. During `call` each attribute named by `swaps` holds the value
    given there, such as a masked kernel; afterwards it is the layer's own Variable
    again. Losses, statistics and seeds of the inner layer keep working, whatever
    its type.

    Args:
        layer: the layer to wrap.
    """

    def __init__(self, layer, **kwargs):
        # Keras reads the signature of `call` in its constructor, and replays recorded
        # calls with every argument: the wrapper has to look like the layer inside.
        object.__setattr__(self, "call", self._mirror(layer))
        kwargs.setdefault("name", layer.name)
        kwargs.setdefault("dtype", layer.dtype_policy)
        kwargs.setdefault("trainable", layer.trainable)
        # Keras applies it around `call`, which is the wrapper's.
        kwargs.setdefault("activity_regularizer", layer.activity_regularizer)
        super().__init__(layer, **kwargs)
        self.supports_masking = layer.supports_masking
        if layer.built:
            self.build()

    def _mirror(self, layer):
        @functools.wraps(layer.call)
        def call(*args, **kwargs):
            return self._call_swapped(*args, **kwargs)

        return call

    @abc.abstractmethod
    def swaps(self) -> dict:
        """Returns `{dotted attribute of the layer: value during the call}`."""

    def _call_swapped(self, *args, **kwargs):
        swaps = self._found_swaps()
        own = [(owner, name, owner[name]) for owner, name, _ in swaps]
        try:
            # Writing to the dict goes around the trackers, which would adopt the
            # tensors.
            for owner, name, value in swaps:
                owner[name] = value
            return self.layer.call(*args, **kwargs)
        finally:
            for owner, name, value in own:
                owner[name] = value

    def _found_swaps(self) -> list:
        """Returns `(dict that holds an attribute, its name there, value)` of all swaps.

        Raises:
            ValueError: if a layer computes with something else than what is replaced.
        """
        values = self.swaps()
        for name in values:
            why = altered_kernel(owner_of(self.layer, name))
            if why is not None:
                raise ValueError(
                    f"Layer {self.layer.name!r} was changed inside its gate, which "
                    f"cannot act any more: {why}. Call `tfprune.compact` or "
                    "`tfprune.strip` first, and change what they return."
                )
        return [(*self._find(name), value) for name, value in values.items()]

    def baked(self) -> dict:
        """Returns `{id(variable): tensor}` of the variables that are replaced."""
        return {id(owner[name]): v for owner, name, v in self._found_swaps()}

    def _find(self, dotted: str) -> tuple[dict, str]:
        """Returns the dict that holds an attribute, and its name there."""
        return vars(owner_of(self.layer, dotted)), dotted.split(".")[-1]

    def build(self, input_shape=None):
        if not self.layer.built:
            self.layer.build(input_shape)
            self.layer.built = True
        self.input_spec = self.layer.input_spec
        self.built = True

    def get_build_config(self):
        return None

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def compute_output_spec(self, *args, **kwargs):
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_mask(self, *args, **kwargs):
        return self.layer.compute_mask(*args, **kwargs)


@contextlib.contextmanager
def replaced(owner, name: str, value):
    """Gives an object another attribute or method while the context lasts.

    Writing to its dict goes around Keras's trackers, which would adopt the value.

    Args:
        owner: layer, metric or optimizer.
        name: what the attribute is called.
        value: what it is for the time.
    """
    own = vars(owner)
    before = {name: own[name]} if name in own else {}
    own[name] = value
    try:
        yield
    finally:
        del own[name]
        own.update(before)


def in_training() -> bool:
    """Returns whether the call of a layer that is going on is one in training.

    Also for layers whose `call` is not told.
    """
    context = get_global_attribute("current_call_ctx")
    return bool(context is not None and context.get_value("training"))


def attribute_of(layer, variable) -> str | None:
    """Returns the dotted name under which a layer or a layer in it holds a variable."""
    for name, value in vars(layer).items():
        if value is variable:
            return name
    for name, value in vars(layer).items():
        if isinstance(value, keras.layers.Layer):
            inner = attribute_of(value, variable)
            if inner is not None:
                return f"{name}.{inner}"
    return None
