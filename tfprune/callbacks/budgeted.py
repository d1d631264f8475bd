"""What all callbacks share that prune to a budget."""

import warnings

from tfprune import training
from tfprune.budget import Budget
from tfprune.costs import cost, warn_of_uncounted
from tfprune.graph import Graph
from tfprune.graph.nodes import is_recorded
from tfprune.surgery import has_gates, masks_in, set_masks
from tfprune.surgery.gates import has_kernel_gates
from tfprune.surgery.mask import gated_entries
from tfprune.weight_cuts import removed_weights


class BudgetedCallback(training.PruningCallback):
    """Base of the callbacks that close gates until a budget is met.

    Args:
        budget: a `tfprune.Budget` with a target.
        block: size of the blocks of weights that go together, see `tfprune.Graph`.
        part: the model with gates, if it is only a part of the one that is trained.
    """

    # The kinds of gates that the callback can close.
    units = ("channel",)

    def __init__(self, budget, block=None, part=None):
        super().__init__()
        if not isinstance(budget, Budget) or budget.target is None:
            raise ValueError(
                "`budget` must be a `tfprune.Budget` with a target, such as "
                f"`tfprune.Budget(flops_reduction=0.5)`. Received: budget={budget!r}"
            )
        self.budget = budget
        self.block = block
        self.part = part

    @property
    def pruned(self):
        """The model whose gates close."""
        return self.model if self.part is None else self.part

    def read_model(self):
        """Reads the model that is about to be trained; raises if it has no gates."""
        if self.part is not None:
            self._check_part()
        if not has_gates(self.pruned):
            raise ValueError(
                f"`{type(self).__name__}` closes gates, and the model has none. "
                f"Received: model={self.pruned.name!r}. Train "
                "`tfprune.prune_wrap(model)`, which computes the same, and compile it."
            )
        unit = "weight" if has_kernel_gates(self.pruned) else "channel"
        if unit not in self.units:
            raise ValueError(
                f"`{type(self).__name__}` closes gates of channels, and those of the "
                f"model are masks on weights. Received: model={self.pruned.name!r}. "
                "Wrap it with `tfprune.layers.ChannelGate`."
            )
        if unit == "channel" and self.budget.n_of_m is not None:
            raise ValueError(
                "A budget of `n_of_m` is for masks on weights, and the gates of the "
                f"model are on channels. Received: budget={self.budget}. Wrap it with "
                "`tfprune.layers.WeightMask`."
            )
        block = {} if self.block is None else {"block": self.block}
        self.graph = self._graph(unit=unit, **block)
        self._dense = None
        if unit == "channel":
            self._dense = cost(self.graph)
            warn_of_uncounted(self.graph, self.budget)

    def _check_part(self):
        trained = {id(variable) for variable in self.model.variables}
        own = getattr(self.pruned, "variables", ())
        if not own or not all(id(variable) in trained for variable in own):
            raise ValueError(
                "`part` must be a built model inside the one that is trained, such as "
                f"`gan.generator`. Received: part={self.part!r}, and "
                f"{self.model.name!r} does not train it."
            )

    def _graph(self, **settings):
        try:
            return Graph(self.pruned, **settings)
        except ValueError as error:
            if self.part is not None or is_recorded(self.model):
                raise
            raise ValueError(
                f"{error} If the gates are in a part of it, such as the generator of a "
                "GAN or a student: `PruneToBudget(importance, budget, part=generator)`."
            ) from error

    def check_gates(self, names):
        """Raises unless every unit of the groups of these names has a gate."""
        gated = gated_entries(self.graph)
        bare = [name for name in names if not gated[name].all()]
        if bare:
            raise ValueError(
                f"`{type(self).__name__}` can only remove what has gates, and "
                "groups in its scope have none. Received: groups without gates: "
                f"{', '.join(bare[:8])}. Call `prune_wrap` without `layers`, or keep "
                "them whole: `Budget(max_sparsity={path pattern: 0.0})`."
            )

    def masks(self):
        """Returns the masks that the gates make now."""
        return masks_in(self.graph)

    def set_masks(self, masks):
        """Closes and opens gates, and tells the other callbacks of this `fit`."""
        set_masks(self.graph, masks)
        for other in training.siblings(self):
            if hasattr(other, "on_masks_change"):
                other.on_masks_change(self.pruned, self.removed(masks))

    def removed(self, masks):
        """Returns the fractions that `masks` remove, under the names of `Budget`."""
        if self.graph.unit == "weight":
            return removed_weights(self.graph, masks, self.budget)
        left, whole = cost(self.graph, masks), self._dense
        return {
            "flops_reduction": 1 - left.macs / max(whole.macs, 1),
            "params_reduction": 1 - left.params / whole.params,
            "sparsity": 1 - masks.density(),
        }

    def meets(self, budget, masks=None):
        name, target = budget.target
        masks = self.masks() if masks is None else masks
        return self.removed(masks)[name] >= target - 1e-9

    def write_logs(self, logs):
        if logs is not None:
            removed = self.removed(self.masks())
            kept = ("flops_reduction", "sparsity")
            logs.update({name: removed[name] for name in kept if name in removed})

    def warn_unless_met(self, progress, advice):
        """Warns at the end of training if the budget was not met.

        Args:
            progress: sentences that say how far it went.
            advice: sentences that say what to do.
        """
        if not self.meets(self.budget):
            warnings.warn(
                f"Training ended before the budget was met: {self.budget} was asked, "
                f"and the gates remove {describe(self.removed(self.masks()))}. "
                f"{progress} {advice} If `EarlyStopping` restored earlier weights, it "
                "restored their masks.",
                stacklevel=3,
            )


def describe(removed):
    """Returns fractions removed as text."""
    return ", ".join(f"{name}={value:.4f}" for name, value in removed.items())
