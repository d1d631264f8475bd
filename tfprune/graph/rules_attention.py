"""Rules of attention, einsum and products of two tensors."""

import numpy as np
from keras import layers

from tfprune.graph.call import Call, Tensor
from tfprune.graph.flows import mixed_axes
from tfprune.graph.registry import register_rule
from tfprune.layers.kernels import altered_kernel


@register_rule(layers.EinsumDense)
def einsum_dense(call: Call, x: Tensor):
    layer, (out,) = call.layer, call.outputs
    if altered_kernel(layer):
        return None
    terms = spell_out(layer.equation, len(x.shape), len(out.shape))
    result = product_with_kernel(call, x, layer.kernel, terms)
    _bind_bias(call, layer.bias, result)
    if layer.activation is not None:
        for axis in mixed_axes(layer.activation, len(result.shape)):
            call.lock(result.labels[axis], f"mixed by the activation of {call.path!r}")
    given = layer.partial_output_shape
    shape_labels = result.labels[len(result.labels) - len(given) :]
    call.settings = lambda kept: {
        "output_shape": tuple(
            size if size is None or each is None else int(kept(each).sum())
            for size, each in zip(given, shape_labels, strict=True)
        )
    }
    return result


def product_with_kernel(call: Call, x: Tensor, kernel, terms) -> Tensor:
    """Follows an einsum of a tensor and weights, and counts what it costs.

    Args:
        call: the call.
        x: the tensor.
        kernel: the weights.
        terms: letters of the axes of the tensor, the weights and the result.
    """
    inputs, letters, output = terms
    labels = dict(zip(inputs, x.labels, strict=True))
    made = {}
    for axis, letter in enumerate(letters):
        if letter not in output:
            call.read(kernel, axis, x, inputs.index(letter))
        elif letter in inputs:
            call.bind(kernel, axis, labels[letter])
        else:
            made[letter] = call.make(kernel, axis)
    places = [
        (size, labels[letter])
        for letter, size in zip(inputs[1:], x.shape[1:], strict=True)
        if letter not in letters
    ]
    call.count_macs(kernel, places)
    return call.outputs[0].with_labels(
        {a: made.get(c, labels.get(c)) for a, c in enumerate(output) if a > 0}
    )


def spell_out(equation: str, *ranks: int) -> tuple[list[str], ...]:
    """Returns the letters of each term of an einsum, the ellipsis written out.

    Args:
        equation: such as `"...x,xy->...y"`.
        ranks: rank of the first operand and of the result.
    """
    terms, result = equation.replace(" ", "").split("->")
    first, *others = terms.split(",")
    hidden = ranks[0] - len(first.replace("...", ""))
    extra = [f"<{number}>" for number in range(hidden)]

    def letters(term):
        if "..." not in term:
            return list(term)
        before, after = term.split("...")
        return [*before, *extra, *after]

    return tuple(letters(term) for term in (first, *others, result))


def _bind_bias(call: Call, bias, out: Tensor) -> None:
    """A bias lines up with the last axes of the output; axes of size 1 are spread."""
    if bias is None:
        return
    for axis in range(-len(bias.shape), 0):
        if bias.shape[axis] > 1:
            call.bind(bias, axis, out.labels[axis])


