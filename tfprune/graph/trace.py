"""Tracing: labels for every channel of a model, and the equations between them.

Every axis of a tensor is plain (None) or carries one integer label per index.
A rule per layer type states which labels are the same; union-find does the rest.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace

import keras
import numpy as np

from tfprune.graph.atoms import Atoms
from tfprune.graph.call import Binding, Call, MacTerm, Tensor
from tfprune.graph.nodes import (
    Functional,
    as_functional,
    fill_in,
    inputs_in_order,
    is_recorded,
    model_of_steps,
    nodes_in_order,
    tree,
)
from tfprune.graph.opening import Opened
from tfprune.graph.registry import find_rule
from tfprune.graph.shapes import assumed_shapes, closed_shapes, rows_of, shapes_for
from tfprune.layers.kernels import altered_kernel


class Trace:
    """One walk over a model with labels instead of numbers."""

    def __init__(
        self,
        model,
        rule_of: Callable,
        open_call: Callable,
        normalization: str,
        residual: str,
    ):
        self.normalization = normalization
        self.residual = residual
        self.atoms = Atoms()
        self.calls: list[Call] = []
        self.bindings: dict[tuple[int, int], Binding] = {}
        self.locks: list[tuple[np.ndarray, str]] = []
        self.terms: list[MacTerm] = []
        self.skipped: dict[str, str] = {}
        self.assumed_shapes: dict[str, tuple] = {}
        self.opened: dict[int, Opened] = {}
        self._rule_of = rule_of
        self._open_call = open_call
        self._first_calls: dict[int, Call] = {}
        self._nodes_of: dict[int, dict] = {}
        self._nested: dict[int, tuple] = {}
        functional = as_functional(model)
        sizes, shapes = assumed_shapes(functional)
        batches = {shape[0] for shape in sizes}
        self._batch = None if None in batches else max(batches, default=None)
        self.inputs = [self._input(*each) for each in zip(functional.inputs, sizes)]
        self._kept: dict[int, str] = {}
        self.outputs = self._walk(functional, self.inputs, "", shapes)
        for binding in self.bindings.values():
            # Layers that share a variable may be called in any order.
            if id(binding.variable) in self._kept:
                self.lock(binding.labels, self._kept[id(binding.variable)])
        for output in self.outputs:
            for axis in output.labeled_axes:
                self.lock(output.labels[axis], "an output of the model")

    # Equations -----------------------------------------------------------------

    def labels_of(self, variable, axis: int):
        binding = self.bindings.get((id(variable), axis % len(variable.shape)))
        return None if binding is None else binding.labels

    def make(self, path: str, variable, axis: int):
        labels = self.labels_of(variable, axis)
        size = variable.shape[axis]
        if labels is None and size > 1:
            labels = self.atoms.new(size)
            self.bind(Binding(path, variable, axis, labels, read=False))
        return labels

    def bind(self, binding: Binding) -> None:
        axis = binding.axis % len(binding.variable.shape)
        key = (id(binding.variable), axis)
        if key in self.bindings:
            self.tie(
                self.bindings[key].labels,
                binding.labels,
                reason=f"{binding.path!r} is also used on channels that are kept",
            )
        else:
            self.bindings[key] = replace(binding, axis=axis)

    def tie(self, *labels, reason: str):
        labeled = [each for each in labels if each is not None]
        for other in labeled[1:]:
            self.atoms.tie(labeled[0], other)
        if labeled and len(labeled) < len(labels):
            self.lock(labeled[0], reason)
        return labeled[0] if labeled else None

    def lock(self, labels, reason: str) -> None:
        if labels is not None:
            self.locks.append((labels, reason))

    # The walk ------------------------------------------------------------------

    def _input(self, keras_tensor, shape: tuple) -> Tensor:
        if shape != tuple(keras_tensor.shape):
            self.assumed_shapes[keras_tensor.name] = shape
        return Tensor(shape)

    def _walk(
        self, functional: Functional, inputs: list[Tensor], prefix: str, shapes=None
    ):
        tensors = {id(k): t for k, t in zip(functional.inputs, inputs, strict=True)}
        shapes = shapes or shapes_for(functional, [x.shape for x in inputs])
        nodes = nodes_in_order(functional)
        for node in nodes:
            self._nodes_of.setdefault(id(node.operation), {})[id(node)] = node
        for node in nodes:
            if any(id(x) not in tensors for x in node.input_tensors):
                continue
            made = [shapes[id(t)] for t in node.outputs]
            made = closed_shapes(node, made, tensors)
            rows = rows_of(node, made, tensors, self._batch)
            results = [Tensor(x, rows=n) for x, n in zip(made, rows, strict=True)]
            args, kwargs = fill_in(node, tensors)
            outputs = self._call(node, args, kwargs, results, prefix)
            tensors.update(
                (id(k), t) for k, t in zip(node.outputs, outputs, strict=True)
            )
        return [tensors[id(k)] for k in functional.outputs]

    def _call(self, node, args, kwargs, results, prefix) -> list[Tensor]:
        operation = node.operation
        path = f"{prefix}{operation.name}"
        call = Call(self, operation, path, node)
        call.inputs = [t for t in tree.flatten((args, kwargs)) if isinstance(t, Tensor)]
        call.outputs = results
        if is_recorded(operation):
            functional = as_functional(operation)
            given = args[0] if args else kwargs["inputs"]
            inputs = inputs_in_order(functional, given)
            return self._call_nested(functional, inputs, path)
        model = model_of_steps(operation)
        if model is not None and len(call.inputs) == len(model.outputs) == 1:
            return self._call_steps(as_functional(model), call)
        if id(operation) not in self.opened:
            others = self._nodes_of[id(operation)].values()
            self.opened[id(operation)] = self._open_call(node, others)
        opened = self.opened[id(operation)]
        if opened.parts is not None and opened.fits(node):
            return self._call_opened(opened, call)
        number = len(self.terms)
        outputs, why = self._follow(call, opened, args, kwargs)
        if outputs is None and self._may_open(call):
            opened.open(self._nodes_of[id(operation)].values())
            if opened.parts is not None and opened.fits(node):
                return self._call_opened(opened, call)
            why += opened.reason
        if outputs is None:
            self._keep_unknown(call, why, opened.borrowed)
        else:
            call.outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        for made, result in zip(call.outputs, results, strict=True):
            made.rows = result.rows
        self._repeat_terms(number, results[0].rows)
        self.calls.append(call)
        first = self._first_calls.setdefault(id(operation), call)
        if first is not call and any(each.settings for each in (first, call)):
            # One operation has one setting, so every call of it has the same width. What
            # only one call is given, such as a state, its rule ties to the weights.
            for one, other in (
                (first.inputs, call.inputs),
                (first.outputs, call.outputs),
            ):
                self._tie_tensors(one, other)
        return call.outputs

    def _may_open(self, call: Call) -> bool:
        """Returns whether to look into a layer that is no more than operations."""
        layer = call.operation
        is_plain = isinstance(layer, keras.layers.Layer) and not layer.variables
        is_new = (
            id(layer) not in self._first_calls and self.opened[id(layer)].parts is None
        )
        reads = any(x.labeled_axes for x in call.inputs)
        return is_plain and is_new and reads and find_rule(layer) is None

    def _follow(self, call: Call, opened: Opened, args, kwargs):
        """Returns what a call makes of its inputs, or None and why nobody knows."""
        kind = type(call.operation).__name__
        if opened.parts is not None:
            why = f"{kind} is called in several ways"
            # Of the other ways nobody knows what they cost: it is better said of all.
            own = f"{call.path}/"
            self.terms = [x for x in self.terms if not x.path.startswith(own)]
            for inner in opened.calls:
                for x in inner.inputs + inner.outputs:
                    inner.lock_all(x, why)
            return None, why
        try:
            outputs = self._apply_rule(call, args, kwargs)
        except Exception as error:
            # One layer that is used in an unforeseen way must not abort a model.
            return None, f"the rule for {kind} failed ({error!r})"
        self._lock_first_axes(call, outputs)
        why = altered_kernel(call.layer) if outputs is None else None
        if why is None and find_rule(call.operation) is not None:
            why = f"the rule for {kind} does not cover how it is set up or called"
        return outputs, why or f"no rule for {kind}{opened.reason}"

    def _lock_first_axes(self, call: Call, outputs) -> None:
        """Keeps the channels of a weight without a batch axis, unless it is spread.

        Rules take the first axis for that of the batch, where no channels are.
        """
        ranks = [len(x.shape) for x in tree.flatten(outputs) if isinstance(x, Tensor)]
        for x in call.inputs:
            if x.shape and len(x.shape) >= max(ranks, default=0):
                self.lock(x.labels[0], f"not spread over samples in {call.path!r}")

    def _apply_rule(self, call: Call, args, kwargs):
        rule = self._rule_of(call.operation)
        given = {k: v for k, v in kwargs.items() if v is not None and k != "training"}
        if not args:
            first = next(iter(inspect.signature(call.operation.call).parameters), None)
            args = (given.pop(first),) if first in given else ()
        try:
            _signature(rule).bind(call, *args, **given)
        except TypeError:
            return None
        return rule(call, *args, **given)

    def _keep_unknown(self, call: Call, why: str, borrowed) -> None:
        """Keeps all that a call reads and makes, also what its rule stated so far."""
        call.reads, call.settings, call.arguments = [], None, None
        call.constants = None
        labels = [x.labels[axis] for x in call.inputs for axis in x.labeled_axes]
        own, bound = f"{call.path}/", self.bindings.values()
        labels += [b.labels for b in bound if f"{b.path}/".startswith(own)]
        reason = f"read by {call.path!r}: {why}"
        for each in labels:
            self.lock(each, reason)
        for variable in (*getattr(call.layer, "variables", ()), *borrowed):
            self._kept.setdefault(id(variable), reason)
        if labels or getattr(call.layer, "weights", None):
            reason = f"{why}: the channels it reads and makes are kept"
            self.skipped.setdefault(call.path, reason)

    def _call_nested(self, functional, inputs, path) -> list[Tensor]:
        outputs = self._walk(functional, inputs, prefix=f"{path}/")
        if id(functional) not in self._nested:
            self._nested[id(functional)] = (inputs, outputs)
            return outputs
        # A nested model has one width, whoever calls it.
        first = self._nested[id(functional)]
        self._tie_tensors(first[0] + first[1], inputs + outputs)
        return outputs

    def _call_steps(self, functional, call: Call) -> list[Tensor]:
        """Follows a model that is called on every step of a sequence."""
        (x,), (out,) = call.inputs, call.outputs
        call.lock(x.labels[1], f"the step axis of {call.path!r}")
        step = Tensor(*((each[0], *each[2:]) for each in (x.shape, x.labels)))
        step.rows = x.rows
        number = len(self.terms)
        (result,) = self._call_nested(functional, [step], call.path)
        self._repeat_terms(number, x.shape[1])
        return [Tensor(out.shape, (None, None, *result.labels[1:]), x.rows)]

    def _repeat_terms(self, number: int, times) -> None:
        """Multiplies the work counted since there were `number` terms."""
        if times != 1:
            self.terms[number:] = [
                replace(term, constant=round(term.constant * times))
                for term in self.terms[number:]
            ]

    def _call_opened(self, opened: Opened, call: Call) -> list[Tensor]:
        start = len(self.calls)
        outputs = self._call_nested(opened.parts, call.inputs, call.path)
        opened.calls += self.calls[start:]
        return outputs

    def nested_inputs(self, functional) -> list[Tensor] | None:
        return self._nested.get(id(functional), (None,))[0]

    def _tie_tensors(self, left: list[Tensor], right: list[Tensor]) -> None:
        for a, b in zip(left, right, strict=False):
            # From the right: the same layer may be called on a map and on a vector.
            for one, other in zip(a.labels[::-1], b.labels[::-1], strict=False):
                if one is not None and other is not None and len(one) != len(other):
                    one, other = np.append(one, other), None
                self.tie(one, other, reason="shared with channels that are kept")


@functools.cache
def _signature(rule) -> inspect.Signature:
    return inspect.signature(rule)
