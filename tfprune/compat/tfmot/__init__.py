"""The pruning interface of tensorflow-model-optimization, on Keras 3.

Code written for it runs with its import changed to this one:

```python
from tfprune.compat import tfmot

model = tfmot.sparsity.keras.prune_low_magnitude(model)
```

Names, arguments and defaults are the original's. From the same weights, but for tied
ones, so are the masks at every update (where the number to keep is a half to the last
bit, it may be rounded to the other side). What is different, on purpose:

- Masks act in the forward pass and in the optimizer: weights are exactly zero in every
  file, at any time, and a masked weight gets no gradient: it does not grow between
  two updates, as it does in the original, and so does not come back.
- Of equal magnitudes exactly as many stay as were asked for.
- A schedule that has an end brings its last sparsity there, at any frequency.
- `PolynomialDecay` with begin_step == end_step is the final sparsity, not NaN.
- `sparsity_m_by_n` is saved, and applied at every update, not at step 1 alone.
- Models of any layers are accepted: those without prunable weights stay as they are.
- A new model is returned; the one given keeps its weights.
- Blocks work in kernels of any rank, on the last two axes. Where they do not divide a
  kernel, a block's score is that of the weights it masks.
"""

import types

from tfprune.compat.tfmot.callbacks import PruningSummaries, UpdatePruningStep
from tfprune.compat.tfmot.conversion import from_tfmot
from tfprune.compat.tfmot.policies import PruneForLatencyOnXNNPack, PruningPolicy
from tfprune.compat.tfmot.schedules import (
    ConstantSparsity,
    PolynomialDecay,
    PruningSchedule,
)
from tfprune.compat.tfmot.wrapping import (
    PrunableLayer,
    PruneLowMagnitude,
    prune_low_magnitude,
    prune_scope,
    strip_pruning,
)

_KERAS = {
    each.__name__: each
    for each in (
        ConstantSparsity,
        PolynomialDecay,
        PrunableLayer,
        PruneForLatencyOnXNNPack,
        PruningPolicy,
        PruningSchedule,
        PruningSummaries,
        UpdatePruningStep,
        prune_low_magnitude,
        prune_scope,
        strip_pruning,
    )
}
sparsity = types.SimpleNamespace(keras=types.SimpleNamespace(**_KERAS))

__all__ = [*sorted(_KERAS), "PruneLowMagnitude", "from_tfmot", "sparsity"]