@register_rule(layers.MultiHeadAttention)
def multi_head_attention(call: Call, query: Tensor, value: Tensor, key=None, **kwargs):
    """Heads and the size of values may go; the key size is part of a fixed scale."""
    layer = call.layer
    if not _is_plain_attention(layer, layer._use_gate, kwargs) or len(query.shape) != 3:
        return None
    if len(layer._output_dense.kernel.shape) != 3:
        # Features on several axes, as its `output_shape` says.
        return None
    key = value if key is None else key
    _keep_places(call, query, value, key)
    sources = [(layer._query_dense, query), (layer._key_dense, key)]
    sources += [(layer._value_dense, value)]
    heads = call.make(layer._query_dense.kernel, 1)
    _keep_masked_heads(call, heads, kwargs.get("attention_mask"))
    sizes = call.make(layer._value_dense.kernel, 2)
    for dense, x in sources:
        call.read(dense.kernel, 0, x, -1)
        call.bind(dense.kernel, 1, heads)
        if dense.bias is not None:
            call.bind(dense.bias, 0, heads)
    if layer._value_dense.bias is not None:
        call.bind(layer._value_dense.bias, 1, sizes)
    made = _attention_output(call, layer._output_dense, heads, sizes)
    _count_attention(call, sources, query, value, (heads, sizes))
    call.settings = lambda kept: {
        "num_heads": _count(kept, heads, layer.num_heads),
        "value_dim": _count(kept, sizes, layer.value_dim),
        "output_shape": (_count(kept, made, layer._output_dense.kernel.shape[-1]),),
    }
    return call.outputs[0].with_labels({-1: made})


def _keep_places(call: Call, *tensors: Tensor) -> None:
    """Keeps the places of sequences: one of zeros is attended to as any other."""
    for x in tensors:
        call.lock_all(x, f"a place in {call.path!r}", but=len(x.shape) - 1)


def _is_plain_attention(layer, has_gate: bool, kwargs: dict) -> bool:
    return not (
        kwargs.get("return_attention_scores") or has_gate or altered_kernel(layer)
    )


def _keep_masked_heads(call: Call, heads, attention_mask) -> None:
    """Keeps heads that have a mask each: it would have to lose some as well."""
    shape = getattr(attention_mask, "shape", ())
    if len(shape) == 4 and shape[1] != 1:
        call.lock(heads, f"masked one by one in {call.path!r}")


def _attention_output(call: Call, dense, heads, sizes):
    """Binds the last projection; what it reads lies inside the layer, in no tensor."""
    inner = Tensor((None, 1, *dense.kernel.shape[:2]), (None, None, heads, sizes))
    call.read(dense.kernel, 0, inner, 2)
    call.read(dense.kernel, 1, inner, 3)
    made = call.make(dense.kernel, 2)
    if dense.bias is not None:
        call.bind(dense.bias, 0, made)
    return made


def _count(kept, labels, size: int) -> int:
    return size if labels is None else int(kept(labels).sum())


def _count_attention(call: Call, sources, query, value, made) -> None:
    (query_dense, _), *_ = sources
    steps, others = (query.shape[1], None), (value.shape[1], None)
    for dense, x in sources:
        call.count_macs(dense.kernel, [(x.shape[1], None)])
    call.count_macs(call.layer._output_dense.kernel, [steps])
    heads, sizes = made
    key_dim, value_dim = query_dense.kernel.shape[2], call.layer.value_dim
    head = (call.layer.num_heads, heads)
    call.count_product([steps, others, head, (key_dim, None)])
    call.count_product([steps, others, head, (value_dim, sizes)])


@register_rule(layers.GroupQueryAttention)
def grouped_query_attention(
    call: Call, query: Tensor, value: Tensor, key=None, **kwargs
):
    """A key/value head goes with all query heads that use it."""
    layer = call.layer
    if not _is_plain_attention(layer, layer.use_gate, kwargs):
        return None
    key = value if key is None else key
    _keep_places(call, query, value, key)
    groups = call.make(layer._key_dense.kernel, 1)
    heads = None if groups is None else np.repeat(groups, layer.num_repeats)
    _keep_masked_heads(call, groups, kwargs.get("attention_mask"))
    sources = [
        (layer._query_dense, query, heads),
        (layer._key_dense, key, groups),
        (layer._value_dense, value, groups),
    ]
    for dense, x, labels in sources:
        call.read(dense.kernel, 0, x, -1)
        call.bind(dense.kernel, 1, labels)
        if dense.bias is not None:
            call.bind(dense.bias, 0, labels)
        call.count_macs(dense.kernel, [(x.shape[1], None)])
    made = _attention_output(call, layer._output_dense, heads, None)
    call.count_macs(layer._output_dense.kernel, [(query.shape[1], None)])
    size = [
        (query.shape[1], None),
        (value.shape[1], None),
        (layer.num_query_heads, heads),
    ]
    for _ in range(2):
        call.count_product([*size, (layer.head_dim, None)])
    # The layer gives back as many features as its query has, and wants as many of
    # its value.
    call.tie(made, query.labels[-1], value.labels[-1])
    call.settings = lambda kept: {
        "num_query_heads": _count(kept, heads, layer.num_query_heads),
        "num_key_value_heads": _count(kept, groups, layer.num_key_value_heads),
    }
    return call.outputs[0].with_labels({-1: made})


