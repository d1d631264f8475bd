"""Rules of weights that a user's own layer holds itself."""

import numpy as np

from tfprune.graph.call import Call, Tensor
from tfprune.graph.following import OwnWeight
from tfprune.graph.registry import register_rule


@register_rule(OwnWeight)
def own_weight(call: Call, x: Tensor):
    variable, (out,) = call.layer.variable, call.outputs
    if not len(variable.shape):
        return out
    made = call.make(variable, -1)
    call.constants = lambda known: _constant_entries(variable)
    call.settings = lambda kept: (
        {} if made is None else {"output_dim": int(kept(made).sum())}
    )
    return out.with_labels({-1: made})


def _constant_entries(variable) -> np.ndarray:
    """Returns the value of each entry of the last axis that is the same everywhere."""
    rows = variable.numpy().reshape(-1, variable.shape[-1])
    return np.where((rows == rows[0]).all(axis=0), rows[0], np.nan)
