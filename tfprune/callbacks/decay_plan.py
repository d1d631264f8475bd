"""What `Preflight` tells of a run with GlobalSparseMomentum."""

import warnings

import keras
import numpy as np

from tfprune import training
from tfprune.optimizers import GlobalSparseMomentum

# A budget that leaves a thousandth of a passive weight.
_ENOUGH = 7.0


def sparse_momentum(model):
    """Returns a model's `GlobalSparseMomentum`, None if it has another optimizer."""
    optimizer = training.inner_optimizer(model)
    return optimizer if isinstance(optimizer, GlobalSparseMomentum) else None


def check_decay(model, params, start: int) -> None:
    """Warns of what would keep weights from decaying, before the first step.

    Args:
        model: model compiled with the optimizer.
        params: the `params` of a callback.
        start: the value of `optimizer.iterations` at which the run begins.
    """
    optimizer = sparse_momentum(model)
    steps = training.total_steps(model, params)
    rate = _highest_rate(optimizer, steps, start)
    bound = (1 - optimizer.momentum**0.5) ** 2
    if steps and (budget := optimizer.decay_budget(steps, start)) < _ENOUGH:
        _warn(
            f"passive weights will keep {np.exp(-budget):.1%} of their size after "
            f"{steps} steps (decay budget {budget:.2g}, {_ENOUGH:g} is enough), so "
            "zeroing them will cost accuracy. "
            f"{_advice(optimizer, steps, budget, bound / rate if rate else 0.0)}"
        )
    if rate * optimizer.weight_decay > bound:
        _warn(
            f"the learning rate ({rate:.3g}) times `weight_decay` "
            f"({optimizer.weight_decay:.3g}) is above (1 - sqrt(momentum))^2 = "
            f"{bound:.3g}: passive weights swing through zero instead of decaying. "
            "Lower either, or the momentum."
        )
    dead = [
        kernel.path
        for kernel in optimizer.pruned_of(model.trainable_variables)
        if not np.any(kernel.numpy())
    ]
    if dead:
        _warn(
            f"{len(dead)} kernels are all zero, such as {dead[0]}. A weight of zero has "
            "no importance, so they would stay so. Leave them out with `exclude`."
        )


def _advice(optimizer, steps: int, budget: float, most: float) -> str:
    """Returns how the budget becomes enough, without a decay at which weights swing."""
    if not budget:
        return "Take a `weight_decay` and a learning rate above 0."
    # Rounded to two digits it is still enough.
    needed = 1.05 * optimizer.weight_decay * _ENOUGH / budget
    if needed <= most:
        return f"Train longer, or take `weight_decay={needed:.2g}`."
    longer, decay = int(steps * needed / (0.9 * most)), f"{0.95 * most:.2g}"
    return f"Train for {longer:,} steps or more, with `weight_decay={decay}`."


def describe_decay(model, params, start: int) -> str:
    """Returns what the optimizer will do in the run, as text; see `check_decay`."""
    optimizer = sparse_momentum(model)
    rankings = optimizer.active_counts(model.trainable_variables)
    kernels = [kernel for own, _ in rankings for kernel in own]
    total = sum(int(np.prod(kernel.shape)) for kernel in kernels)
    active = sum(count for _, count in rankings)
    steps = training.total_steps(model, params)
    lines = [
        f"GlobalSparseMomentum: {active:,} of {total:,} weights in {len(kernels)} "
        f"kernels are to stay ({total / active:.1f}x)"
    ]
    if steps:
        lines.append(
            f"  decay budget: {optimizer.decay_budget(steps, start):.3g} in "
            f"{steps} steps"
        )
    return "\n".join(lines)


def _highest_rate(optimizer, steps, start: int) -> float:
    rate = optimizer._learning_rate
    if not isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return float(keras.ops.convert_to_numpy(optimizer.learning_rate))
    places = start + np.unique(np.linspace(0, (steps or 1) - 1, 100).astype(int))
    return max(float(rate(place)) for place in places.tolist())


def _warn(what: str) -> None:
    warnings.warn(f"`GlobalSparseMomentum`: {what}", stacklevel=4)
