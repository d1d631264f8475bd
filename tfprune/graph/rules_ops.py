"""Rules of `keras.ops` and operators in functional models."""

import numpy as np
from keras.src.ops import core, linalg, math, nn
from keras.src.ops import numpy as knp

from tfprune.graph.call import Call, Tensor
from tfprune.graph.flows import (
    channelwise,
    concatenate,
    elementwise,
    move,
    nothing_known,
    only_zeros,
    passed_on,
)
from tfprune.graph.joins import is_join, join
from tfprune.graph.literals import is_variable
from tfprune.graph.registry import register_rule
from tfprune.graph.rules_attention import product, product_with_kernel, spell_out
from tfprune.graph.rules_shapes import narrowed_shape


def _types(module, names: str) -> list[type]:
    """Returns the operation classes of these names that this Keras has."""
    return [getattr(module, name) for name in names.split() if hasattr(module, name)]


@register_rule(
    *_types(nn, "Relu Relu6 Sigmoid Softplus Softsign Silu LogSigmoid LeakyRelu "
            "HardSigmoid HardSilu Elu Selu Gelu Celu TanhShrink HardTanh HardShrink "
            "SoftShrink Squareplus Threshold"),
    *_types(knp, "Absolute Abs Negative Square Sqrt Exp Expm1 Log Log1p Tanh Sin Cos "
            "Reciprocal Round Sign Floor Ceil Copy NanToNum LogicalNot "
            "Subtract Divide TrueDivide DivideNoNan FloorDivide Maximum Minimum Power "
            "Mod Where Greater GreaterEqual Less LessEqual Equal NotEqual LogicalAnd "
            "LogicalOr"),
    *_types(core, "Cast StopGradient"),
)  # fmt: skip
def pointwise(call: Call, *operands):
    return elementwise(call, *operands)


@register_rule(knp.Clip)
def clip(call: Call, x: Tensor):
    if max(np.size(call.operation.x_min), np.size(call.operation.x_max)) > 1:
        call.lock_all(x, f"{call.path!r} holds limits one by one")
        return Tensor(call.outputs[0].shape, x.labels)
    return elementwise(call, x)


@register_rule(knp.Add)
def add(call: Call, *operands):
    if is_join(call, operands):
        return join(call, operands, call.operation.call)
    return elementwise(call, *operands)


@register_rule(knp.Multiply)
def multiply(call: Call, *operands):
    return elementwise(call, *operands, absorbing=True)


@register_rule(knp.Concatenate)
def concatenate_op(call: Call, tensors):
    if not all(isinstance(each, Tensor) for each in tensors):
        return None
    return concatenate(call, tensors, call.operation.axis)


@register_rule(*_types(knp, "Transpose Swapaxes Moveaxis Squeeze ExpandDims Flip"))
def rearrange(call: Call, x: Tensor):
    return move(call, x)


@register_rule(knp.Repeat, knp.Tile)
def repeat(call: Call, x: Tensor):
    if np.size(call.operation.repeats) > 1 and isinstance(call.operation, knp.Repeat):
        # A count for every channel says how many there are.
        return None
    return move(call, x)


@register_rule(knp.Reshape)
def reshape(call: Call, x: Tensor):
    (out,) = move(call, x)

    literal = tuple(call.operation.newshape)
    call.settings = lambda kept: {"newshape": narrowed_shape(literal, out.labels, kept)}
    return out


@register_rule(knp.GetItem)
def get_item(call: Call, x: Tensor, key):
    keys = _spelled_out(key, len(x.shape))
    if keys is None:
        return None
    # A key of None is a new axis, in front of the next old one.
    picks = [k for k in keys if k is not None]
    for axis in x.labeled_axes:
        if not isinstance(picks[axis], slice) or picks[axis].step not in (None, 1):
            call.lock(x.labels[axis], f"picked one by one in {call.path!r}")
    (out,) = move(call, x, lambda value: call.operation.call(value, key))

    def arguments(kept, args, kwargs):
        labels = iter(x.labels)
        new = [k if k is None else _narrowed(k, next(labels), kept) for k in keys]
        return (args[0], tuple(new)), {}

    call.arguments = arguments
    return out


@register_rule(knp.Take)
def take(call: Call, x: Tensor, indices):
    axis = call.operation.axis
    if axis is None or isinstance(indices, Tensor) or np.ndim(indices) != 1:
        return None
    axis = axis % len(x.shape)
    call.lock(x.labels[axis], f"picked one by one in {call.path!r}")
    others = {a: x.labels[a] for a in x.labeled_axes if a != axis}
    return Tensor(call.outputs[0].shape).with_labels(others)


def _spelled_out(key, rank: int) -> list | None:
    """Returns one slice or int per axis, and None for new ones; None for other keys."""
    keys = list(key) if isinstance(key, (tuple, list)) else [key]
    if not all(isinstance(k, (slice, int)) or k is None or k is ... for k in keys):
        return None
    at = keys.index(...) if ... in keys else len(keys)
    named = sum(isinstance(k, (slice, int)) for k in keys)
    keys[at : at + 1] = [slice(None)] * (rank - named)
    return keys


def _narrowed(key, labels, kept):
    """Returns the slice of a narrower axis that picks the kept ones of the old."""
    if labels is None or not isinstance(key, slice) or key == slice(None):
        return key
    stays = kept(labels)
    if stays.all():
        return key
    start, stop, _ = key.indices(len(stays))
    return slice(int(stays[:start].sum()), int(stays[: max(start, stop)].sum()))


