"""One regularizer over the variables of many layers, in Keras's slot on each."""

import keras
from keras import ops

from tfprune.regularizers.over_scales import OverScales


@keras.saving.register_keras_serializable("tfprune")
class SharedTerm:
    """A regularizer over several variables, which Keras shows it one after another.

    Keras asks every variable for its loss, in the order of the model's weights. The
    term keeps what it is shown and answers 0, until it has seen all; then it returns
    the loss of the whole.

    Args:
        regularizer: `OverScales` to call on all values as one vector.
        count: number of variables.
    """

    def __init__(self, regularizer: OverScales, count: int):
        self.regularizer = regularizer
        self.count = count
        self._seen: list = []

    @staticmethod
    def all_of(variables) -> dict["SharedTerm", list]:
        """Returns `{term: its variables}` of the terms that variables share in."""
        found: dict[SharedTerm, list] = {}
        for variable in variables:
            share = getattr(variable, "regularizer", None)
            if isinstance(share, Share):
                found.setdefault(share.term, []).append(variable)
        return found

    def see(self, index: int, x, name: str):
        """Returns the loss of all variables if this is the last one, else 0."""
        expected = len(self._seen)
        if index == 0:
            self._seen = []
        if index == 0 < expected or index not in (0, expected):
            self._seen = []
            raise ValueError(self._missing(expected, name))
        self._seen.append(ops.reshape(ops.cast(x, "float32"), (-1,)))
        if len(self._seen) < self.count:
            return ops.zeros(())
        values, self._seen = self._seen, []
        return self.regularizer(ops.concatenate(values))

    def _missing(self, expected: int, name: str) -> str:
        kind = type(self.regularizer).__name__
        return (
            f"`{kind}` is over {self.count} variables together, and number {expected} "
            f"was left out before {name!r}: frozen by `trainable = False`, or asked "
            "for the losses of one layer alone. Let all of them train, or freeze all; "
            "ask the whole model for `losses`; or call `tfprune.strip` and "
            "`tfprune.regularize` again with `layers=`."
        )

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
        loss = self.term.see(self.index, x, getattr(x, "path", "a variable"))
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
