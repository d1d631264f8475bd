"""Scores of gates, collected while an optimizer trains them."""

import contextlib

import keras
import numpy as np
from keras import ops

from tfprune import training
from tfprune.importances.members import scores_by_group
from tfprune.layers.swapping import replaced


class GateScores:
    """Sums |gate * gradient| over the steps of an optimizer, for every gate.

    The gradient is the one the optimizer applies: of the loss of the whole batch, after
    loss scaling is undone and replicas are summed.

    Args:
        model: compiled model.
        members: its gated layers, see `tfprune.graph.gates.gated_members`.
    """

    def __init__(self, model, members):
        self._optimizer = training.inner_optimizer(model)
        self._members = members
        self._unseen = {self._key(m.layer.gate_variable): m.path for m in members}
        with model.distribute_strategy.scope():
            self._scores = {
                self._key(member.layer.gate_variable): keras.Variable(
                    ops.zeros(len(member.labels)), dtype="float32", trainable=False
                )
                for member in members
            }

    @contextlib.contextmanager
    def collecting(self):
        """Lets functions that are traced in the context add to the scores."""
        # The only place where gradients are final under loss scaling, `jit_compile`,
        # `steps_per_execution` and on several replicas.
        update_step = self._optimizer.update_step

        def scored_step(gradient, variable, learning_rate):
            key = self._key(variable)
            if key in self._scores:
                self._unseen.pop(key, None)
                product = ops.cast(gradient, "float32") * ops.cast(variable, "float32")
                self._optimizer.assign_add(self._scores[key], ops.abs(product))
            return update_step(gradient, variable, learning_rate)

        with replaced(self._optimizer, "update_step", scored_step):
            yield

    def reset(self):
        for score in self._scores.values():
            score.assign(ops.zeros(score.shape))

    def by_group(self, graph, reduction):
        """Returns `{group name: scores}`; a closed gate scores 0, no gate infinity."""
        if self._unseen:
            raise ValueError(
                "The optimizer gave no gradients of gates. Received: optimizer="
                f"{self._optimizer.name!r}, which did not update the gate of "
                f"{next(iter(self._unseen.values()))!r} with `update_step`."
            )
        return scores_by_group(graph, self._members, self._of, reduction)

    def _of(self, member):
        score = self._scores[self._key(member.layer.gate_variable)].numpy()
        if not np.isfinite(score).all():
            raise ValueError(
                f"The gradients of the gate of {member.path!r} are not finite: the "
                "loss is NaN or infinite. Lower the learning rate."
            )
        return score

    def _key(self, variable):
        # Keras's own way to know a variable again, on several devices, too.
        return self._optimizer._var_key(variable)
