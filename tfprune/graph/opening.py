"""Looking into layers of a user's own: the graph of what their `call` is made of."""

import contextlib
import functools
from dataclasses import dataclass, field

import keras

from tfprune.graph.any_size import follow_for_any_size
from tfprune.graph.comparing import compare, compare_calls
from tfprune.graph.following import (
    NotOpened,
    OwnWeight,
    first_line,
    follow,
    is_symbolic,
)
from tfprune.graph.nodes import (
    Functional,
    follow_training,
    input_masks,
    nodes_in_order,
    recorded_arguments,
    tree,
    unrecorded,
)
from tfprune.graph.remaking import copy_operation, made_again
from tfprune.graph.signatures import covers, ways_to_call, without_training


@dataclass(eq=False)
class Opened:
    """What was found inside a layer when its first call was traced.

    Attributes:
        node: the Keras node of that call.
        arguments: `(args, kwargs)` that the parts were found with: those of that call,
            with the sizes left open in which other calls differ.
        parts: the graph of its parts, None if it stays whole.
        reason: why it stays whole, empty if there was nothing to open.
        borrowed: variables of others that it reads, as far as they are known.
        calls: the calls of its parts, all of its own calls together.
    """

    node: object
    arguments: tuple
    parts: Functional | None = None
    reason: str = ""
    borrowed: tuple = ()
    calls: list = field(default_factory=list)

    @functools.cached_property
    def describes_itself(self) -> bool:
        """Whether the layer can be made anew from its config."""
        return _describes_itself(self.node.operation)

    def fits(self, node) -> bool:
        """Returns whether a layer is called as the call was with which it was opened."""
        return covers(self.arguments, recorded_arguments(node))

    def open(self, others=()) -> None:
        """Looks into the layer, for the call that is known and for others like it.

        Args:
            others: the nodes of the layer's other calls.
        """
        layer, given = self.node.operation, recorded_arguments(self.node)
        others = [*map(recorded_arguments, others)]
        for arguments in ways_to_call(given, others):
            try:
                parts = open_layer(layer, *arguments)
                if arguments is not given:
                    compare_calls(layer, parts, arguments, [given, *others])
            except NotOpened as error:
                self.reason, self.borrowed = f": {error}", error.borrowed
            else:
                self.parts, self.arguments = parts, arguments
                break


def _describes_itself(layer) -> bool:
    if type(layer).__module__.startswith("keras."):
        return True
    try:
        return type(layer).from_config(layer.get_config()) is not None
    except Exception:
        # Whatever a constructor makes of arguments that are not all there.
        return False


def open_call(node, others=()) -> Opened:
    """Returns what is inside the layer that a node calls.

    Args:
        node: the node.
        others: the nodes of the layer's other calls.
    """
    opened = Opened(node, recorded_arguments(node))
    if isinstance(node.operation, keras.layers.Layer):
        if has_sublayers(node.operation) or not opened.describes_itself:
            opened.open(others)
    return opened


def has_sublayers(layer) -> bool:
    """Returns whether a layer is made of other layers."""
    return isinstance(layer, keras.layers.Layer) and bool(layer._layers)


def open_layer(layer, args: tuple, kwargs: dict) -> Functional:
    """Returns the graph of the layers and operations that a layer's `call` consists of.

    The parts are the layer's own, not copies; neither they nor the layer are changed.
    The graph is run next to the layer on random inputs and other weights, so one that
    hides a weight, a random number or a branch is refused.

    Args:
        layer: built layer.
        args: what it is called on, `KerasTensor`s in the place of tensors.
        kwargs: likewise.

    Raises:
        NotOpened: if `call` cannot be followed, or does more than the parts do.
    """
    names = _names_in(args)
    if names:
        # A key may be no name for an input, or that of a part already.
        with contextlib.suppress(Exception):
            return _open(layer, args, kwargs, names)
    try:
        return _open(layer, args, kwargs, {})
    except NotOpened:
        raise
    except Exception as error:
        # Two parts of one name, for instance: a layer like that stays whole.
        raise NotOpened(f"it cannot be taken apart: {first_line(error)}") from error


def _open(layer, args: tuple, kwargs: dict, names: dict) -> Functional:
    if layer.activity_regularizer is not None:
        raise NotOpened("it has an activity regularizer")
    if any(mask is not None for mask in input_masks((args, kwargs))):
        raise NotOpened("it is given a mask")
    inputs, (args, kwargs) = _fresh_inputs(args, kwargs, names)
    with unrecorded(layer):
        try:
            return _followed(follow, layer, inputs, args, kwargs)
        except NotOpened as error:
            try:
                return _followed(follow_for_any_size, layer, inputs, args, kwargs)
            except Exception:
                # The first reason for which the layer stays whole is the better one.
                raise error from None


