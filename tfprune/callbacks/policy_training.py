"""PolicyTraining: the agents of runtime gates learn between the epochs of a `fit`."""

import itertools
import warnings

import keras
import tensorflow as tf

from tfprune import training
from tfprune.runtime.gates import gates_of
from tfprune.runtime.learning import Learner
from tfprune.runtime.settling import settle, update_features


class PolicyTraining(keras.callbacks.Callback):
    """Trains the agents that say how many channels each image and layer keeps.

    The epochs of `fit` train the network and its gates, while agents keep the ratios
    they hold best. Between epochs the network stands still, and agents try ratios on
    `agent_data`, are rewarded for a low loss and for keeping within their budgets, and
    learn: that of images has a budget of multiply-accumulates, that of what is static
    one of weights, both those of `keep_ratio` in every layer. What they have learned is
    saved with the model, and a `fit` that goes on from the end of an epoch is the one
    that was not interrupted.

    Args:
        agent_data: batches `(x, y)` for agents to act on: a `tf.data.Dataset` or another
            iterable that can be gone through again.
        batches: int. How many of them are taken each time. By default all.
        every: int. Epochs between two phases of the agents. Defaults to 1.
        settle: int or float. The epoch, or the fraction of all epochs, from which on
            what is static is chosen for good, so that it can be compacted. Defaults to
            0.75.
        learning_rate: float. Of the agents' optimizers. Defaults to the paper's 1e-6,
            which needs as many phases as the paper has; shorter runs need more.
        penalty: float below 0. What a further group of channels costs, with agents that
            choose groups. Defaults to -0.1.
        random_epochs: int. Epochs at first in which agents that choose groups choose at
            random, and do not learn: the network learns to live with every choice.
            Defaults to 0.
        seed: int.

    Logs: `agent_reward`, `agent_loss`, and the shares of multiply-accumulates and of
    weights that are kept, `kept_macs` and `kept_params`; with two agents also
    `static_reward`.

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
        random_epochs=0,
        seed=0,
    ):
        super().__init__()
        if not (isinstance(every, int) and every > 0):
            raise ValueError(f"`every` must be an int above 0. Received: every={every}")
        if isinstance(settle, float) and not 0 <= settle <= 1:
            raise ValueError(
                f"`settle` must be an int or a float in [0, 1]. Received: {settle}"
            )
        if penalty >= 0:
            raise ValueError(f"`penalty` must be below 0. Received: penalty={penalty}")
        if not (isinstance(random_epochs, int) and random_epochs >= 0):
            raise ValueError(
                "`random_epochs` must be an int of at least 0. Received: random_epochs="
                f"{random_epochs}"
            )
        self.agent_data, self.batches, self.every = agent_data, batches, every
        self.settle_at, self.learning_rate = settle, learning_rate
        self.penalty, self.random_epochs, self.seed = penalty, random_epochs, seed
        self._learner = self._drawing = None

    def set_model(self, model):
        super().set_model(model)
        training.announce(self, model)

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
        if self.random_epochs and gates[0].policy.agent_type != "groups":
            raise ValueError(
                "Only agents that choose groups choose at random. Received: "
                f"random_epochs={self.random_epochs}, agents of ratios. Wrap with "
                'agent="groups", or use random_epochs=0.'
            )
        self.gates, self._drawing = gates, None
        self._learner = Learner(
            self.model, self.gates, self.learning_rate, self.penalty, self.seed
        )
        if not self._is_settled() and self._settling_epoch() >= self.params["epochs"]:
            warnings.warn(
                "What is static will not be settled in this `fit`, and can be neither "
                f"compacted nor deployed. Received: settle={self.settle_at}, epochs="
                f"{self.params['epochs']}.",
                stacklevel=2,
            )
        if self.random_epochs >= self.params["epochs"]:
            warnings.warn(
                "Agents choose at random in all epochs of this `fit`, and will not "
                f"learn. Received: random_epochs={self.random_epochs}, epochs="
                f"{self.params['epochs']}.",
                stacklevel=2,
            )

    def on_epoch_begin(self, epoch, logs=None):
        if epoch < self.random_epochs:
            self._draw(epoch)
        if self._is_settled():
            return
        update_features(self.model, self.gates, self._first_batch())
        if epoch >= self._settling_epoch():
            settle(self.gates)

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 < self.random_epochs:
            return
        self._stop_drawing()
        # After the last epoch nothing would learn to live with what agents have learned.
        is_last = epoch + 1 >= self.params["epochs"]
        if is_last or (epoch + 1) % self.every:
            return
        found = self._learner.phase(self._progress(self._some_batches()))
        if logs is not None:
            logs.update(found)

    def on_train_end(self, logs=None):
        self._stop_drawing()

    def _draw(self, epoch) -> None:
        if self._drawing is None:
            self._drawing = tf.random.Generator.from_seed(0)
            self.gates[0].policy.choose_at_random(self._drawing)
            self.model.make_train_function(force=True)
        # Of the epoch alone, so that a `fit` can go on from any.
        self._drawing.reset_from_seed(self.seed + 7919 * (epoch + 1))

    def _stop_drawing(self) -> None:
        if self._drawing is not None:
            self._drawing = None
            self.gates[0].policy.choose_at_random(None)
            self.model.make_train_function(force=True)

    def _is_settled(self) -> bool:
        policy = self.gates[0].policy
        return policy.static_agent is None or bool(policy.settled.numpy())

    def _settling_epoch(self) -> int:
        if isinstance(self.settle_at, float):
            return round(self.settle_at * self.params["epochs"])
        return self.settle_at

    def _some_batches(self):
        return itertools.islice(iter(self.agent_data), self.batches)

    def _first_batch(self):
        for batch in self.agent_data:
            return batch[:2]
        raise ValueError("`agent_data` has no batches.")

    def _progress(self, batches):
        number = 0
        bar = keras.utils.Progbar(
            self.batches,
            verbose=int(self.params.get("verbose") == 1),
            unit_name="phase",
        )
        for number, batch in enumerate(batches, 1):
            yield batch[:2]
            bar.update(number)
        if not number:
            raise ValueError(
                "`agent_data` has no batches, or it can be gone through only once."
            )
        bar.update(number, finalize=True)
