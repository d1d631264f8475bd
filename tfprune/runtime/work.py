"""What runtime gates keep of a model, image by image, and what that costs."""

import contextlib

import numpy as np
import tensorflow as tf

from tfprune.graph import Graph
from tfprune.runtime.budgets import RatioCost
from tfprune.runtime.gates import gates_of
from tfprune.surgery.runtime import without_runtime_gates


class GateCosts:
    """Shares that are left of a model when its gates keep some of their channels.

    Gates and agents are not counted: they take about a hundredth of the work.

    Args:
        model: model with runtime gates.
    """

    def __init__(self, model):
        graph = Graph(without_runtime_gates(model))
        names = {gate.name: number for number, gate in enumerate(gates_of(model))}
        # The gate of each group, and where there is none the number after the last.
        self._gates = len(names)
        self._gate_of = np.full(len(graph.groups), self._gates)
        for call in graph.calls:
            if call.path in names:
                units = graph.units(call.outputs[0].labels[-1])
                for number, members in enumerate(graph.members):
                    if np.isin(members, units).any():
                        self._gate_of[number] = names[call.path]
        self._costs = {count: RatioCost(graph, count) for count in ("macs", "params")}

    def __call__(self, count: str, ratios) -> np.ndarray:
        """Returns the shares that are left, `"macs"` or `"params"`, shape `(...)`.

        Args:
            count: which of them.
            ratios: float array of shape `(..., gates)`.
        """
        return self._costs[count](self._of_groups(ratios))

    def cap(self, count: str, ratios) -> float:
        """Returns the share that is left at ratios that are not rounded.

        Args:
            count: as in a call.
            ratios: float array of shape `(gates,)`.
        """
        return self._costs[count].cap(self._of_groups(ratios))

    def _of_groups(self, ratios):
        ratios = np.asarray(ratios)
        ones = np.ones_like(ratios[..., :1])
        return np.concatenate([ratios, ones], axis=-1)[..., self._gate_of]


@contextlib.contextmanager
def seeing_masks(model, function):
    """Calls `function(gate, mask) -> mask` where a gate masks, in the context.

    Args:
        model: model with runtime gates.
        function: what it returns takes the place of the mask, `(images, channels)`.
    """
    gates = gates_of(model)
    try:
        for gate in gates:
            gate.on_mask = function
        yield
    finally:
        for gate in gates:
            gate.on_mask = None


def kept_channels(model, images, batch_size: int = 128) -> dict[str, np.ndarray]:
    """Returns which channels the gates of a model keep for each image.

    Args:
        model: model with runtime gates.
        images: float array of shape `(images, height, width, channels)`.
        batch_size: int.

    Returns:
        `{gate name: bool array of shape (images, channels)}`.

    Example:

    ```python
    model = tfprune.prune_wrap(base, tfprune.layers.RuntimeGate, keep_ratio=0.5)
    kept = tfprune.runtime.kept_channels(model, images)
    ```
    """
    found = {gate.name: [] for gate in gates_of(model)}

    @tf.function(reduce_retracing=True, autograph=False)
    def masks(batch):
        seen = {}

        def note(gate, mask):
            seen[gate.name] = mask
            return mask

        with seeing_masks(model, note):
            model(batch, training=False)
        return seen

    for start in range(0, len(images), batch_size):
        batch = tf.convert_to_tensor(images[start : start + batch_size])
        for name, mask in masks(batch).items():
            found[name].append(mask.numpy())
    return {name: np.concatenate(each) for name, each in found.items()}


def work(model, images, batch_size: int = 128) -> np.ndarray:
    """Returns the share of its multiply-accumulates that a model needs for each image.

    That of the network without gates and agents, whose own work comes on top
    (`tfprune.cost` counts it).

    Args:
        model: model with runtime gates.
        images: float array of shape `(images, height, width, channels)`.
        batch_size: int.

    Returns:
        A float array of shape `(images,)`.

    Raises:
        ValueError: if the model has no runtime gates.

    Example:

    ```python
    model = tfprune.prune_wrap(base, tfprune.layers.RuntimeGate, keep_ratio=0.5)
    print(f"{tfprune.runtime.work(model, images).mean():.0%} of the work")
    ```
    """
    if not gates_of(model):
        raise ValueError(
            "`model` must have runtime gates, as `tfprune.prune_wrap(model, "
            "tfprune.layers.RuntimeGate, keep_ratio=0.5)` makes them. Received: "
            f"{model.name!r}, which has none."
        )
    kept = kept_channels(model, images, batch_size)
    ratios = np.stack([mask.mean(axis=-1) for mask in kept.values()], axis=-1)
    return GateCosts(model)("macs", ratios)
