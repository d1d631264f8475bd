"""One regularizer over the variables of many layers, in Keras's slot on each."""

import gc
import weakref

import keras
import tensorflow as tf
from keras import ops

from tfprune.regularizers.over_scales import OverScales

_HIDDEN = (
    " Or `gc.freeze()` hides them: ask a loaded model for its `losses` once before it."
)


@keras.saving.register_keras_serializable("tfprune")
class SharedTerm:
    """A regularizer over several variables, which Keras shows it one after another.

    Keras asks every trainable variable of a model for its loss. The first of the term's
    that is asked answers with the loss of the whole, the others with 0, until one is
    asked again, or within another graph. So a model of a part of the network has the
    whole term, too, and moves what is its own.

    Args:
        regularizer: `OverScales` to call on all values as one vector.
        count: number of variables.
        variables: the variables, in the order of their places. By default those whose
            shares hold this term, found when they are needed.
    """

    def __init__(self, regularizer: OverScales, count: int, variables=()):
        self.regularizer = regularizer
        self.count = count
        self._variables = list(variables)
        # The graph of the last round of questions, and the places asked in it.
        self._asked = None, set()

    @staticmethod
    def all_of(variables) -> dict["SharedTerm", list]:
        """Returns `{term: its variables}` of the terms that variables share in."""
        found: dict[SharedTerm, list] = {}
        for variable in variables:
            share = _share_of(variable)
            if share is not None:
                found.setdefault(share.term, []).append(variable)
        return found

    def loss(self, index: int):
        """Returns what the variable at a place adds to the loss of the model.

        Raises:
            ValueError: if some of the variables are frozen, or belong to another model.
        """
        here = weakref.ref(tf.compat.v1.get_default_graph())
        graph, asked = self._asked
        if here == graph and index not in asked:
            asked.add(index)
            return ops.zeros(())
        # After an error, whoever is asked next is the first again.
        self._asked = None, set()
        value = self._whole()
        self._asked = here, {index}
        return value

    def _whole(self):
        variables = self._all()
        frozen = [variable.path for variable in variables if not variable.trainable]
        if frozen:
            raise ValueError(
                f"{self._named()}, and some are frozen by `trainable = False`: "
                f"{', '.join(frozen[:8])}. Let all of them train, or freeze all; or "
                "call `tfprune.strip` and `tfprune.regularize` again with `layers=`."
            )
        values = [ops.reshape(ops.cast(v, "float32"), (-1,)) for v in variables]
        for place, variable in enumerate(variables):
            # Whose share was taken away counts for the others, and is not moved.
            if self not in self.all_of([variable]):
                values[place] = ops.stop_gradient(values[place])
        return self.regularizer(ops.concatenate(values))

    def _all(self) -> list:
        if not self._variables:
            # A loaded term was told of none, and Keras shows it none that are frozen.
            living = (
                x for x in gc.get_objects() if issubclass(type(x), keras.Variable)
            )
            own = self.all_of(living).get(self, [])
            if len(own) != self.count:
                hidden = _HIDDEN if gc.get_freeze_count() else ""
                raise ValueError(
                    f"{self._named()}, and {len(own)} of them share it: the model was "
                    "made layer by layer, as `keras.models.clone_model`, `from_config` "
                    "and `model_from_json` do. Save the model whole and load it; or "
                    "clone what `tfprune.strip` returns and call `tfprune.regularize`."
                    f"{hidden}"
                )
            self._variables = sorted(own, key=lambda v: _share_of(v).index)
        return self._variables

    def _named(self) -> str:
        kind = type(self.regularizer).__name__
        return f"`{kind}` is over {self.count} variables together"

    def get_config(self):
        regularizer = keras.regularizers.serialize(self.regularizer)
        return {"regularizer": regularizer, "count": self.count}

    @classmethod
    def from_config(cls, config):
        return cls(keras.regularizers.get(config["regularizer"]), config["count"])


@keras.saving.register_keras_serializable("tfprune")
class Beside(keras.regularizers.Regularizer):
    """A regularizer that tfprune has put beside a variable's own.

    Args:
        added: the regularizer.
        regularizer: the variable's own regularizer. Defaults to None.
    """

    def __init__(self, added, regularizer=None):
        self.added = keras.regularizers.get(added)
        self.regularizer = keras.regularizers.get(regularizer)

    def __call__(self, x):
        own = 0.0 if self.regularizer is None else self.regularizer(x)
        return self.added(x) + own

    def get_config(self):
        own = self.regularizer and keras.regularizers.serialize(self.regularizer)
        added = keras.regularizers.serialize(self.added)
        return {"added": added, "regularizer": own}


@keras.saving.register_keras_serializable("tfprune")
class Share(keras.regularizers.Regularizer):
    """What one variable holds of a term over several.

    Args:
        term: the `SharedTerm`, which all shares hold; also after loading.
        index: int: the variable's place among all, in the order of the model's
            weights.
        regularizer: the variable's own regularizer, added. Defaults to None.
    """

    def __init__(self, term: SharedTerm, index: int, regularizer=None):
        self.term = term
        self.index = index
        self.regularizer = keras.regularizers.get(regularizer)

    def __call__(self, x):
        loss = self.term.loss(self.index)
        return loss if self.regularizer is None else loss + self.regularizer(x)

    def get_config(self):
        term = keras.saving.serialize_keras_object(self.term)
        own = self.regularizer and keras.regularizers.serialize(self.regularizer)
        # Every occurrence has to carry the id for the term to be shared again.
        term = {**term, "shared_object_id": id(self.term)}
        return {"term": term, "index": self.index, "regularizer": own}

    @classmethod
    def from_config(cls, config):
        term = keras.saving.deserialize_keras_object(config["term"])
        return cls(term, config["index"], config["regularizer"])


def _share_of(variable) -> Share | None:
    """Returns the share among a variable's regularizers, None without one."""
    # Some objects that are looked through are not variables yet.
    regularizer = getattr(variable, "regularizer", None)
    while isinstance(regularizer, Beside):
        regularizer = regularizer.regularizer
    return regularizer if isinstance(regularizer, Share) else None
