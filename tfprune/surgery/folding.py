"""Folding: channels that never change go, and what they add up to stays."""

from dataclasses import dataclass

import keras
import numpy as np
from keras import layers

from tfprune.graph import Graph
from tfprune.graph.call import Call, Read
from tfprune.graph.constants import (
    in_statistics,
    propagate,
    used_rows,
    values_of,
)
from tfprune.graph.sums import constant_sums, has_borders
from tfprune.layers.kernels import SEPARABLE
from tfprune.masks import Masks
from tfprune.reading import shared_array
from tfprune.surgery.mask import apply_masks
from tfprune.surgery.rebuild import copy_model
from tfprune.surgery.rewrites import foldable_normalizations

_WITH_BIAS = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D, *SEPARABLE)
# A carrier much smaller than what it carries would magnify rounding.
_SMALLEST_CARRIER = 0.1


@dataclass
class _Reader:
    """One axis of a variable that reads channels.

    Attributes:
        units: unit number of every channel that is read.
        values: the constant of every channel, 0 where its weights are, NaN where it
            varies or cannot be moved.
        shift: the variable that takes what constants add up to, None if none can.
        sign: 1 if they are added to it, -1 if subtracted.
    """

    call: Call
    read: Read
    units: np.ndarray
    values: np.ndarray
    shift: object = None
    sign: int = 1


def fold_constants(graph: Graph) -> tuple[Masks, dict[int, np.ndarray]]:
    """Finds the units that every reader sees as constants, and moves the constants.

    They move into the bias of the reader or the moving mean of the normalization
    behind it. Where the reader pads its input, that would be wrong at the borders:
    there one constant channel stays as a carrier, and its weights take over those of
    the others, times the ratio of the constants.

    Args:
        graph: graph of a model without gates.

    Returns:
        Masks that remove those units, and `{id(variable): array}` with the values of
        the variables that make up for it, in the old shapes.
    """
    readers = _find_readers(graph)
    keep = _needed(graph, readers)
    _keep_carriers(readers, keep)
    for units in graph.members:
        if not keep[units].any():
            keep[units[0]] = True
    values: dict[int, np.ndarray] = {}
    for reader in readers:
        _move(reader, keep, values)
    return Masks(graph.masks_of(keep)), values


def foldable_units(graph: Graph) -> np.ndarray:
    """Returns per unit whether every reader sees a constant that can be moved."""
    return ~_needed(graph, _find_readers(graph))[:-1]


def _needed(graph: Graph, readers: list[_Reader]) -> np.ndarray:
    """Returns per unit, and last for all that is kept, whether it varies anywhere."""
    keep = in_statistics(graph)
    keep[-1] = True
    for reader in readers:
        keep[reader.units[np.isnan(reader.values)]] = True
    return keep


def with_constants(graph: Graph, masks) -> keras.Model:
    """Returns a model in which the masked units are constants that can be folded.

    Their scales are zero, or the filters that make them where there is no scale, so
    that their shifts are what is left of them. Units of which something would still
    vary, or cannot be moved, are zero altogether.

    Args:
        graph: graph of a model without gates.
        masks: group name to bool array.
    """
    model = copy_model(graph.model)
    graph = graph.of(model)
    gone = ~graph.keep(masks)
    scales = _scales_of(graph)
    scaled = np.zeros(len(gone), bool)
    for binding in scales:
        scaled[graph.units(binding.labels)] = True
    # Variables that belong to no layer are the user's own: the copy has them too.
    own = [b for b in graph.bindings if id(b.variable) not in graph.literals]
    makers = [b for b in own if not b.read and len(b.variable.shape) > 1]
    _set_zero(graph, scales, gone)
    _set_zero(graph, makers, gone & ~scaled)
    stuck = gone[:-1] & ~foldable_units(graph)
    if not stuck.any():
        return model
    return apply_masks(graph, graph.masks_of(np.append(~stuck, True)))


