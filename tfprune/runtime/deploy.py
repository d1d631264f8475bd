"""Deployed models: what runtime gates close is not computed."""

import warnings
from collections import Counter
from dataclasses import dataclass, replace

import keras
import numpy as np
from keras import layers

from tfprune.checks import check_number
from tfprune.graph.flows import is_elementwise, keeps_zero
from tfprune.graph.nodes import (
    as_functional,
    fill_in,
    input_structure,
    nodes_in_order,
    output_structure,
    tree,
)
from tfprune.graph.shapes import assumed_shapes
from tfprune.layers import RuntimeGate
from tfprune.layers.narrow import Narrow
from tfprune.layers.one_image import EachImage, OneImage
from tfprune.layers.runtime_choice import RuntimeChoice
from tfprune.layers.runtime_conv import OF_CONVOLUTIONS, RuntimeConv2D, Widen
from tfprune.runtime.buckets import bucketed
from tfprune.runtime.gates import gated_nodes, gates_of
from tfprune.surgery.compact import compact
from tfprune.surgery.rebuild import copy_model, copy_operation_like, copy_state
from tfprune.surgery.rewrites import faster

_MODES = ("mask", "block", "prefix", "bucket")
# Measured by `benchmarks/runtime_pruning.py --only guard`.
_OVERHEADS = {"block": 60.0, "prefix": 20.0}
_PASSING = (
    layers.AveragePooling2D,
    layers.MaxPooling2D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling2D,
    layers.ZeroPadding2D,
    layers.Dropout,
    layers.SpatialDropout2D,
    layers.Identity,
)


def deploy(
    model: keras.Model,
    mode: str = "block",
    batches: bool = False,
    overhead: float | None = None,
) -> keras.Model:
    """Returns a model for inference that skips what its runtime gates close.

    It computes what the model with gates computes, image by image. What is pruned for
    all images is compacted first, and normalizations move into convolutions.

    Args:
        model: model with `RuntimeGate`s, trained; not changed.
        mode: how work is skipped.

            - `"block"` gathers the weights of the chosen blocks of channels, for gates
              with `selection="top"`; `block=16` suits it.
            - `"prefix"` slices the first channels, for gates with
              `selection="prefix"`.
            - `"bucket"` holds a narrow model for every choice there is and runs one,
              for a policy with `per_network=True, agent="groups"`.
            - `"mask"` computes everything, and saves nothing.
        batches: whether batches of several images are run, one image after the other.
            Otherwise a batch must be one image. Defaults to False.
        overhead: float. What choosing the weights of a layer costs, as the number of
            places of its map at which it could convolve with all of them instead. Where
            that is not won back, on small maps and where much is kept, a layer computes
            all channels and masks them. By default 60 for blocks and 20 for the first
            channels; 0 skips wherever anything is closed. Maps whose sizes the model
            leaves open count as those of images of 224 by 224.

    Returns:
        A new model, uncompiled, not to be trained. `tfprune.cost` counts what it does
        for an image that needs all channels, `tfprune.runtime.work` says what others do.

    Raises:
        ValueError: if there are no gates, they are not of the kind that the mode needs,
            a normalization before them cannot move into its convolution, `overhead` is
            below 0, or a static part is not settled yet (train with `PolicyTraining`
            past its `settle`).

    Example:

    ```python
    model = tfprune.prune_wrap(
        base, tfprune.layers.RuntimeGate, runtime_ratio=0.5, block=16
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(train, epochs=40, callbacks=[tfprune.callbacks.PolicyTraining(train)])
    fast = tfprune.runtime.deploy(tfprune.compact(model), mode="block")
    tfprune.export(fast, "fast")
    ```
    """
    gates = gates_of(model)
    _check(model, gates, mode)
    if overhead is not None:
        check_number("overhead", overhead, "[0, inf)")
    plain = faster(compact(model), small_maps=False)
    if mode == "mask":
        return plain
    if mode == "bucket":
        new = bucketed(plain)
    else:
        overhead = _OVERHEADS[mode] if overhead is None else overhead
        deployment = _Deployment(plain, mode, overhead)
        new = deployment.model
        if not deployment.skips:
            warnings.warn(
                "No layer skips work: their maps are too small, or too much is kept, to "
                f"win back what choosing weights costs. Received: overhead={overhead}.",
                stacklevel=2,
            )
    return _for_images(new, batches)


