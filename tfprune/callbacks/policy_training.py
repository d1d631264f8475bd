"""PolicyTraining: the agents of runtime gates learn between the epochs of a `fit`."""

import itertools
import warnings

import keras
import tensorflow as tf

from tfprune import training
from tfprune.callbacks.data import check_batches, check_pairs, is_endless
from tfprune.checks import (
    check_integer,
    check_number,
    check_time,
    is_integer,
    is_number,
)
from tfprune.layers.runtime_policy import WarmUp
from tfprune.runtime.gates import gates_of
from tfprune.runtime.learning import Learner
from tfprune.runtime.settling import settle, update_features


class PolicyTraining(training.PruningCallback):
    """Trains the agents that say how many channels each image and layer keeps.

    The epochs of `fit` train the network and its gates, while agents keep the ratios
    they hold best. Between epochs the network stands still, and agents try ratios on
    `agent_data`, are rewarded for a low loss and for keeping within their budgets, and
    learn: that of images has a budget of multiply-accumulates, that of what is static
    one of weights, both those of `keep_ratio` in every layer. Agents that choose groups
    have no budget, and pay `penalty` for each. What they have learned is saved with the
    model, and a `fit` that goes on from the end of an epoch is the one that was not
    interrupted. Put this callback before those that save the model.

    List callbacks that end training, such as `EarlyStopping`, before this one: agents
    do not learn after the last epoch. One that restores the best weights should begin
    when what is static is settled: `EarlyStopping(start_from_epoch=...)`.

    Args:
        agent_data: batches `(x, y)` for agents to act on: a `tf.data.Dataset` or another
            iterable that can be gone through again.
        batches: int. How many of them are taken each time. By default all; it is
            needed for data without an end, and for generators.
        every: int. Epochs between two phases of the agents. Defaults to 1.
        settle: int or float. The epoch, or the fraction of all epochs, from which on
            what is static is chosen for good, so that it can be compacted. Defaults to
            0.75.
        learning_rate: float. Of the agents' optimizers. Defaults to the paper's 1e-6,
            which needs as many phases as the paper has; shorter runs need more.
        penalty: float below 0. What a further group of channels costs, with agents that
            choose groups. Defaults to -0.1.
        warm_up: int or float. The epochs at first, or the fraction of all epochs, in
            which agents have no say and do not learn. With agents of ratios all
            channels stay at first, so that predictions learn what each is worth, and
            fewer and fewer until it is `keep_ratio` of them; choices of groups are
            made at random, so that the network learns to live with every one. Agents
            that have learned in a `fit` before have their say at once. Defaults to 0.25.
        seed: int.

    Logs: `agent_reward`, `agent_loss`, and the shares of multiply-accumulates and of
    weights that are kept, of what there was before compaction, `kept_macs` and
    `kept_params`; with two agents also `static_reward`.

    Raises:
        ValueError: for arguments out of range or, when training begins, if the model
            has no gates with agents.

    Source: Chen et al., "Storage efficient and dynamic flexible runtime channel pruning
    via deep reinforcement learning", 2020, author response; Lin et al., "Runtime neural
    pruning", 2017, for groups.

    Example:

    ```python
    model = tfprune.prune_wrap(
        base, tfprune.layers.RuntimeGate, keep_ratio=0.5, runtime_ratio=0.5, block=16
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(train, epochs=40, callbacks=[tfprune.callbacks.PolicyTraining(train)])
    small = tfprune.compact(model)
    ```
    """

    def __init__(
        self,
        agent_data,
        batches=None,
        every=1,
        settle=0.75,
        learning_rate=1e-6,
        penalty=-0.1,
        warm_up=0.25,
        seed=0,
    ):
        super().__init__()
        check_batches("agent_data", agent_data)
        check_integer("every", every, 1)
        if batches is not None:
            check_integer("batches", batches, 1)
        elif is_endless(agent_data):
            raise ValueError(
                "`batches` must say how many batches are taken each time of "
                "`agent_data` that has no end, or may have none. Received: agent_data="
                f"a {type(agent_data).__name__}, batches=None. Pass `batches=50`, or a "
                "`tf.data.Dataset` without `.repeat()`."
            )
        if isinstance(agent_data, tf.data.Dataset):
            check_pairs("agent_data", agent_data.element_spec)
        check_time("settle", settle, "epochs")
        check_time("warm_up", warm_up, "epochs")
        check_number("learning_rate", learning_rate, "(0, inf)")
        if not is_number(penalty) or penalty >= 0:
            raise ValueError(f"`penalty` must be below 0. Received: penalty={penalty}")
        self.agent_data, self.batches, self.every = agent_data, batches, every
        self.settle_at, self.learning_rate = settle, learning_rate
        self.penalty, self.warm_up, self.seed = penalty, warm_up, seed
        self._learner = self._warm_up = None
        self._settles = False

    def on_train_begin(self, logs=None):
        gates = gates_of(self.model)
        if not gates or gates[0].policy is None:
            raise ValueError(
                "`PolicyTraining` trains the agents of runtime gates, and the model has "
                f"none. Received: model={self.model.name!r}. Train "
                "`tfprune.prune_wrap(model, tfprune.layers.RuntimeGate, keep_ratio=0.5)`."
            )
        if self.model.distribute_strategy.num_replicas_in_sync > 1:
            raise ValueError(
                "Agents learn on one device. Received: a model on "
                f"{self.model.distribute_strategy.num_replicas_in_sync} replicas."
            )
        self.gates, self._warm_up = gates, None
        self._learner = Learner(
            self.model, self.gates, self.learning_rate, self.penalty, self.seed
        )
        last = self.params["epochs"]
        self._settles = self._is_settled() or self._epoch_of(self.settle_at) < last
        if not self._settles:
            warnings.warn(
                "What is static will not be settled in this `fit`, and can be neither "
                f"compacted nor deployed. Received: settle={self.settle_at}, epochs="
                f"{last}.",
                stacklevel=2,
            )
        if self._warm_up_epochs >= last:
            warnings.warn(
                "Agents have no say in all of this `fit`, and will not learn. Received: "
                f"warm_up={self.warm_up}, epochs={last}.",
                stacklevel=2,
            )

    def on_epoch_begin(self, epoch, logs=None):
        if epoch < self._warm_up_epochs:
            self._begin_warm_up(epoch)
        if self._is_settled():
            return
        if not self.gates[0].features.numpy().any():
            # Once: as they changed, so would the ranks of all channels, at every epoch.
            update_features(self.model, self.gates, self._first_batch())
        if epoch >= self._epoch_of(self.settle_at):
            settle(self.gates)

    def on_train_batch_begin(self, batch, logs=None):
        if self._warm_up is not None:
            self._lower_ratio(batch)

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 < self._warm_up_epochs:
            return
        self._end_warm_up()
        # After the last epoch nothing would learn to live with what agents have learned.
        is_last = epoch + 1 >= self.params["epochs"] or self.model.stop_training
        if is_last or (epoch + 1) % self.every:
            return
        found = self._learner.phase(self._progress(self._some_batches()))
        if logs is not None:
            logs.update(found)

    def on_train_end(self, logs=None):
        self._end_warm_up()
        # What a `fit` is too short to settle was said when it began.
        if self._settles and not self._is_settled():
            warnings.warn(
                "What is static is not settled, and can be neither compacted nor "
                "deployed: training ended before, or `EarlyStopping` restored earlier "
                f"weights. Received: settle={self.settle_at}, epochs="
                f"{self.params['epochs']}. Train on, lower `settle`, or begin later: "
                "`EarlyStopping(start_from_epoch="
                f"{self._epoch_of(self.settle_at)})`.",
                stacklevel=2,
            )

    def summary(self):
        """Returns what the current `fit` will do, as text."""
        epochs, warm_up = self.params["epochs"], self._warm_up_epochs
        phases = sum(done >= warm_up for done in range(self.every, epochs, self.every))
        text = (
            f"PolicyTraining: agents of {len(self.gates)} gates learn in {phases} phases "
            f"between {epochs} epochs, the first {warm_up} of which are without them"
        )
        if self._is_settled():
            return text
        settled = self._epoch_of(self.settle_at)
        return f"{text}; what is static is chosen for good after epoch {settled}"

    @property
    def _warm_up_epochs(self) -> int:
        has_learned = self.gates[0].policy.memory.numpy()[0] > 0
        return 0 if has_learned else self._epoch_of(self.warm_up)

    def _begin_warm_up(self, epoch) -> None:
        if self._warm_up is None:
            ratio = tf.Variable(1.0, trainable=False)
            self._warm_up = WarmUp(ratio, tf.random.Generator.from_seed(0))
            self.gates[0].policy.warming_up = self._warm_up
            self.model.make_train_function(force=True)
            training.undo_on_error(self.model, self._undo)
        # Of the epoch alone, so that a `fit` can go on from any.
        self._warm_up.generator.reset_from_seed(self.seed + 7919 * (epoch + 1))
        self._epoch = epoch
        self._lower_ratio(0)

    def _lower_ratio(self, batch) -> None:
        """What is closed from the beginning would never learn what it is worth."""
        steps, keep = self.params["steps"], self.gates[0].policy.keep_ratio
        done = self._epoch + (batch / steps if steps else 0.0)
        self._warm_up.ratio.assign(1 - done / self._warm_up_epochs * (1 - keep))

    def _end_warm_up(self) -> None:
        if self._warm_up is not None:
            training.undo(self.model, self._undo)
            self.model.make_train_function(force=True)

    def _undo(self) -> None:
        self._warm_up = self.gates[0].policy.warming_up = None
        self.model.train_function = None

    def _is_settled(self) -> bool:
        policy = self.gates[0].policy
        return policy.static_agent is None or bool(policy.settled.numpy())

    def _epoch_of(self, time) -> int:
        return time if is_integer(time) else int(time * self.params["epochs"])

    def _some_batches(self):
        for batch in itertools.islice(iter(self.agent_data), self.batches):
            check_pairs("agent_data", batch)
            yield batch[:2]

    def _first_batch(self):
        for batch in self._some_batches():
            return batch
        raise _without_batches(self.agent_data)

    def _progress(self, batches):
        number = 0
        bar = keras.utils.Progbar(
            self.batches,
            verbose=int(self.params.get("verbose") == 1),
            unit_name="phase",
        )
        for number, batch in enumerate(batches, 1):
            yield batch
            bar.update(number)
        if not number:
            raise _without_batches(self.agent_data)
        bar.update(number, finalize=True)


def _without_batches(data) -> ValueError:
    return ValueError(
        "`agent_data` must have batches, each time that it is gone through. Received: "
        f"{type(data).__name__}, which has none, or had them once. Pass a "
        "`tf.data.Dataset` or a list."
    )