def _followed(follow, layer, inputs, args, kwargs) -> Functional:
    trained, graph = (
        follow(layer, inputs, args, kwargs, training) for training in (True, False)
    )
    _settle_training(layer, trained, graph)
    _check_weights(layer, graph)
    _close_open_reshapes(graph)
    compare(layer, graph, args, kwargs)
    _check_parts(graph)
    return graph


def _fresh_inputs(args, kwargs, names):
    """Returns new inputs, by `{id: name}` of the old, and the arguments with them in."""
    inputs = []

    def fresh(x):
        if not is_symbolic(x):
            return x
        settings = {"dtype": x.dtype, "name": names.get(id(x))}
        inputs.append(keras.Input(batch_shape=x.shape, **settings))
        return inputs[-1]

    filled = tree.map_structure(fresh, (args, without_training(kwargs)))
    if not inputs:
        raise NotOpened("it is called on no tensor")
    return inputs, filled


def _names_in(args) -> dict[int, str]:
    """Returns `{id(input): its key}` where a call is given a dict of inputs.

    Keras looks for inputs by these names.
    """
    if len(args) != 1 or not isinstance(args[0], dict):
        return {}
    return {id(x): name for name, x in args[0].items() if isinstance(name, str)}


# Checks -----------------------------------------------------------------------------


def _check_weights(layer, graph: Functional) -> None:
    """Demands that a layer and its parts have the same variables."""
    own, used = ({id(v): v for v in each.variables} for each in (layer, graph))
    # The states of random numbers that are not drawn are no loss.
    for each in layer._flatten_layers():
        for generator in each._seed_generators:
            if id(generator.state) not in used:
                own.pop(id(generator.state), None)
    hidden = [variable for key, variable in own.items() if key not in used]
    if hidden:
        raise NotOpened(f"its `call` does not use {hidden[0].path!r} on a tensor")
    borrowed = [variable for key, variable in used.items() if key not in own]
    if borrowed:
        raise NotOpened("its `call` uses weights that are not its own", borrowed)


def _check_parts(graph: Functional) -> None:
    """Demands that every part can be made anew, from its config or of its own parts."""
    for node in nodes_in_order(graph):
        part = node.operation
        if isinstance(part, OwnWeight) or not isinstance(part, keras.layers.Layer):
            continue
        if _describes_itself(part) or open_call(node).parts is not None:
            continue
        try:
            made_again(part)
        except ValueError as error:
            why = f"{part.name!r} in it can be made neither anew nor of parts"
            raise NotOpened(why) from error


def _settle_training(layer, trained: Functional, graph: Functional) -> None:
    """Demands that `training` only ever is passed on, and leaves it to the caller."""
    own = {id(each) for each in layer._flatten_layers()}
    if _described(trained, own) != _described(graph, own):
        raise NotOpened("its `call` does something else in training")
    for one, other in zip(*map(nodes_in_order, (trained, graph)), strict=True):
        first, second = (
            recorded_arguments(node)[1].get("training") for node in (one, other)
        )
        if first is not None and first == second:
            raise NotOpened(f"its `call` fixes `training` for {one.operation.name!r}")
        follow_training(other)


def _described(graph: Functional, own: set) -> list:
    """Returns what a graph does, in a form that can be compared.

    Args:
        graph: the graph.
        own: the ids of the layers that are the same ones whenever `call` is followed.
    """
    numbers = {id(x): n for n, x in enumerate(graph.inputs)}

    def plain(x):
        if is_symbolic(x):
            return numbers.setdefault(id(x), len(numbers))
        return repr(x)

    lines = []
    for node in nodes_in_order(graph):
        args, kwargs = recorded_arguments(node)
        arguments = tree.map_structure(plain, (args, without_training(kwargs)))
        lines.append((_identity(node.operation, own), repr(arguments)))
        for x in node.outputs:
            plain(x)
    return [*lines, [plain(x) for x in graph.outputs]]


def _identity(operation, own: set):
    if isinstance(operation, OwnWeight):
        return id(operation.variable)
    if id(operation) in own:
        return id(operation)
    if isinstance(operation, keras.layers.Layer):
        # One that `call` makes anew each time, such as a pooling or an addition.
        settings = operation.get_config()
    else:
        settings = {k: v for k, v in vars(operation).items() if not k.startswith("_")}
    settings.pop("name", None)
    return type(operation), repr(settings)


def _close_open_reshapes(graph: Functional) -> None:
    """Writes -1 for the one size of a reshape that is open, such as the batch.

    Where there is a -1 already, a layer that leaves the batch alone takes its place.
    """
    for node in nodes_in_order(graph):
        literal = getattr(node.operation, "newshape", None)
        if not isinstance(literal, tuple) or None not in literal:
            continue
        closed = tuple(-1 if n is None else n for n in literal)
        if closed.count(-1) == 1:
            node.operation = copy_operation(node.operation, {"newshape": closed})
        elif literal[0] is None and closed.count(-1) == 2:
            dtype = node.outputs[0].dtype
            node.operation = keras.layers.Reshape(closed[1:], dtype=dtype)