def _check(model, gates, mode) -> None:
    if mode not in _MODES:
        raise ValueError(f"`mode` must be one of {_MODES}. Received: mode={mode!r}")
    if not gates:
        raise ValueError(
            f"Model {model.name!r} has no runtime gates. Wrap it first: "
            "`tfprune.prune_wrap(model, tfprune.layers.RuntimeGate, keep_ratio=0.5)`."
        )
    gate = gates[0]
    if gate.has_static_part and not bool(gate.policy.settled.numpy()):
        raise ValueError(
            "What is stored changes from image to image yet: the static part is not "
            "settled. Train with `tfprune.callbacks.PolicyTraining`, which settles it."
        )
    needs = {"block": "top", "prefix": "prefix", "bucket": "prefix"}
    if gate.selection != needs.get(mode, gate.selection):
        raise ValueError(
            f"mode={mode!r} needs gates with selection={needs[mode]!r}. Received: "
            f"selection={gate.selection!r}"
        )
    if mode == "bucket":
        policy = gate.policy
        if policy is None or not policy.per_network or policy.agent_type != "groups":
            raise ValueError(
                'mode="bucket" needs one choice for each image: gates with '
                'per_network=True and agent="groups".'
            )


def _for_images(model, batches: bool):
    """Returns a model that takes a batch, or that refuses one of several images."""
    inputs = _new_inputs(as_functional(model), None if batches else 1)
    layer = EachImage(model) if batches else OneImage(model)
    return keras.Model(inputs, layer(inputs), name=model.name)


def _new_inputs(functional, images=None):
    """Returns new inputs in the structure of those of a model."""
    return tree.map_structure(
        lambda x: keras.Input(x.shape[1:], images, x.dtype, name=x.name),
        input_structure(functional),
    )


@dataclass(frozen=True)
class _Value:
    """What stands for a tensor of the old model: a map, whole or narrow."""

    tensor: object
    narrow: Narrow | None = None
    numbers: object = None
    keep: float = 1.0

    @property
    def arguments(self) -> tuple:
        return (self.tensor, self.numbers)