@register_rule(layers.Attention)
def attention(call: Call, inputs, **kwargs):
    query, value, key = (*inputs, inputs[1])[:3]
    if len(call.outputs) != 1 or call.layer.score_mode != "dot":
        return None
    _keep_places(call, query, value, key)
    for x in (query, key):
        call.lock(x.labels[-1], f"compared in {call.path!r}")
    places = [(query.shape[1], None), (value.shape[1], None)]
    call.count_product([*places, (query.shape[-1], query.labels[-1])])
    call.count_product([*places, (value.shape[-1], value.labels[-1])])
    return call.outputs[0].with_labels({-1: value.labels[-1]})


@register_rule(layers.AdditiveAttention)
def additive_attention(call: Call, inputs, **kwargs):
    query, value, key = (*inputs, inputs[1])[:3]
    if len(call.outputs) != 1:
        return None
    _keep_places(call, query, value, key)
    for x in (query, key):
        if call.layer.use_scale:
            # What the scale meets is the tanh of a sum: one may be zero, the other not.
            call.read(call.layer.scale, 0, x, -1, adds_up=False)
        else:
            call.lock(x.labels[-1], f"compared in {call.path!r}")
    places = [(query.shape[1], None), (value.shape[1], None)]
    call.count_product([*places, (query.shape[-1], query.labels[-1])])
    call.count_product([*places, (value.shape[-1], value.labels[-1])])
    return call.outputs[0].with_labels({-1: value.labels[-1]})


def product(call: Call, tensors, terms) -> Tensor:
    """Follows an einsum of tensors: shared letters are tied, summed ones stay.

    Args:
        call: the call.
        tensors: the operands.
        terms: letters of each operand's axes, and of the result's.
    """
    *operands, output = terms
    sizes, labels = {}, {}
    for x, letters in zip(tensors, operands, strict=True):
        for letter, size, each in zip(letters, x.shape, x.labels, strict=True):
            if size != 1:
                sizes[letter] = size
                labels.setdefault(letter, []).append(each)
    tied = {letter: call.tie(*each) for letter, each in labels.items()}
    for letter, each in tied.items():
        if letter not in output:
            call.lock(each, f"summed over in {call.path!r}")
    batch = output[0]
    call.count_product([(sizes[c], tied[c]) for c in sizes if c != batch])
    return call.outputs[0].with_labels(
        {a: tied.get(c) for a, c in enumerate(output) if a > 0}
    )


@register_rule(layers.Dot)
def dot(call: Call, tensors):
    ranks = [len(x.shape) for x in tensors]
    axes = np.broadcast_to(call.layer.axes, 2) % ranks
    terms = [[f"<{n}.{axis}>" for axis in range(rank)] for n, rank in enumerate(ranks)]
    for term, axis in zip(terms, axes, strict=True):
        term[0], term[axis] = "batch", "summed"
    if call.layer.normalize:
        for x, axis in zip(tensors, axes, strict=True):
            call.lock(x.labels[axis], f"normalized in {call.path!r}")
    rest = [letter for term in terms for letter in term if letter.startswith("<")]
    return product(call, tensors, (*terms, ["batch", *rest]))
