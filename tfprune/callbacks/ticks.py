"""Ticks: short trainings of gates alone, between the epochs of a `fit`."""

import contextlib

import keras

from tfprune import training
from tfprune.callbacks.gate_scores import GateScores
from tfprune.graph.gates import gated_members
from tfprune.layers import ChannelGate
from tfprune.regularizers import Beside


class _GateL1(keras.regularizers.Regularizer):
    """The L1 norm of a gate times a strength that changes."""

    def __init__(self, strength):
        self.strength = strength

    def __call__(self, x):
        return self.strength * keras.ops.sum(keras.ops.abs(x))


class Ticks:
    """Trains gates, shifts and the classifier of a model, and scores the gates.

    Between Ticks the model trains as a whole, with an L1 term on its gates. Each of the
    two phases has a train function of its own, which is traced once.

    Args:
        model: compiled model in a `fit`, with its optimizer built.
        graph: its `Graph`.
        data: batches, as `fit` takes them, in the order in which they come.
    """

    def __init__(self, model, graph, data):
        self._model, self._graph, self._data = model, graph, data
        gates = (m for m in gated_members(graph) if isinstance(m.layer, ChannelGate))
        self._members = list(gates)
        self._gates = [m.layer.gate_variable for m in self._members]
        self._regularizers = [gate.regularizer for gate in self._gates]
        self.scores = GateScores(model, self._members)
        trained = _trained_in_ticks(graph, self._gates)
        variables = model.trainable_variables
        self._frozen = [v for v in variables if id(v) not in trained]
        with model.distribute_strategy.scope():
            self._l1 = keras.Variable(0.0, trainable=False, name="gate_l1")
        self._tock_function = self._tick_function = None

    @property
    def members(self):
        """The layers with a gate on their outputs."""
        return self._members

    def begin(self):
        """Makes the model ready for the epochs around Ticks."""
        self._add_l1()
        # An earlier `fit` may have left a function that was traced without the term.
        self._model.make_train_function(force=True)
        training.undo_on_error(self._model, self._undo)
        self._tock_function = self._model.train_function

    def end(self):
        """Leaves the model as it was."""
        training.undo(self._model, self._undo)

    def _undo(self):
        for gate, own in zip(self._gates, self._regularizers, strict=True):
            gate.regularizer = own
        self._model.train_function = None

    def set_l1(self, strength):
        self._l1.assign(strength)

    def run(self, verbose):
        """Runs one Tick; returns its logs. The learning rate is the optimizer's."""
        self.scores.reset()
        try:
            with self.in_tick(), training.inner_fit(self._model):
                history = self._model.fit(self._data, verbose=verbose, shuffle=False)
        except BaseException:
            self.end()
            # `in_tick` has put the terms back after what the error undid.
            self._undo()
            raise
        return {name: values[-1] for name, values in history.history.items()}

    @contextlib.contextmanager
    def in_tick(self):
        """Freezes what stands still in a Tick, and scores gates, in the context."""
        model = self._model
        try:
            for variable in self._frozen:
                variable.trainable = False
            for gate in self._gates:
                # Scores are of the data's loss alone.
                gate.regularizer = None
            with self.scores.collecting():
                if self._tick_function is None:
                    model.make_train_function(force=True)
                    self._tick_function = model.train_function
                model.train_function = self._tick_function
                yield
        finally:
            model.train_function = self._tock_function
            for variable in self._frozen:
                variable.trainable = True
            self._add_l1()

    def _add_l1(self):
        for gate, own in zip(self._gates, self._regularizers, strict=True):
            gate.regularizer = Beside(_GateL1(self._l1), own)


def _trained_in_ticks(graph, gates) -> set:
    """Returns the ids of the variables that train in a Tick."""
    trained = {id(gate) for gate in gates}
    for call in graph.calls:
        if isinstance(call.layer, keras.layers.BatchNormalization):
            trained.update(map(id, call.layer.trainable_variables))
    for layer in _classifiers(graph):
        trained.update(map(id, layer.trainable_variables))
    return trained


def _classifiers(graph) -> list:
    """Returns the last layers with weights before the model's outputs."""
    maker = {id(x): call for call in graph.calls for x in call.outputs}
    found, tensors = {}, list(graph.outputs)
    while tensors:
        call = maker.pop(id(tensors.pop()), None)
        if call is None:
            continue
        if getattr(call.layer, "trainable_variables", None):
            found[id(call.layer)] = call.layer
        else:
            tensors += call.inputs
    return list(found.values())
