"""Graph: which channels of a model are coupled, and what goes with each of them."""

import inspect
from collections.abc import Callable, Mapping

import numpy as np

from tfprune.graph.freedom import FreeChannels, count_free
from tfprune.graph.group import Group
from tfprune.graph.subclassed import as_recorded
from tfprune.graph.trace import Trace
from tfprune.graph.units import Units
from tfprune.graph.unruled import follower_of, opened_call
from tfprune.patterns import matches


class Graph:
    """Reads a Keras model and finds the groups of channels that live together.

    Every channel gets a label; layers state which labels are the same. What is tied
    together is one unit, the smallest thing that can be removed; units that touch
    the same places form a `Group`. Layers that cannot be followed keep theirs and are
    listed in `skipped`. The model is only read.

    With `unit="weight"` the units are the single weights instead, or blocks of them:
    one group per kernel, named by its path, such as `"conv1/kernel"`, and nothing
    coupled. Masks on weights make a model sparse, not smaller.

    Args:
        model: built Functional or Sequential model, with or without gates, or a built
            subclassed model that can be taken apart.
        unit: `"channel"` or `"weight"`. Defaults to `"channel"`.
        block: for weights, `(rows, columns)`: the size of the blocks that are units,
            along the input and output axis of a kernel, its last two. Those at the
            end may be smaller. Defaults to None: single weights.
        normalization: `"keep"` or `"prune"`: whether the channels that a layer
            normalizes across (LayerNormalization, RMSNormalization,
            UnitNormalization, GroupNormalization of one group) stay. If they may go,
            a compacted model computes its statistics over those that are left, which
            is not what the masked one computes: `unequal` lists the layers. Give the
            graph, not the model, to `cost`, `apply_masks` and `compact` then.
            Defaults to `"keep"`.
        residual: `"coupled"` or `"independent"`: whether what is added up loses the
            same channels. If not, every branch loses channels of its own; the sum keeps
            its width, and the small model puts zeros in the place of what is missing,
            with plain Keras operations that cost time but no multiply-accumulates
            (`cost(graph, masks).scattered` counts them). Give the graph, not the model,
            to `cost`, `apply_masks` and `compact` then. Defaults to `"coupled"`.

    Attributes:
        model: the model; of a subclassed one the functional model of its parts.
        unit: `"channel"` or `"weight"`.
        groups: tuple of `Group`, in the order of the model's layers.
        skipped: dict of layer path to the reason it could not be followed.
        locked: dict of layer path to the reason its output channels are all kept.
        assumed_shapes: inputs with open sizes and the shape costs are counted for.
        unequal: dict of layer path to why it computes something else when compacted
            than when masked.

    Raises:
        ValueError: if the model is unbuilt, no Keras model, or a subclassed model
            that cannot be taken apart, or an argument is neither of its values.

    Example:

    ```python
    graph = tfprune.Graph(model)
    masks = tfprune.select(graph, "magnitude", tfprune.Budget(flops_reduction=0.5))
    ```
    """

    unit = "channel"

    def __new__(cls, model, unit: str = "channel", **settings):
        kinds = {each.unit: each for each in (Graph, *Graph.__subclasses__())}
        if unit not in kinds:
            raise ValueError(
                f"`unit` must be one of {sorted(kinds)}. Received: unit={unit!r}"
            )
        own = kinds[unit] if cls is Graph else cls
        known = inspect.signature(own.__init__).parameters
        foreign = [name for name in settings if name not in known]
        if foreign:
            raise ValueError(
                f"`{foreign[0]}` does not go with unit={unit!r}. Received: "
                f"{foreign[0]}={settings[foreign[0]]!r}. Its arguments are "
                f"{list(known)[2:]}."
            )
        return super().__new__(own)

    def __init__(
        self,
        model,
        unit: str = "channel",
        normalization: str = "keep",
        residual: str = "coupled",
    ):
        if normalization not in ("keep", "prune"):
            raise ValueError(
                '`normalization` must be "keep" or "prune". '
                f"Received: normalization={normalization!r}"
            )
        if residual not in ("coupled", "independent"):
            raise ValueError(
                '`residual` must be "coupled" or "independent". '
                f"Received: residual={residual!r}"
            )
        self.model = as_recorded(model)
        self._settings = {"normalization": normalization, "residual": residual}
        self._trace = trace = Trace(
            self.model, follower_of, opened_call, **self._settings
        )
        self.unequal = {call.path: call.unequal for call in trace.calls if call.unequal}
        self.skipped = dict(trace.skipped)
        self.assumed_shapes = dict(trace.assumed_shapes)
        self._units = Units(trace)
        self.groups, self.members = self._units.groups, self._units.members
        self.num_units = self._units.count
        self.locked = self._find_locked()

    def of(self, model) -> "Graph":
        """Returns the graph of another model, with the settings of this one."""
        return Graph(model, **self._settings)

    # Reading -------------------------------------------------------------------

    def units(self, labels: np.ndarray) -> np.ndarray:
        """Returns the unit number of each label; `num_units` where it is kept."""
        return self._units.of(labels)

    def prunable(self, labels: np.ndarray) -> np.ndarray:
        """Returns which labels are of units that may go."""
        return self.units(labels) < self.num_units

    def reasons(self, labels: np.ndarray) -> list[str | None]:
        """Returns why each label is kept; None for those that are free to go."""
        return self._units.reasons(labels)

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths of all layers and operations, in call order."""
        return tuple(dict.fromkeys(call.path for call in self._trace.calls))

    @property
    def calls(self) -> tuple:
        return tuple(self._trace.calls)

    @property
    def outputs(self) -> tuple:
        """What tracing knows of the model's outputs, flat."""
        return tuple(self._trace.outputs)

    @property
    def bindings(self) -> tuple:
        """Every labeled axis of every variable."""
        return tuple(self._units.bindings)

    @property
    def literals(self) -> dict:
        """`{id: variable}` of labeled variables that belong to no layer of the model."""
        own = {id(variable) for variable in self.model.variables}
        bound = {id(b.variable): b.variable for b in self._units.bindings}
        return {key: variable for key, variable in bound.items() if key not in own}

    @property
    def mac_terms(self) -> tuple:
        return tuple(self._trace.terms)

    @property
    def free_channels(self) -> FreeChannels:
        """Output channels of kernels, how many can go and what keeps the others."""
        return count_free(self)

    def nested_inputs(self, model) -> list | None:
        """Returns the tensors a nested model is first called on; None for others.

        Args:
            model: the `Functional` behind it.
        """
        return self._trace.nested_inputs(model)

    def opener(self, condition: Callable) -> Callable:
        """Returns the function from a layer to its parts, for layers to take apart.

        It gives None for a layer that has no parts, or that may stay whole. A layer
        that cannot be rebuilt from its config is always taken apart.

        Args:
            condition: function of a call, True if the layer around it has to be
                taken apart.
        """

        def parts(layer):
            opened = self._trace.opened.get(id(layer))
            if opened is None or opened.parts is None:
                return None
            must = any(map(condition, opened.calls)) or not opened.describes_itself
            return opened.parts if must else None

        return parts

    def group(self, name: str) -> Group:
        """Returns the group of this name."""
        for group in self.groups:
            if group.name == name:
                return group
        raise ValueError(f"No group is named {name!r}. {self._some_names()}")

    def match(self, pattern: str) -> tuple[Group, ...]:
        """Returns the groups with a name or layer that matches a path pattern.

        Args:
            pattern: layer path, `*` and `?` allowed.

        Raises:
            ValueError: if nothing in the model matches.
        """
        found = tuple(
            group
            for group in self.groups
            if any(matches(p, pattern) for p in (group.name, *group.layers))
        )
        if not found:
            kept = [p for p in self.layers if matches(p, pattern)]
            why = (
                f"{kept[0]!r} has no channels that can go" if kept else "no such layer"
            )
            raise ValueError(
                f"The path pattern {pattern!r} names no group of this model ({why}). "
                + self._some_names()
            )
        return found

    def _some_names(self) -> str:
        names = [group.name for group in self.groups]
        return f"Its groups are: {', '.join(names[:8])}{', ...' * (len(names) > 8)}"

    def check(self, masks: Mapping) -> None:
        """Raises ValueError unless `masks` are masks of this graph."""
        if not isinstance(masks, Mapping):
            raise ValueError(
                "`masks` must be a mapping of group name to bool array, True = keep. "
                f"Received: {masks!r}"
            )
        sizes = {group.name: group.size for group in self.groups}
        unknown = [name for name in masks if name not in sizes]
        if unknown:
            raise ValueError(
                f"`masks` belong to another model: {unknown[0]!r} is no group of "
                f"{self.model.name!r}. {self._some_names()}"
            )
        for name, mask in masks.items():
            mask = np.asarray(mask)
            if mask.dtype != bool or mask.shape != (sizes[name],):
                raise ValueError(
                    f"The mask of group {name!r} must be a bool array of shape "
                    f"({sizes[name]},). Received: shape {mask.shape}, {mask.dtype}"
                )
            if not mask.any():
                raise ValueError(
                    f"The mask of group {name!r} keeps no channel: a layer needs at "
                    "least one. Keep the most important, or remove the branch by hand."
                )

    def keep(self, masks: Mapping | None) -> np.ndarray:
        """Returns per unit whether it stays, and a last True for all that is kept.

        Args:
            masks: group name to bool array; groups that are missing stay whole.
        """
        keep = np.ones(self.num_units + 1, bool)
        if masks is not None:
            self.check(masks)
            for group, units in zip(self.groups, self.members, strict=True):
                if group.name in masks:
                    keep[units] = masks[group.name]
        return keep

    def kept(self, masks: Mapping | None):
        """Returns the function `labels -> bool array` of what stays under `masks`."""
        keep = self.keep(masks)
        return lambda labels: keep[self.units(labels)]

    def masks_of(self, keep: np.ndarray) -> dict:
        """Returns the masks of a bool array over units, as made by `keep`."""
        return {
            group.name: keep[units]
            for group, units in zip(self.groups, self.members, strict=True)
        }

    def layer_masks(self, masks: Mapping) -> dict[str, np.ndarray]:
        """Returns what each layer's output keeps, for checks from outside.

        Args:
            masks: group name to bool array.

        Returns:
            `{layer path: bool array}` over the output channel axis of every layer
            and operation whose output, or first output, loses channels.
        """
        kept = self.kept(masks)
        found, clash = {}, set()
        for call in self._trace.calls:
            out = call.outputs[0]
            if out.channel_axis is None:
                continue
            mask = kept(out.labels[out.channel_axis])
            if not np.array_equal(found.setdefault(call.path, mask), mask):
                clash.add(call.path)
        return {
            path: mask
            for path, mask in found.items()
            if path not in clash and not mask.all()
        }

    def _find_locked(self) -> dict[str, str]:
        locked = dict(self.skipped)
        for call in self._trace.calls:
            for tensor in call.outputs[:1]:
                if tensor.channel_axis is None:
                    continue
                labels = tensor.labels[tensor.channel_axis]
                if (self.units(labels) == self.num_units).all():
                    locked.setdefault(call.path, self.reasons(labels[:1])[0])
        return locked

    def summary(self) -> str:
        """Returns lines on the groups, what is free to go, and skipped layers."""
        lines = [f"{len(self.groups)} groups, {self.num_units} units"]
        for group in self.groups:
            coupled = f" with {', '.join(group.layers[1:])}" * (len(group.layers) > 1)
            lines.append(f"  {group.name}: {group.size}{coupled}")
        lines += [f"  skipped {path}: {why}" for path, why in self.skipped.items()]
        lines += [f"  not equal {path}: {why}" for path, why in self.unequal.items()]
        lines += self.free_channels.describe()
        return "\n".join(lines)


def as_graph(model) -> Graph:
    """Returns the graph of a model's channels, or the graph itself if it is given."""
    graph = model if isinstance(model, Graph) else Graph(model)
    if graph.unit != "channel":
        raise ValueError(
            "This needs the channels of a model: masks on single weights change no "
            f"shape and no cost. Received: a graph with unit={graph.unit!r}. Give the "
            "model itself, or `tfprune.strip(model)` for a sparse one without gates."
        )
    return graph
