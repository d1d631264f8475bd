"""The table of rules: what each type of layer or operation does with channels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tfprune.graph.call import variable_of
from tfprune.layers import KernelGate


@dataclass(frozen=True)
class Rule:
    """How one type of operation passes labels on, and which sizes it is told.

    Attributes:
        trace: function `(call, *args, **kwargs) -> Tensor`, or several, or None if
            the operation cannot be followed; arguments as the model calls it, with
            a `Tensor` in the place of each tensor.
        sizes: `{constructor argument: (variable attribute, axis)}`: arguments that
            must follow the new width of a variable.
    """

    trace: Callable
    sizes: Mapping[str, tuple[str, int]]


_RULES: dict[type, Rule] = {}


def register_rule(*types: type, sizes: Mapping | None = None) -> Callable:
    """Registers how tfprune follows the channels of a layer or operation type.

    For layers of your own that do more than layers inside them do, and do not treat
    every channel by itself: those need none. A subclass inherits the rule of its base
    only if it is registered itself: a subclass may compute something else.

    Args:
        types: layer or operation classes.
        sizes: `{constructor argument: (variable attribute, axis)}`: arguments that
            `compact` sets to the new size of that axis.

    Returns:
        A decorator for the rule, a function `(call, *args, **kwargs) -> Tensor`.

    Example:

    ```python
    @tfprune.register_rule(MyDense, sizes={"units": ("kernel", -1)})
    def my_dense(call, x):
        call.read(call.operation.kernel, 0, x, -1)
        return call.outputs[0].with_labels({-1: call.make(call.operation.kernel, 1)})
    ```
    """

    def decorate(function: Callable) -> Callable:
        for each in types:
            _RULES[each] = Rule(function, dict(sizes or {}))
        return function

    return decorate


def find_rule(operation) -> Rule | None:
    """Returns the rule of the operation's own type, None if there is none."""
    if isinstance(operation, KernelGate):
        # Masks on single weights leave the channels as they are.
        operation = operation.layer
    return _RULES.get(type(operation))


def settings_of(call, kept: Callable) -> dict:
    """Returns the constructor arguments of a layer that follow its new width.

    Args:
        call: a call of the layer.
        kept: function `labels -> bool array` of what stays.
    """
    rule = find_rule(call.layer)
    settings = {}
    for argument, (name, axis) in (rule.sizes if rule else {}).items():
        labels = call.trace.labels_of(variable_of(call.layer, name), axis)
        if labels is not None:
            settings[argument] = int(kept(labels).sum())
    if call.settings is not None:
        settings.update(call.settings(kept))
    return settings
