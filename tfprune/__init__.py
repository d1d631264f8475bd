"""tfprune: pruning for Keras 3 that makes models really smaller and really faster."""

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "tfprune needs Keras on TensorFlow. Received: KERAS_BACKEND="
        f"{keras.backend.backend()!r}. Set it to 'tensorflow' before importing Keras."
    )

from tfprune import (
    callbacks,
    constraints,
    importances,
    layers,
    lottery,
    optimizers,
    regularizers,
    runtime,
    schedules,
    search,
    sparse_files,
    thresholds,
)
from tfprune.benchmarking import benchmark
from tfprune.budget import Budget
from tfprune.costs import cost
from tfprune.exporting import export
from tfprune.graph import Graph, Group, register_rule
from tfprune.lottery import winning_ticket
from tfprune.masks import Masks
from tfprune.passive import remove_passive
from tfprune.pruning import prune
from tfprune.selection import select
from tfprune.sensitivities import sensitivity
from tfprune.sparse_files import load_sparse, save_sparse
from tfprune.surgery import (
    apply_masks,
    compact,
    prune_wrap,
    read_masks,
    regularize,
    scale_width,
    set_masks,
    strip,
    width_for,
)

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Graph",
    "Group",
    "Masks",
    "apply_masks",
    "benchmark",
    "callbacks",
    "compact",
    "constraints",
    "cost",
    "export",
    "importances",
    "layers",
    "load_sparse",
    "lottery",
    "optimizers",
    "prune",
    "prune_wrap",
    "read_masks",
    "register_rule",
    "regularize",
    "regularizers",
    "remove_passive",
    "runtime",
    "save_sparse",
    "scale_width",
    "schedules",
    "search",
    "select",
    "sensitivity",
    "set_masks",
    "sparse_files",
    "strip",
    "thresholds",
    "width_for",
    "winning_ticket",
]
