"""GlobalSparseMomentum: momentum SGD that prunes while it trains (TensorFlow)."""

import fnmatch
import functools
import warnings
from collections.abc import Mapping

import keras
import tensorflow as tf

from tfprune.checks import check_number
from tfprune.layers.kernels import is_kernel
from tfprune.patterns import as_patterns
from tfprune.radix_select import kth_largest
from tfprune.regularizers import push

# Up to so many weights, importances are kept for the update, not computed again.
_MOST_KEPT = 1_000_000


@keras.saving.register_keras_serializable("tfprune")
class GlobalSparseMomentum(keras.optimizers.Optimizer):
    """Momentum SGD under which all but the Q most important weights decay to zero.

    In every step the Q weights with the largest |weight * gradient| are active: they
    follow their gradient and decay. All others only decay, and because decay goes
    through the momentum, 1 / (1 - `momentum`) times as fast as without. The active ones
    are chosen anew in every step, so a weight can come back. In the end all but Q
    weights are so small that zeroing them loses nothing: `tfprune.remove_passive`.

    Start from a trained model. Kernels, the variables whose names end in `kernel` or
    `embeddings`, are pruned; all others train by plain momentum, without decay. Weight
    decay is part of the method, and there should be no other: the gradient of a layer's
    `kernel_regularizer` would pass for importance.

    As in the paper, the learning rate stands outside of the momentum and weight decay
    inside, both unlike `keras.optimizers.SGD`. A passive weight shrinks to about
    exp(-`decay_budget(steps)`) of its size in a run. A budget of 7 is enough, the
    paper's are 19 (MNIST) and 8 (CIFAR-10); `tfprune.callbacks.Preflight` warns.

    Args:
        learning_rate: float or `LearningRateSchedule`. Defaults to 0.01.
        compression: float, at least 1: the number of weights over Q.
        sparsity: float in [0, 1), instead of `compression`: the fraction of the weights
            to remove. Q is (1 - `sparsity`) times their number, rounded down, at least 1.
        momentum: float in [0, 1). Defaults to 0.98.
        weight_decay: float, not negative. Defaults to 5e-4.
        nesterov: bool. Defaults to `False`.
        scope: `"global"`, one ranking of all weights; `"uniform"`, one per kernel, the
            same fraction of each; or `{path pattern: fraction}` to remove, instead of
            `compression` and `sparsity`: the first pattern that matches a kernel
            counts, and kernels without one train by plain momentum.
        include: path patterns of variables to prune that are no kernels by name.
        exclude: path patterns of kernels not to prune, such as `"logits/kernel"`. A
            pattern matches a variable's `path` or the end of it after a slash.
        name: str.
        **kwargs: those of every `keras.optimizers.Optimizer`.

    Raises:
        ValueError: for arguments out of range.

    Source: Ding et al., "Global sparse momentum SGD for pruning very deep neural
    networks", 2019, section 3.2, and the authors' code.

    Example:

    ```python
    optimizer = tfprune.optimizers.GlobalSparseMomentum(
        0.02, compression=60, momentum=0.98, weight_decay=2e-3
    )
    print(optimizer.decay_budget(steps=20 * 234))
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, batch_size=256, epochs=20)
    sparse = tfprune.remove_passive(model)
    ```
    """

    def __init__(
        self,
        learning_rate=0.01,
        compression=None,
        sparsity=None,
        momentum=0.98,
        weight_decay=5e-4,
        nesterov=False,
        scope="global",
        include=None,
        exclude=None,
        name="global_sparse_momentum",
        **kwargs,
    ):
        _check_amount(compression, sparsity, scope)
        if not isinstance(nesterov, bool):
            raise ValueError(
                f"`nesterov` must be a bool. Received: nesterov={nesterov!r}"
            )
        check_number("momentum", momentum, "[0, 1)")
        check_number("weight_decay", weight_decay, "[0, inf)")
        super().__init__(
            learning_rate=learning_rate, weight_decay=weight_decay, name=name, **kwargs
        )
        self.compression, self.sparsity = compression, sparsity
        self.momentum, self.nesterov, self.scope = momentum, nesterov, scope
        self.include = as_patterns("include", include) if include else []
        self.exclude = as_patterns("exclude", exclude) if exclude else []

    def build(self, variables):
        if self.built:
            return
        self._check_patterns(variables)
        kernels = self.pruned_of(variables)
        if not kernels:
            raise ValueError(
                "There is no kernel to prune among the trainable variables. Received: "
                f"scope={self.scope!r}, include={self.include}, exclude={self.exclude} "
                f"and variables {_paths(variables)}"
            )
        super().build(variables)
        self.momentums = self.add_optimizer_variables(variables, "momentum")
        _warn_of_regularizers(kernels)

    def _check_patterns(self, variables):
        given = {"include": self.include, "exclude": self.exclude}
        if isinstance(self.scope, Mapping):
            given["scope"] = list(self.scope)
        for name, patterns in given.items():
            for pattern in patterns:
                if not any(_matches(variable, [pattern]) for variable in variables):
                    # No error: it may name a layer that is frozen now, which no
                    # optimizer is told of.
                    warnings.warn(
                        f"`{name}`: the path pattern {pattern!r} matches no trainable "
                        "variable. A layer's kernel is '<layer>/kernel', all of its "
                        f"variables are '<layer>/*'. Those are: {_paths(variables)}",
                        stacklevel=4,
                    )

    # What is pruned --------------------------------------------------------------

    def pruned_of(self, variables) -> list:
        """Returns those of a list of variables that the optimizer prunes."""
        return [each for each in variables if self._fraction(each) is not None]

    def active_counts(self, variables=None) -> list:
        """Returns `(kernels, Q)` for each ranking: which compete, and how many win.

        Args:
            variables: list of variables, of which the pruned ones count. By default
                those that the optimizer was built with.
        """
        own = self._trainable_variables if variables is None else variables
        kernels = self.pruned_of(own)
        rankings = [kernels] if self.scope == "global" else [[each] for each in kernels]
        return [(each, self._active_count(each)) for each in rankings if each]

    def _active_count(self, kernels: list) -> int:
        total = sum(kernel.shape.num_elements() for kernel in kernels)
        # The least of what was asked goes; what a fraction cannot say costs no weight.
        return max(1, int((1 - self._fraction(kernels[0])) * total + 1e-6))

    def _fraction(self, variable) -> float | None:
        """Returns the fraction to remove from a variable; None if it is not pruned."""
        chosen = is_kernel(variable) or _matches(variable, self.include)
        if not chosen or _matches(variable, self.exclude):
            return None
        if isinstance(self.scope, Mapping):
            patterns = self.scope.items()
            return next((f for p, f in patterns if _matches(variable, [p])), None)
        return 1 - 1 / self.compression if self.sparsity is None else self.sparsity

    def trained_variables(self) -> list:
        """Returns the variables that it has moved, and still may: all if none may."""
        pairs = zip(self._trainable_variables, self.momentums, strict=True)
        moved = [variable for variable, momentum in pairs if momentum.numpy().any()]
        return [variable for variable in moved if variable.trainable] or moved

    def decay_budget(self, steps: int, start: int = 0) -> float:
        """Returns the decay of a run: it leaves about exp(-this) of a passive weight.

        Args:
            steps: int: optimizer steps of the run.
            start: int: steps before it, which a learning rate's schedule has behind it.

        Source: derived. The slow root of a passive weight's recursion is
        1 - learning rate * weight decay / (1 - momentum), in first order.
        """
        rate = self._learning_rate
        if not isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            rate = float(keras.ops.convert_to_numpy(self.learning_rate))
        return push(self.weight_decay, rate, steps, self.momentum, start)

    # Steps -------------------------------------------------------------------------

    def _apply_weight_decay(self, variables):
        """Does nothing: decay goes through the momentum."""

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        # The one place that sees all gradients at once: after loss scaling,
        # accumulation and clipping, and here, the sum over replicas.
        variables = [_native(variable) for variable in trainable_variables]
        pairs = self._all_reduce_sum_gradients(list(zip(grads, variables, strict=True)))
        pairs = [(tf.convert_to_tensor(gradient), v) for gradient, v in pairs]
        tf.__internal__.distribute.interim.maybe_merge_call(
            self._update_all,
            self._distribution_strategy,
            pairs,
            self._choose(pairs),
            learning_rate,
        )

    def _choose(self, pairs: list) -> list:
        """Returns `(threshold, importance)` for each gradient and variable.

        Active are the weights whose importance reaches the threshold. It is None where
        nothing is pruned, and the importance where a copy would be large.
        """
        own = [self._trainable_variables[self._get_variable_index(v)] for _, v in pairs]
        place = {id(variable): number for number, variable in enumerate(own)}
        chosen = [(None, None)] * len(pairs)
        for kernels, count in self.active_counts(own):
            places = [place[id(kernel)] for kernel in kernels]
            functions = [functools.partial(_importance, *pairs[n]) for n in places]
            sizes = [kernel.shape.num_elements() for kernel in kernels]
            kept = [None] * len(places)
            if sum(sizes) <= _MOST_KEPT:
                kept = [function() for function in functions]
                functions = [lambda importance=each: importance for each in kept]
            threshold = kth_largest(list(zip(sizes, functions, strict=True)), count)
            for number, importance in zip(places, kept, strict=True):
                chosen[number] = (threshold, importance)
        return chosen

    def _update_all(self, strategy, pairs, chosen, learning_rate):
        before = []
        for (gradient, variable), (threshold, importance) in zip(
            pairs, chosen, strict=True
        ):
            # Where copies are large, they live one after the other.
            is_large = threshold is not None and importance is None
            with tf.control_dependencies(before if is_large else []):
                done = strategy.extended.update(
                    variable,
                    self._update,
                    args=(gradient, learning_rate, threshold, importance),
                    group=False,
                )
            before = tf.nest.flatten(done) if is_large else before

    def _update(self, variable, gradient, learning_rate, threshold, importance):
        if threshold is not None:
            if importance is None:
                importance = _importance(gradient, variable)
            none = tf.zeros((), gradient.dtype)
            # A gradient that is no number reaches its weight, as with any optimizer.
            gradient = tf.where(importance < threshold, none, gradient)
            gradient = tf.cast(gradient, variable.dtype)
            if self._use_weight_decay(variable):
                gradient += tf.constant(self.weight_decay, variable.dtype) * variable
        return self.update_step(gradient, variable, learning_rate)

    def update_step(self, gradient, variable, learning_rate):
        """Moves a variable by momentum, with the learning rate outside of it."""
        variable = _native(variable)
        dtype = variable.dtype
        return tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=self.momentums[self._get_variable_index(variable)].value.handle,
            lr=tf.cast(learning_rate, dtype),
            grad=tf.cast(tf.convert_to_tensor(gradient), dtype),
            momentum=tf.constant(self.momentum, dtype),
            use_nesterov=self.nesterov,
        )

    def get_config(self):
        return {
            **super().get_config(),
            "compression": self.compression,
            "sparsity": self.sparsity,
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "scope": self.scope,
            "include": self.include,
            "exclude": self.exclude,
        }


