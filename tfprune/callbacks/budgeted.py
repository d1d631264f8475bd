"""What all callbacks share that prune to a budget."""

import warnings

import keras
import numpy as np

from tfprune import training
from tfprune.costs import cost
from tfprune.graph import Graph
from tfprune.selection import Budget
from tfprune.surgery import has_gates, set_masks
from tfprune.surgery.mask import dead_masks, gate_masks


class BudgetedCallback(keras.callbacks.Callback):
    """Base of the callbacks that close gates until a budget is met.

    Args:
        budget: a `tfprune.Budget` with a target.
    """

    def __init__(self, budget):
        super().__init__()
        if not isinstance(budget, Budget) or budget.target is None:
            raise ValueError(
                "`budget` must be a `tfprune.Budget` with a target, such as "
                f"`tfprune.Budget(flops_reduction=0.5)`. Received: budget={budget!r}"
            )
        self.budget = budget

    def set_model(self, model):
        super().set_model(model)
        training.announce(self, model)

    def read_model(self):
        """Reads the model that is about to be trained; raises if it has no gates."""
        if not has_gates(self.model):
            raise ValueError(
                f"`{type(self).__name__}` closes gates, and the model has none. "
                f"Received: model={self.model.name!r}. Train "
                "`tfprune.prune_wrap(model)`, which computes the same, and compile it."
            )
        self.graph = Graph(self.model)
        self._dense = cost(self.graph)

    def check_gates(self, names):
        """Raises unless every unit of the groups of these names has a gate."""
        gated = np.zeros(self.graph.num_units + 1, bool)
        for _, labels in gate_masks(self.graph):
            gated[self.graph.units(labels)] = True
        gated = self.graph.masks_of(gated)
        bare = [name for name in names if not gated[name].all()]
        if bare:
            raise ValueError(
                f"`{type(self).__name__}` can only remove channels with gates, and "
                "groups in its scope have none. Received: groups without gates: "
                f"{', '.join(bare[:8])}. Call `prune_wrap` without `layers`, or, for "
                "`PruneToBudget`, name gated layers: `scope={path pattern: fraction}`."
            )

    def masks(self):
        """Returns the masks that the gates make now."""
        return dead_masks(self.graph)

    def set_masks(self, masks):
        """Closes and opens gates, and tells the other callbacks of this `fit`."""
        set_masks(self.graph, masks)
        for other in training.siblings(self):
            if hasattr(other, "on_masks_change"):
                other.on_masks_change(self.removed(masks))

    def removed(self, masks):
        """Returns the fractions that `masks` remove, under the names of `Budget`."""
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
            logs["flops_reduction"] = removed["flops_reduction"]
            logs["sparsity"] = removed["sparsity"]

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
