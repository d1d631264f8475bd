"""Winning tickets: the few weights of an initial network that train as well as all."""

import dataclasses
from collections.abc import Callable, Mapping

import keras
import numpy as np

from tfprune import training
from tfprune.budget import Budget
from tfprune.checks import check_integer, check_number
from tfprune.graph import Graph
from tfprune.masks import Masks
from tfprune.selection import select
from tfprune.surgery import apply_masks, read_masks, strip
from tfprune.surgery.rebuild import with_new_weights


@dataclasses.dataclass(frozen=True, eq=False)
class Ticket:
    """A sparse network at the beginning of its training, and where it comes from.

    Attributes:
        model: the network to train: rewound weights, all but the ticket's at zero and
            held there; uncompiled.
        masks: `Masks` on its kernels, for `Graph(model, unit="weight")`.
        start: the network with all its rewound weights, uncompiled.
        trained: the trained network that the masks were found in.
    """

    model: keras.Model
    masks: Masks
    start: keras.Model
    trained: keras.Model

    def with_random_masks(self, seed: int | None = None) -> "Ticket":
        """Returns the control with as many weights of every kernel, taken at random.

        Args:
            seed: int.
        """
        random = np.random.default_rng(seed)
        masks = {name: random.permutation(mask) for name, mask in self.masks.items()}
        return _ticket(self.start, Masks(masks), self.trained)

    def with_new_weights(self, seed: int | None = None) -> "Ticket":
        """Returns the control with the same masks on newly initialized weights.

        Args:
            seed: int, given to `keras.utils.set_random_seed`; None leaves it alone.
        """
        if seed is not None:
            keras.utils.set_random_seed(seed)
        return _ticket(with_new_weights(self.start), self.masks, self.trained)


def winning_ticket(
    model: keras.Model,
    train: Callable,
    sparsity: float | None = None,
    find: Callable | None = None,
    rounds: int = 1,
    rewind_steps: int = 0,
    scope: str | Mapping = "global",
) -> Ticket:
    """Returns the weights of an initial network that turn out to matter, alone.

    The network is trained, the weights to keep are read from the result, and take the
    values back that they had in the beginning. Training what this returns tells whether
    they would have been enough; the `Ticket`'s controls tell whether any would.

    Args:
        model: the network at its initialization; not changed.
        train: function `train(model, callbacks)` that compiles the model it is given
            and calls its `fit` with these callbacks (and others).
        sparsity: float in (0, 1): the fraction of the weights to leave out, by
            magnitude after training.
        find: what decides instead: a function that is given a copy of the trained
            network, uncompiled, and returns a model with zeros, as training with
            `GlobalSparseMomentum` and `tfprune.remove_passive` make one.
        rounds: int. How often to train, prune and rewind; with n rounds each leaves
            `(1 - sparsity) ** (1 / n)` of the weights. Defaults to 1, one shot.
        rewind_steps: int. Weights go back to those after so many steps of the first
            training, for large networks. Defaults to 0, the initialization.
        scope: as in `tfprune.select`: `"global"`, `"uniform"`, `"erk"`, or the
            fraction to leave out by path pattern, instead of `sparsity`.

    Returns:
        A `tfprune.lottery.Ticket`.

    Raises:
        ValueError: for arguments out of range or that do not go together, or if `train`
            does not train.

    Source: Frankle & Carbin, "The lottery ticket hypothesis", 2019, section 2; late
    rewinding: Frankle et al., "Stabilizing the lottery ticket hypothesis", 2019;
    tickets by GSM: Ding et al., "Global sparse momentum SGD", 2019, section 4.4.

    Example:

    ```python
    def train(model, callbacks=()):
        model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(x, y, epochs=10, callbacks=[*callbacks])

    ticket = tfprune.winning_ticket(model, train, sparsity=0.9)
    control = ticket.with_random_masks(seed=0)
    for each in (ticket, control):
        train(each.model)
    ```
    """
    _check(model, train, sparsity, find, rounds, rewind_steps, scope)
    start, masks = strip(model), None
    for number in range(1, rounds + 1):
        trained = strip(start) if masks is None else _masked(start, masks)
        rewinding = _Rewinding(rewind_steps)
        before = trained.get_weights()
        train(trained, [rewinding])
        _check_trained(trained, before, train)
        if number == 1 and rewind_steps:
            start.set_weights(rewinding.weights())
        graph = Graph(trained, unit="weight")
        if find is None:
            masks = _largest(graph, sparsity, scope, number / rounds)
        else:
            found = find(strip(trained))
            masks = read_masks(Graph(strip(found), unit="weight"))
    return _ticket(start, masks, trained)


