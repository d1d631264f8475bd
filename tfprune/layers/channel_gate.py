"""ChannelGate: a trainable scale and a mask on the channels of a layer."""

import keras
import numpy as np
from keras import layers, ops

from tfprune.layers.kernels import DEPTHWISE, SEPARABLE, TRANSPOSED
from tfprune.layers.swapping import SwapWrapper, attribute_of, load_layer

_PLAIN = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D)
GATED_TYPES = (
    layers.BatchNormalization,
    *_PLAIN,
    *TRANSPOSED,
    *DEPTHWISE,
    *SEPARABLE,
)

# Beyond this ratio beta / gamma, scale and shift cannot share one gate (paper 002
# clips the ratio there, which changes the outputs of its own baseline).
MAX_SHIFT = 10.0


@keras.saving.register_keras_serializable("tfprune")
class ChannelMask(keras.layers.Layer):
    """The mask of one or several gates: True where a channel stays.

    Gates of layers that carry the same channels share one `ChannelMask`, also after
    saving and loading.

    Args:
        size: number of channels.
    """

    def __init__(self, size: int, **kwargs):
        super().__init__(**kwargs)
        self.size = size
        self.mask = self.add_weight(
            shape=(size,),
            dtype="bool",
            initializer=_all_true,
            trainable=False,
            autocast=False,
            name="mask",
        )
        self.built = True

    def factors(self):
        """Returns 1 for channels that stay and 0 for others, a float32 tensor."""
        return ops.cast(self.mask, "float32")

    def get_config(self):
        return {**super().get_config(), "size": self.size}


def _all_true(shape, dtype=None):
    return ops.ones(shape, dtype="bool")


