"""The part of a model behind some of its variables, run on what comes before them."""

import keras
import numpy as np

from tfprune.evaluating import as_fit_takes_it, compile_like, measure
from tfprune.graph.nodes import (
    as_functional,
    input_structure,
    nodes_in_order,
    output_structure,
)

_BATCH = 256


class Tail:
    """What has to be computed anew when some variables of a model change.

    What leads there is computed once, for all batches of a data set.

    Args:
        model: the layers from there on.
        batches: what comes before, batch by batch, with targets and weights.
        compiled: model with the loss and the metrics to evaluate.
    """

    def __init__(self, model, batches: list, compiled):
        self._model, self._data = model, _Batches(batches)
        compile_like(model, compiled)

    @classmethod
    def of(cls, model, variables, compiled, data, most_bytes) -> "Tail | None":
        """Returns that of a model; None where the whole has to be evaluated.

        That is so if an output does not depend on the variables, or if what comes
        before them takes too much memory.

        Args:
            model: Functional or Sequential model.
            variables: the variables.
            compiled: model with the loss and the metrics to evaluate.
            data: as `tfprune.evaluating.evaluate` takes it.
            most_bytes: int: how much to keep in memory.
        """
        functional = as_functional(model)
        tensors = _crossing(functional, {id(variable) for variable in variables})
        ends = {id(each) for each in functional.outputs}
        if any(id(each) in ends for each in tensors):
            return None
        head = keras.Model(input_structure(functional), tensors)
        batches, kept = [], 0
        for x, y, weight in _batches(data):
            outputs = keras.tree.flatten(head.predict_on_batch(x))
            features = tuple(np.asarray(each) for each in outputs)
            kept += sum(each.nbytes for each in features)
            if kept > most_bytes:
                return None
            # Keras takes lists for arrays.
            y, weight = (tuple(e) if isinstance(e, list) else e for e in (y, weight))
            batches.append(keras.utils.pack_x_y_sample_weight(features, y, weight))
        tail = keras.Model(tensors, output_structure(functional))
        return cls(tail, batches, compiled)

    def evaluate(self) -> dict:
        """Returns the loss and the metrics of the whole model, by name."""
        return measure(self._model, self._data)


class _Batches(keras.utils.PyDataset):
    """Batches as they are, for `evaluate`."""

    def __init__(self, batches: list):
        super().__init__()
        self._batches = batches

    def __len__(self):
        return len(self._batches)

    def __getitem__(self, index):
        return self._batches[index]


def _crossing(functional, own: set) -> list:
    """Returns the tensors that what changes is computed from, and that do not change.

    Args:
        functional: the model.
        own: ids of the variables that change.
    """
    changed, read = set(), {}
    for node in nodes_in_order(functional):
        variables = getattr(node.operation, "variables", ())
        is_changed = any(id(variable) in own for variable in variables)
        if is_changed or any(id(each) in changed for each in node.input_tensors):
            changed.update(id(each) for each in node.outputs)
            read.update({id(each): each for each in node.input_tensors})
    read.update({id(each): each for each in functional.outputs})
    return [tensor for key, tensor in read.items() if key not in changed]


def _batches(data):
    """Yields `(x, y, sample_weight)` as NumPy or tensors."""
    x, arguments = as_fit_takes_it(data)
    if not arguments:
        for batch in x:
            yield keras.utils.unpack_x_y_sample_weight(batch)
        return
    arrays = (x, arguments["y"], arguments.get("sample_weight"))
    for start in range(0, len(keras.tree.flatten(x)[0]), _BATCH):
        rows = slice(start, start + _BATCH)
        yield keras.tree.map_structure(
            lambda array, rows=rows: None if array is None else array[rows], arrays
        )
