"""Changing a model: model in, new model out."""

from tfprune.surgery.compact import compact
from tfprune.surgery.gates import has_gates
from tfprune.surgery.mask import apply_masks, masks_in, read_masks, set_masks
from tfprune.surgery.regularize import regularize
from tfprune.surgery.width import scale_width, width_for
from tfprune.surgery.wrap import prune_wrap, strip

__all__ = [
    "apply_masks",
    "compact",
    "has_gates",
    "masks_in",
    "prune_wrap",
    "read_masks",
    "regularize",
    "scale_width",
    "set_masks",
    "strip",
    "width_for",
]