def _native(variable):
    return variable.value if isinstance(variable, keras.Variable) else variable


def _importance(gradient, variable):
    """Returns |gradient * weight| as float32, in which small products survive."""
    weights = tf.cast(tf.convert_to_tensor(variable), tf.float32)
    return tf.abs(tf.cast(gradient, tf.float32) * weights)


def _matches(variable, patterns: list) -> bool:
    """Returns whether a variable's path, or the end of it, matches a pattern."""
    path = f"/{variable.path}"
    return any(fnmatch.fnmatchcase(path, f"*/{pattern}") for pattern in patterns)


def _paths(variables) -> list[str]:
    return [variable.path for variable in variables][:8]


def _check_amount(compression, sparsity, scope):
    if isinstance(scope, Mapping):
        if not scope:
            raise ValueError(
                "`scope` must name kernels: {path pattern: fraction}. It is {}."
            )
        for pattern, fraction in scope.items():
            check_number(f"scope[{pattern!r}]", fraction, "[0, 1)")
        if compression is not None or sparsity is not None:
            raise ValueError(
                "`scope` gives the fraction to remove from each kernel, so neither "
                "`compression` nor `sparsity` goes with it. Received: "
                f"scope={scope}, compression={compression}, sparsity={sparsity}"
            )
        return
    if scope not in ("global", "uniform"):
        raise ValueError(
            '`scope` must be "global", "uniform" or {path pattern: fraction}. '
            f"Received: scope={scope!r}"
        )
    if (compression is None) == (sparsity is None):
        raise ValueError(
            "Exactly one of `compression` (60 keeps a sixtieth) and `sparsity` (the "
            f"fraction removed) must be given. Received: compression={compression}, "
            f"sparsity={sparsity}"
        )
    if compression is not None:
        check_number("compression", compression, "[1, inf)")
    else:
        check_number("sparsity", sparsity, "[0, 1)", "the fraction to remove")


def _warn_of_regularizers(kernels: list):
    regularized = [each.path for each in kernels if each.regularizer is not None]
    if regularized:
        warnings.warn(
            f"{len(regularized)} kernels have a regularizer, such as {regularized[0]}. "
            "Its gradient passes for importance, and weights that only decay are "
            "freed of it. Build the model without, and use `weight_decay` instead.",
            stacklevel=3,
        )