@keras.saving.register_keras_serializable("tfprune")
class ChannelGate(SwapWrapper):
    """Gates the output channels of a layer: a trainable scale times a mask.

    On a BatchNormalization the gate is the layer's own scale factor and multiplies
    the shift too: `y = gate * mask * (base * x_hat + shift)`, so a closed channel is
    exactly zero. The layer's `gamma` becomes the gate and its `beta` the shift
    beta / gamma, with base 1; where |beta / gamma| > 10 the gate is 1 and base and
    shift are gamma and beta. On convolutions and dense layers the gate starts at 1
    and multiplies kernel and bias, before a fused activation. Wrapping never changes
    an output.

    Args:
        layer: BatchNormalization, Dense, or a convolution of any kind; if it is
            built, its scale and shift are taken over in place.
        mask: `ChannelMask` of the output channels, possibly shared with other
            gates. By default one of its own; False for no output gate.
        input_masks: `{"attribute:axis": ChannelMask}`: masks on kernel axes that read
            channels which something in between made non-zero, such as
            `{"_kernel:0": mask}` on a Dense. These work on layers of any type.
        gate_regularizer: regularizer of the gate of a layer without a scale of its
            own.
        gate_constraint: constraint of the gate of such a layer.

    Source: You et al., "Gate Decorator", 2019, section 3.1.

    Example:

    ```python
    model = tfprune.prune_wrap(model, tfprune.layers.ChannelGate)
    ```
    """

    def __init__(
        self,
        layer,
        mask=None,
        input_masks=None,
        gate_regularizer=None,
        gate_constraint=None,
        **kwargs,
    ):
        if mask is not False and not isinstance(layer, GATED_TYPES):
            names = ", ".join(each.__name__ for each in GATED_TYPES)
            raise ValueError(
                f"`layer` must be one of {names}, or `mask` False. Received: {layer!r} "
                f"(of type {type(layer).__name__})"
            )
        self.gate_regularizer = keras.regularizers.get(gate_regularizer)
        self.gate_constraint = keras.constraints.get(gate_constraint)
        input_masks = input_masks or {}
        self._places = tuple(input_masks)
        # Keras adopts layers in `build` only, which may run at once or later.
        object.__setattr__(self, "_given", (mask, list(input_masks.values())))
        super().__init__(layer, **kwargs)

    def build(self, input_shape=None):
        super().build(input_shape)
        mask, self.input_masks = self._given
        object.__delattr__(self, "_given")
        if mask is None:
            mask = ChannelMask(self.num_channels, name="output_mask")
        self.output_mask = mask or None
        self.gate = self.base = None
        if self.output_mask is not None:
            self._build_gate()

    def _build_gate(self):
        settings = {"shape": (self.num_channels,), "autocast": False}
        settings["initializer"] = "ones"
        if self._scale is None:
            self.gate = self.add_weight(
                name="gate",
                regularizer=self.gate_regularizer,
                constraint=self.gate_constraint,
                **settings,
            )
        else:
            self.base = self.add_weight(name="base", trainable=False, **settings)
            self._take_over_scale()

    def _take_over_scale(self):
        """Turns gamma and beta into gate, base and shift; no output changes."""
        gamma = self.layer.gamma.numpy()
        beta = (
            np.zeros_like(gamma) if self.layer.beta is None else self.layer.beta.numpy()
        )
        shared = (gamma != 0) & (np.abs(beta) <= MAX_SHIFT * np.abs(gamma))
        divisor = np.where(shared, gamma, 1)
        self.base.assign(np.where(shared, 1, gamma))
        self.layer.gamma.assign(divisor)
        if self.layer.beta is not None:
            self.layer.beta.assign(beta / divisor)

    @property
    def _scale(self):
        """The scale variable of a normalization, None for other layers."""
        return getattr(self.layer, "gamma", None)

    @property
    def num_channels(self) -> int:
        layer = self.layer
        if isinstance(layer, layers.BatchNormalization):
            return layer.moving_mean.shape[0]
        if isinstance(layer, DEPTHWISE):
            return layer.kernel.shape[-2] * layer.kernel.shape[-1]
        variable, axis = _output_kernel(layer)
        return variable.shape[axis]

    @property
    def gate_variable(self):
        """The trainable scale: `gate`, or the scale of a normalization as such."""
        return self._scale if self.gate is None else self.gate

    def factors(self):
        """Returns gate times mask of every output channel, a tensor."""
        gate = ops.convert_to_tensor(self.gate_variable)
        return gate * ops.cast(self.output_mask.factors(), gate.dtype)

    def scales(self):
        """Returns what every output channel is multiplied with in all, a tensor."""
        factors = self.factors()
        return factors if self.base is None else factors * self.base

    def norms(self):
        """Returns the norm of the weights that the mask of every channel multiplies."""
        if isinstance(self.layer, layers.BatchNormalization):
            base = 1.0 if self.base is None else ops.convert_to_tensor(self.base)
            shift = 0.0 if self.layer.beta is None else self.layer.beta
            weights = ops.sqrt(ops.square(base) + ops.square(shift))
        else:
            weights = _output_norms(self.layer)
        return ops.abs(self.gate_variable) * weights

    def masked(self) -> list:
        """Returns `(variable, shape)` of the weights that the mask multiplies.

        Reshaped to this, the mask stands beside the variable.
        """
        own, layer = [(self.gate_variable, (-1,))], self.layer
        if isinstance(layer, layers.BatchNormalization):
            shift = layer.beta
        else:
            variable, axis = _output_kernel(layer)
            shape = [1] * len(variable.shape)
            shape[axis] = -1
            is_depthwise = isinstance(layer, DEPTHWISE)
            own.append((variable, variable.shape[-2:] if is_depthwise else shape))
            shift = layer.bias
        return own if shift is None else [*own, (shift, (-1,))]

    @property
    def input_places(self) -> dict:
        """`{(dotted attribute, axis): ChannelMask}` of the masks on what is read."""
        places = (place.rsplit(":", 1) for place in self._places)
        return {
            (name, int(axis)): mask
            for (name, axis), mask in zip(places, self.input_masks, strict=True)
        }

    def swaps(self) -> dict:
        """Returns `{dotted attribute: value}` of the layer with gate and masks inside."""
        values = {}
        if self.output_mask is not None:
            values.update(self._gated(self.factors()))
        for (name, axis), mask in self.input_places.items():
            variable = values.get(name)
            if variable is None:
                owner, attribute = self._find(name)
                variable = owner[attribute]
            values[name] = _scaled(variable, mask.mask, axis)
        return values

    def _gated(self, factors) -> dict:
        if not isinstance(self.layer, layers.BatchNormalization):
            return scaled_outputs(self.layer, factors)
        shift = _shifted(self.layer, "beta", factors)
        return {"gamma": self.scales(), "scale": True, **shift}

    def get_config(self):
        return {
            **super().get_config(),
            "mask": serialize_shared(self.output_mask) if self.output_mask else False,
            "input_masks": {
                place: serialize_shared(mask)
                for place, mask in zip(self._places, self.input_masks, strict=True)
            },
            "gate_regularizer": keras.regularizers.serialize(self.gate_regularizer),
            "gate_constraint": keras.constraints.serialize(self.gate_constraint),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        def load(value):
            return load_layer(value, custom_objects)

        masks = {place: load(each) for place, each in config["input_masks"].items()}
        mask = load(config["mask"]) if config["mask"] else False
        loaded = {"layer": load(config["layer"]), "mask": mask, "input_masks": masks}
        return cls(**{**config, **loaded})


def scaled_outputs(layer, factors) -> dict:
    """Returns `{attribute: tensor}` of a layer that makes its channels times `factors`.

    Args:
        layer: convolution or dense layer.
        factors: tensor of shape `(output channels,)`; a fused activation comes after.
    """
    variable, axis = _output_kernel(layer)
    tensor = ops.convert_to_tensor(variable)
    if isinstance(layer, DEPTHWISE):
        by_channel = ops.reshape(factors, tensor.shape[-2:])
        scaled = tensor * ops.cast(by_channel, tensor.dtype)
    else:
        scaled = _scaled(tensor, factors, axis)
    return {attribute_of(layer, variable): scaled, **_shifted(layer, "bias", factors)}


def _shifted(layer, name: str, factors) -> dict:
    shift = getattr(layer, name)
    return {} if shift is None else {name: _scaled(shift, factors, -1)}


def serialize_shared(mask):
    """Returns the config of an object that several layers share."""
    config = keras.saving.serialize_keras_object(mask)
    # Keras keeps the first occurrence of a shared object without an id, so the
    # second could not find it: every occurrence carries the id here.
    return {**config, "shared_object_id": id(mask)}


def _scaled(variable, factors, axis: int):
    tensor = ops.convert_to_tensor(variable)
    shape = [1] * len(tensor.shape)
    shape[axis] = -1
    return tensor * ops.cast(ops.reshape(factors, shape), tensor.dtype)


def _output_kernel(layer):
    """Returns the kernel that makes the output channels and their axis on it."""
    if isinstance(layer, SEPARABLE):
        return layer.pointwise_kernel, -1
    return layer.kernel, -2 if isinstance(layer, TRANSPOSED) else -1


def _output_norms(layer):
    """Returns the norm of the weights that make every output channel, a tensor."""
    variable, axis = _output_kernel(layer)
    squares = ops.square(ops.convert_to_tensor(variable))
    if isinstance(layer, DEPTHWISE):
        sums = ops.reshape(ops.sum(squares, tuple(range(squares.ndim - 2))), (-1,))
    else:
        axis %= squares.ndim
        sums = ops.sum(squares, tuple(a for a in range(squares.ndim) if a != axis))
    return ops.sqrt(sums if layer.bias is None else sums + ops.square(layer.bias))