class _Rewinding(keras.callbacks.Callback):
    """Keeps the weights after some optimizer steps."""

    def __init__(self, steps: int):
        super().__init__()
        self._steps, self._weights = steps, None

    def on_train_batch_end(self, batch, logs=None):
        done = training.iterations(self.model)
        if not self._steps or self._weights is not None or done < self._steps:
            return
        if done > self._steps:
            raise ValueError(
                "`rewind_steps` must fall between two executions of steps. Received: "
                f"rewind_steps={self._steps}, and the model was at step {done} when it "
                "could first be looked at. Compile with a `steps_per_execution` that "
                "divides it."
            )
        self._weights = self.model.get_weights()

    def weights(self) -> list:
        if self._weights is None:
            raise ValueError(
                "`train` did not come to the step to rewind to. Received: "
                f"rewind_steps={self._steps}. Give the callbacks that `train` gets to "
                "`fit`, and let it train for more steps than that."
            )
        return self._weights


def _largest(graph, sparsity, scope, part: float) -> Masks:
    """Returns the masks of the largest weights, after a part of all rounds."""

    def so_far(fraction):
        return 1 - (1 - fraction) ** part

    if isinstance(scope, Mapping):
        return select(
            graph, "magnitude", scope={k: so_far(f) for k, f in scope.items()}
        )
    return select(graph, "magnitude", Budget(sparsity=so_far(sparsity)), scope=scope)


def _ticket(start, masks: Masks, trained) -> Ticket:
    return Ticket(_masked(start, masks), masks, start, trained)


def _masked(start, masks: Masks) -> keras.Model:
    return apply_masks(Graph(start, unit="weight"), masks)


def _check_trained(model, before: list, train) -> None:
    after = model.get_weights()
    if all(np.array_equal(a, b) for a, b in zip(after, before, strict=True)):
        raise ValueError(
            "`train(model, callbacks)` must train the model that it is given, in place. "
            f"It left all weights as they were. Received: train={train!r}"
        )


def _check(model, train, sparsity, find, rounds, rewind_steps, scope):
    ways = [sparsity is not None, find is not None, isinstance(scope, Mapping)]
    if sum(ways) != 1:
        raise ValueError(
            "Exactly one of `sparsity`, `find` and a `scope` of fractions by path must "
            f"be given. Received: sparsity={sparsity}, find={find}, scope={scope}"
        )
    for name, function in {"train": train, "find": find}.items():
        if not callable(function) and (name, function) != ("find", None):
            raise ValueError(
                f"`{name}` must be a function. Received: {name}={function!r}"
            )
    if sparsity is not None:
        check_number("sparsity", sparsity, "(0, 1)", "the fraction to leave out")
    check_integer("rounds", rounds, 1)
    check_integer("rewind_steps", rewind_steps, 0)
    if rounds > 1 and find is not None:
        raise ValueError(
            "`rounds` must be 1 with `find`, which decides alone. "
            f"Received: rounds={rounds!r}, find={find}"
        )
    if find is None:
        # Raises for a scope that does not suit the model, before anything is trained.
        _largest(Graph(strip(model), unit="weight"), sparsity, scope, 1.0)
