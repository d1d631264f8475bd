"""When weights are pruned and how many: the schedules of tfmot."""

import abc

import keras
import tensorflow as tf

from tfprune.checks import check_integer, check_number


class PruningSchedule(abc.ABC):
    """Says for every training step whether to prune and to which sparsity.

    Subclasses implement `__call__(step)`, which returns a bool and a float32 tensor,
    and `get_config`.
    """

    def _should_prune_in_step(self, step, begin_step, end_step, frequency):
        """Returns whether masks change at `step`: every `frequency` from `begin_step`.

        Args:
            step: int or integer tensor.
            begin_step: int.
            end_step: int, the last step at which they can; negative for none.
            frequency: int.
        """
        in_range = (step >= begin_step) & ((step <= end_step) | (end_step < 0))
        return in_range & ((step - begin_step) % frequency == 0)

    def _validate_step(self, begin_step, end_step, frequency, allow_negative_1):
        """Raises ValueError for steps that make no schedule."""
        check_integer("begin_step", begin_step, 0)
        check_integer("end_step", end_step, -1)
        check_integer("frequency", frequency, 1)
        if not allow_negative_1 and end_step == -1:
            raise ValueError("`end_step` must be given. Received: end_step=-1")
        if end_step != -1 and end_step < begin_step:
            raise ValueError(
                "`end_step` must not come before `begin_step`. Received: "
                f"begin_step={begin_step}, end_step={end_step}"
            )

    def _validate_sparsity(self, sparsity, variable_name):
        """Raises ValueError unless a sparsity lies in [0, 1)."""
        check_number(variable_name, sparsity, "[0, 1)")

    @abc.abstractmethod
    def __call__(self, step):
        """Returns whether to prune at `step`, and the sparsity in force."""

    @abc.abstractmethod
    def get_config(self):
        """Returns `{"class_name": name, "config": constructor arguments}`."""

    @classmethod
    def from_config(cls, config):
        return cls(**config.get("config", config))


@keras.saving.register_keras_serializable("tfprune.tfmot")
class ConstantSparsity(PruningSchedule):
    """The same sparsity, chosen anew every `frequency` steps.

    Args:
        target_sparsity: float in [0, 1).
        begin_step: int. First step at which masks can change.
        end_step: int. The last one; -1 for none. Defaults to -1.
        frequency: int. Steps between two updates. Defaults to 100.
    """

    def __init__(self, target_sparsity, begin_step, end_step=-1, frequency=100):
        self.target_sparsity = target_sparsity
        self.begin_step = begin_step
        self.end_step = end_step
        self.frequency = frequency
        self._validate_step(begin_step, end_step, frequency, True)
        self._validate_sparsity(target_sparsity, "target_sparsity")

    def __call__(self, step):
        due = self._should_prune_in_step(
            step, self.begin_step, self.end_step, self.frequency
        )
        return tf.convert_to_tensor(due), tf.constant(self.target_sparsity, tf.float32)

    def get_config(self):
        names = ("target_sparsity", "begin_step", "end_step", "frequency")
        config = {name: getattr(self, name) for name in names}
        return {"class_name": type(self).__name__, "config": config}


@keras.saving.register_keras_serializable("tfprune.tfmot")
class PolynomialDecay(PruningSchedule):
    """Sparsity that grows fast at first and slowly at the end.

    `final + (initial - final) * (1 - p) ** power` at progress p from begin to end.

    Args:
        initial_sparsity: float in [0, 1).
        final_sparsity: float in [0, 1).
        begin_step: int.
        end_step: int. Masks get the final sparsity here, whatever the frequency.
        power: float. Defaults to 3.
        frequency: int. Steps between two updates. Defaults to 100.

    Reference:
        [Zhu and Gupta, 2017](https://arxiv.org/abs/1710.01878), equation 1.
    """

    def __init__(
        self,
        initial_sparsity,
        final_sparsity,
        begin_step,
        end_step,
        power=3,
        frequency=100,
    ):
        self.initial_sparsity = initial_sparsity
        self.final_sparsity = final_sparsity
        self.begin_step = begin_step
        self.end_step = end_step
        self.power = power
        self.frequency = frequency
        self._validate_step(begin_step, end_step, frequency, False)
        self._validate_sparsity(initial_sparsity, "initial_sparsity")
        self._validate_sparsity(final_sparsity, "final_sparsity")

    def __call__(self, step):
        due = self._should_prune_in_step(
            step, self.begin_step, self.end_step, self.frequency
        )
        passed = tf.cast(step - self.begin_step, tf.float32)
        span = max(1, self.end_step - self.begin_step)
        is_over = step >= self.end_step
        progress = tf.where(is_over, 1.0, tf.clip_by_value(passed / span, 0.0, 1.0))
        gap = self.initial_sparsity - self.final_sparsity
        sparsity = gap * tf.pow(1 - progress, self.power) + self.final_sparsity
        return tf.convert_to_tensor(due), sparsity

    def get_config(self):
        names = ("initial_sparsity", "final_sparsity", "power")
        names += ("begin_step", "end_step", "frequency")
        config = {name: getattr(self, name) for name in names}
        return {"class_name": type(self).__name__, "config": config}


def due_sparsity(schedule, first, last):
    """Returns the sparsity of the last update due from step `first` to `last`, or None.

    A schedule that has an end is due there, too, if what it asks for then is not in
    force.

    Args:
        schedule: a `PruningSchedule`.
        first: int, at least 1.
        last: int.
    """
    found, due = _newest(schedule, first, last)
    end = getattr(schedule, "end_step", -1)
    if max(first, (found or 0) + 1) <= end <= last:
        at_end = float(schedule(end)[1])
        in_force = due if found else _newest(schedule, 1, end - 1)[1]
        return at_end if in_force != at_end else due
    return due


def _newest(schedule, first, last):
    """Returns the last step at which an update is due, and its sparsity; or Nones."""
    for step in _candidates(schedule, first, last):
        due, sparsity = schedule(step)
        if bool(due):
            return step, float(sparsity)
    return None, None


def is_regular(schedule) -> bool:
    """Returns whether the steps of a schedule's updates are known without asking."""
    return type(schedule) in (ConstantSparsity, PolynomialDecay)


def _candidates(schedule, first, last) -> range:
    """Returns the steps that may hold an update, the last one first."""
    if not is_regular(schedule):
        return range(last, first - 1, -1)
    begin, every = schedule.begin_step, schedule.frequency
    last = last if schedule.end_step < 0 else min(last, schedule.end_step)
    return range(last - (last - begin) % every, max(first, begin) - 1, -every)


def serialize(schedule):
    """Returns the config of a schedule, with the name it is registered under."""
    config = schedule.get_config()
    name = keras.saving.get_registered_name(type(schedule))
    return {"class_name": name, "config": config["config"]}


def deserialize(config):
    """Returns a schedule from its config; a schedule is returned as it is."""
    if not isinstance(config, dict):
        return config
    kind = keras.saving.get_registered_object(config["class_name"])
    if kind is None:
        raise ValueError(
            f"The pruning schedule {config['class_name']!r} is not known. Load within "
            "`keras.saving.custom_object_scope`, or decorate its class with "
            "`keras.saving.register_keras_serializable`."
        )
    return kind.from_config(config["config"])