class _Deployment:
    """One walk over a model with gates, in which a new one is made."""

    def __init__(self, model, mode: str, overhead: float):
        self._mode, self._overhead, self.skips = mode, overhead, False
        self._widened, self._copies = {}, {}
        self._hidden = None
        functional = as_functional(model)
        _, self._shapes = assumed_shapes(functional)
        gated = gated_nodes(functional)
        _check_between(gated, mode)
        self._makers = {id(node): before[-1] for node, before in gated}
        self._absorbed = {id(each) for _, before in gated for each in before}
        inputs = _new_inputs(functional)
        pairs = zip(functional.inputs, tree.flatten(inputs), strict=True)
        self._values = {id(old): _Value(new) for old, new in pairs}
        nodes = nodes_in_order(functional)
        self._calls = Counter(id(node.operation) for node in nodes)
        for node in nodes:
            self._visit(node)
        outputs = tree.map_structure(self._whole, output_structure(functional))
        self.model = keras.Model(inputs, outputs, name=model.name)

    def _visit(self, node) -> None:
        operation = node.operation
        if id(node) in self._absorbed:
            return
        if isinstance(operation, RuntimeGate):
            self._gated(node)
            return
        value = self._values.get(id(node.input_tensors[0]))
        is_narrow = len(node.input_tensors) == 1 and value.narrow is not None
        if is_narrow and self._reads_narrow(operation):
            conv = self._convolution(operation, value)
            self._values[id(node.outputs[0])] = _Value(conv(*value.arguments))
        elif is_narrow and _passes(operation):
            tensor = self._copy(operation)(value.tensor)
            self._values[id(node.outputs[0])] = replace(value, tensor=tensor)
        else:
            self._as_it_was(node)

    def _reads_narrow(self, operation) -> bool:
        is_plain = type(operation) is layers.Conv2D and operation.groups == 1
        return is_plain and self._calls[id(operation)] == 1

    def _as_it_was(self, node) -> None:
        tensors = {id(x): self._whole(x) for x in node.input_tensors}
        args, kwargs = fill_in(node, tensors)
        outputs = self._copy(node.operation)(*args, **kwargs)
        for old, new in zip(node.outputs, tree.flatten(outputs), strict=True):
            self._values[id(old)] = _Value(new)

    def _whole(self, old):
        """Returns the whole map for a tensor of the old model."""
        value = self._values[id(old)]
        if value.narrow is None:
            return value.tensor
        if id(old) not in self._widened:
            self._widened[id(old)] = Widen(value.narrow)(*value.arguments)
        return self._widened[id(old)]

    def _copy(self, operation):
        if id(operation) not in self._copies:
            is_model = isinstance(operation, keras.Model)
            twin = copy_model(operation) if is_model else copy_operation_like(operation)
            self._copies[id(operation)] = twin
            if not is_model and getattr(operation, "variables", ()):
                twin.build_from_config(operation.get_build_config())
                copy_state(operation, twin)
        return self._copies[id(operation)]

    def _gated(self, node) -> None:
        gate, maker = node.operation, self._makers[id(node)]
        value = self._values[id(maker.input_tensors[0])]
        places = int(np.prod(self._shapes[id(node.input_tensors[0])][1:-1]))
        conv = self._convolution(maker.operation, value, gate, places)
        arguments = list(value.arguments)
        is_told = conv.choice.hidden_size > 0
        if is_told and self._hidden is not None:
            arguments.append(self._hidden)
        outputs = [*tree.flatten(conv(*arguments))]
        if is_told:
            self._hidden = outputs.pop()
        numbers = outputs[1] if len(outputs) > 1 else None
        keep = _share(gate) if conv.makes else 1.0
        made = _Value(outputs[0], conv.makes, numbers, keep)
        self._values[id(node.outputs[0])] = made

    def _convolution(self, old, value: _Value, gate=None, places=0):
        """Returns the new convolution, with the weights of the old one."""
        settings = {"reads": value.narrow}
        vectors = [np.zeros(old.filters) if old.bias is None else old.bias.numpy()]
        if gate is not None:
            settings.update(choice=RuntimeChoice.of(gate), block=gate.block)
            settings["makes"] = self._made(old, value, gate, places)
            settings["looks_back"] = gate.looks_back
            if not gate.predicts:
                settings["places"] = gate.ranks().tolist()
            else:
                vectors.append(gate.beta.numpy())
            if gate.has_static_part:
                vectors.append(gate.static_scores().numpy())
        conv = RuntimeConv2D(
            *(getattr(old, name) for name in OF_CONVOLUTIONS),
            old.kernel.shape[-2],
            weighted=len(vectors) - 1,
            name=old.name,
            dtype=old.dtype_policy,
            **settings,
        )
        conv.assign(old.kernel.numpy(), np.stack(vectors))
        return conv

    def _made(self, old, value: _Value, gate, places: int) -> Narrow | None:
        """Returns what a convolution makes of its channels, None if it makes all."""
        share = value.keep * _share(gate)
        if share * (places + self._overhead) >= places:
            return None
        self.skips = True
        if self._mode == "block":
            return Narrow(old.filters, gate.block)
        return Narrow(old.filters, 0, tuple(gate.ranks().tolist()))


def _check_between(gated, mode: str) -> None:
    """Raises unless all between convolutions and gates moved into the former."""
    between = [node.operation for _, before in gated for node in before[:-1]]
    names = [each.name for each in between if type(each) is not layers.Identity]
    if names:
        raise ValueError(
            f"mode={mode!r} needs gates right behind their convolutions, or behind a "
            f"plain BatchNormalization that can move into these. Received: {names}, "
            "which cannot: the convolution has an activation or LoRA, or it is no "
            'BatchNormalization. Use mode="mask", wrap anew, or load the weights, into '
            "which Keras merges LoRA, into the model without it."
        )


def _share(gate) -> float:
    """Returns the share of what is stored that is expected to stay."""
    return gate.expected_count / int(gate.limit)


def _passes(operation) -> bool:
    """Whether an operation treats channels one by one and leaves zeros zero."""
    if isinstance(operation, _PASSING):
        return True
    if getattr(operation, "variables", ()) or isinstance(operation, keras.Model):
        return False
    return is_elementwise(operation) and keeps_zero(operation)