def _scales_of(graph: Graph) -> list:
    scales = {
        id(call.layer.gamma)
        for call in graph.calls
        if isinstance(call.layer, layers.BatchNormalization)
        and call.layer.gamma is not None
    }
    return [b for b in graph.bindings if id(b.variable) in scales]


def _set_zero(graph: Graph, bindings, gone: np.ndarray) -> None:
    for binding in bindings:
        places = np.flatnonzero(gone[graph.units(binding.labels)])
        if len(places):
            value = np.array(shared_array(binding.variable))
            value[(slice(None),) * binding.axis + (places,)] = 0
            binding.variable.assign(value)


def _find_readers(graph: Graph) -> list[_Reader]:
    known, normalizations = propagate(graph), foldable_normalizations(graph)
    readers: dict[tuple, _Reader] = {}
    for call in graph.calls:
        for read in call.reads:
            reader = _reader(graph, call, read, known, normalizations)
            owner = read if read.variable is None else read.variable
            key = (id(owner), read.axis)
            first = readers.setdefault(key, reader)
            if first is not reader:
                # A layer that is called twice has one set of weights for both.
                same = first.values == reader.values
                first.values = np.where(same, first.values, np.nan)
    return list(readers.values())


def _reader(graph: Graph, call: Call, read: Read, known, normalizations) -> _Reader:
    values = np.where(used_rows(read), values_of(read, known), 0.0)
    reader = _Reader(call, read, graph.units(read.x.labels[read.x_axis]), values)
    layer = call.layer
    if type(layer) in _WITH_BIAS and not has_borders(layer):
        normalization = normalizations.get(id(call.operation))
        if layer.bias is not None:
            reader.shift = layer.bias
        elif normalization is not None:
            reader.shift, reader.sign = normalization.moving_mean, -1
    carries = read.adds_up and len(read.labels) == len(values)
    if reader.shift is None and not carries:
        reader.values = np.where(values == 0, values, np.nan)
    return reader


def _keep_carriers(readers: list[_Reader], keep: np.ndarray) -> None:
    """Keeps a constant channel wherever others have to be carried."""
    readers = [reader for reader in readers if reader.shift is None]
    # The smallest value at any reader: how well a unit carries at all of them.
    worst = np.full(len(keep), np.inf)
    for reader in readers:
        np.fmin.at(worst, reader.units, np.abs(reader.values))
    for reader in readers:
        sizes = np.abs(reader.values)
        gone = ~keep[reader.units] & (sizes > 0)
        if not gone.any():
            continue
        enough = _SMALLEST_CARRIER * sizes[gone].max()
        if (keep[reader.units] & (sizes >= enough)).any():
            continue
        good = gone & (sizes >= enough)
        candidates = reader.units[good]
        keep[candidates[np.argmax(worst[candidates])]] = True


def _move(reader: _Reader, keep: np.ndarray, values: dict) -> None:
    """Adds the constants of what goes to `values`, by the id of the variable."""
    stays = keep[reader.units]
    gone = ~stays & (reader.values != 0)
    if not gone.any():
        return
    constants = np.where(gone, reader.values, 0.0)
    if reader.shift is not None:
        target = reader.shift
        sums = constant_sums(reader.call.layer, constants, borders=False)
        values[id(target)] = _value_of(target, values) + reader.sign * sums
        return
    target, axis = reader.read.variable, reader.read.axis
    carrier = np.argmax(np.where(stays, np.abs(np.nan_to_num(reader.values)), 0))
    rows = np.moveaxis(_value_of(target, values), axis, 0)
    rows[carrier] += np.tensordot(constants / reader.values[carrier], rows, axes=1)
    values[id(target)] = np.moveaxis(rows, 0, axis)


def _value_of(variable, values: dict) -> np.ndarray:
    value = values.get(id(variable))
    return np.array(shared_array(variable), np.float64) if value is None else value