@register_rule(knp.Split)
def split(call: Call, x: Tensor):
    axis = call.operation.axis % len(x.shape)
    outputs = move(call, x)
    if x.labels[axis] is not None:
        ends = np.cumsum([out.shape[axis] for out in outputs])[:-1]

        def settings(kept):
            places = np.cumsum(np.append(0, kept(x.labels[axis])))
            return {"indices_or_sections": [int(places[end]) for end in ends]}

        call.settings = settings
    return outputs


@register_rule(knp.Pad)
def pad(call: Call, x: Tensor, constant_values=None):
    operation = call.operation
    if len(operation.pad_width) != len(x.shape):
        return None
    widths = [tuple(int(w) for w in pair) for pair in operation.pad_width]
    if operation.mode != "constant":
        # Every channel is padded with what is in it.
        is_own = len(x.labeled_axes) == 1 and not any(widths[x.labeled_axes[0]])
        return channelwise(call, x, x.labeled_axes[0]) if is_own else None
    (out,) = move(
        call,
        x,
        # Made-up entries have to be -1, so positions are shifted around the pad.
        lambda value: operation.call(value + 1) - 1,
        pads_zero=not constant_values,
    )

    def settings(kept):
        return {
            "pad_width": tuple(
                _kept_pad(kept, pair, labels)
                for pair, labels in zip(widths, out.labels, strict=True)
            )
        }

    call.settings = settings
    return out


def _kept_pad(kept, widths, labels) -> tuple:
    if labels is None or not any(widths):
        return widths
    stays = kept(labels)
    before, after = widths
    return int(stays[:before].sum()), int(stays[len(stays) - after :].sum())


@register_rule(*_types(core, "Unstack"))
def unstack(call: Call, x: Tensor):
    return move(call, x)


_AVERAGES = tuple(_types(knp, "Mean Max Min Amax Amin Median"))
_LOGARITHMS = tuple(_types(math, "Logsumexp"))


@register_rule(
    *_AVERAGES,
    *_types(knp, "Sum Prod Std Var"),
    *_types(linalg, "Norm"),
    *_LOGARITHMS,
)
def reduction(call: Call, x: Tensor):
    axes, rank = call.operation.axis, len(x.shape)
    axes = range(rank) if axes is None else np.atleast_1d(axes) % rank
    for axis in axes:
        call.lock(x.labels[axis], f"reduced over the channels in {call.path!r}")
    keeps = [axis for axis in range(rank) if axis not in set(axes)]
    labeled = [axis for axis in keeps if x.labels[axis] is not None]
    if len(labeled) != 1:
        call.lock_all(x, f"reduced in {call.path!r}")
        return call.outputs[0]
    axis = labeled[0]
    to = axis if call.operation.keepdims else keeps.index(axis)
    constants = passed_on if isinstance(call.operation, _AVERAGES) else only_zeros
    # A value that counts beside those of the tensor.
    has_initial = getattr(call.operation, "initial", None) is not None
    if has_initial or isinstance(call.operation, _LOGARITHMS):
        constants = nothing_known
    return channelwise(call, x, axis, to, constants)


@register_rule(knp.Matmul)
def matmul(call: Call, *tensors):
    x, other = tensors
    if isinstance(x, Tensor) and is_variable(other) and len(other.shape) == 2:
        letters = ["batch", *map(str, range(len(x.shape) - 2)), "read"]
        terms = letters, ["read", "made"], [*letters[:-1], "made"]
        return product_with_kernel(call, x, other, terms)
    if not all(isinstance(x, Tensor) and len(x.shape) > 1 for x in tensors):
        return None
    rank = max(len(x.shape) for x in tensors)
    batch = [f"<{number}>" for number in range(rank - 2)]
    terms = [
        batch[len(batch) - len(x.shape) + 2 :] + last
        for x, last in zip(tensors, (["i", "k"], ["k", "j"]), strict=True)
    ]
    return product(call, tensors, (*terms, [*batch, "i", "j"]))


@register_rule(knp.Einsum)
def einsum(call: Call, *tensors):
    equation = call.operation.subscripts
    x, *others = tensors
    if "->" not in equation or not isinstance(x, Tensor):
        return None
    terms = spell_out(equation, len(x.shape))
    if len(others) == 1 and is_variable(others[0]):
        return product_with_kernel(call, x, others[0], terms)
    if not all(isinstance(each, Tensor) for each in others):
        return None
    return product(call, tensors, terms)


@register_rule(nn.DotProductAttention)
def dot_product_attention(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias=None,
    mask=None,
    **kwargs,
):
    """Heads may go; sizes stay, as the scale depends on them and Keras on their being
    those of values."""
    if len({x.shape[2] for x in (query, key, value)}) > 1:
        # A single key for several heads is more than TensorFlow can do.
        return None
    for x in (query, key, value):
        call.lock_all(x, f"a place or a size in {call.path!r}", but=2)
    heads = call.tie(*(x.labels[2] for x in (query, key, value)))
    if any(x is not None and x.shape[-3] > 1 for x in (bias, mask)):
        call.lock(heads, f"biased or masked one by one in {call.path!r}")
    places = [(query.shape[1], None), (key.shape[1], None), (query.shape[2], heads)]
    for x in (query, value):
        call.count_product([*places, (x.shape[3], None)])
    return call.outputs[0].with_labels({2: heads})
