"""Rules for how a primitive ties the axes of its operands to the axes of its results.

A rule is `(eqn, operands, results) -> None`; operands and results are tuples of `Axis` nodes, one per array axis. It
calls `tie` where two axes index the same channels and `freeze` where the result depends on the order along an axis. An
axis about which no rule says anything may be permuted freely: sums and maxima do not depend on the order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from jaxguard.graph import axes
from jaxguard.graph.axes import Axis, freeze, tie
from jaxguard.graph.program import Equation

Axes = tuple[Axis, ...]
Rule = Callable[[Equation, Sequence[Axes], Sequence[Axes]], None]


def _tie_equal_sizes(operand: Iterable[Axis], result: Iterable[Axis]) -> None:
    for a, b in zip(operand, result, strict=True):
        if a.size == b.size:
            tie(a, b)


def _freeze_all(nodes: Iterable[Axis], reason: str) -> None:
    for node in nodes:
        freeze(node, reason)


def elementwise(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """`y = f(a, b, ...)` element by element; scalars and unit axes broadcast."""
    for result in results:
        for operand in operands:
            if operand:
                _tie_equal_sizes(operand, result)


def identity(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """Each result is its operand."""
    for operand, result in zip(operands, results, strict=True):
        _tie_equal_sizes(operand, result)


def reduction(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """Symmetric reduction over `axes`."""
    kept = [axis for k, axis in enumerate(operands[0]) if k not in eqn.params["axes"]]
    for result in results:
        _tie_equal_sizes(kept, result)


def arg_reduction(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """The index of an extremum depends on the order."""
    _freeze_all((operands[0][k] for k in eqn.params["axes"]), eqn.name)
    reduction(eqn, operands, results)


def along_axis(parameter: str) -> Rule:
    """Order-dependent along the axes that a parameter names, elementwise along the others."""

    def rule(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
        along = eqn.params[parameter]
        for operand in operands[1:]:
            _tie_equal_sizes(operands[0], operand)
        for operand, result in zip(operands, results, strict=True):
            for k in [along] if isinstance(along, int) else along:
                freeze(operand[k], eqn.name)
            _tie_equal_sizes(operand, result)

    return rule


def top_k(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """Order-dependent along the last axis, or along `axis` where the primitive has it."""
    along = eqn.params.get("axis", -1) % len(operands[0])
    freeze(operands[0][along], eqn.name)
    for result in results:
        freeze(result[along], eqn.name)
        _tie_equal_sizes(
            [axis for k, axis in enumerate(operands[0]) if k != along],
            [axis for k, axis in enumerate(result) if k != along],
        )


def transpose(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """`result[k] = operand[permutation[k]]`."""
    _tie_equal_sizes((operands[0][k] for k in eqn.params["permutation"]), results[0])


def broadcast_in_dim(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """New axes repeat the operand and are free."""
    _tie_equal_sizes(operands[0], (results[0][k] for k in eqn.params["broadcast_dimensions"]))


def squeeze(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """Unit axes vanish."""
    _tie_equal_sizes((a for k, a in enumerate(operands[0]) if k not in eqn.params["dimensions"]), results[0])


def reshape(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """Row-major regrouping: runs of axes with equal products are tied as products, unit axes ignored."""
    if eqn.params.get("dimensions") is not None:
        freeze_everything(eqn, operands, results)
        return
    source = [axis for axis in operands[0] if axis.size != 1]
    target = [axis for axis in results[0] if axis.size != 1]
    # Collect axes on either side until their products agree; each such pair is one axis seen in two shapes.
    while source and target:
        left, right = [source.pop(0)], [target.pop(0)]
        size_left, size_right = left[0].size, right[0].size
        while size_left != size_right:
            if size_left < size_right:
                left.append(source.pop(0))
                size_left *= left[-1].size
            else:
                right.append(target.pop(0))
                size_right *= right[-1].size
        tie(axes.product(left), axes.product(right))


def tile(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """Each axis repeated end to end."""
    for a, b in zip(operands[0], results[0], strict=True):
        if a.size:  # row-major: the copy varies slowest
            tie(axes.product([Axis(b.size // a.size), a]), b)


def concatenate(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """Parts laid end to end along `dimension`."""
    along = eqn.params["dimension"]
    if parts := [operand[along] for operand in operands if operand[along].size]:
        tie(axes.total(parts), results[0][along])
    for operand in operands:
        _tie_equal_sizes(*([a for k, a in enumerate(x) if k != along] for x in (operand, results[0])))


def _take(axis: Axis, sizes: Sequence[int], reason: str) -> Sequence[Axis]:
    """Parts of an axis; where its structure forbids the cut, everything about it is frozen."""
    parts = axes.cut(axis, sizes)
    if parts is None:
        freeze(axis, reason)
        parts = [Axis(size, reason) for size in sizes]
    return parts


def slice_(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """A run of each axis; a stride reads by position."""
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    for a, b, start, limit, stride in zip(operands[0], results[0], starts, limits, strides, strict=True):
        if stride != 1:
            freeze(a, "strided slice")
            freeze(b, "strided slice")
        elif a.size == b.size:
            tie(a, b)
        elif b.size:
            sizes = [size for size in (start, limit - start, a.size - limit) if size]
            tie(_take(a, sizes, "slice")[1 if start else 0], b)


def dynamic_slice(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """Whole axes pass, the others are read by position."""
    for a, b in zip(operands[0], results[0], strict=True):
        if a.size == b.size:
            tie(a, b)
        else:
            freeze(a, eqn.name)
            freeze(b, eqn.name)


def dynamic_update_slice(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """Whole axes of the update are tied, the others are written by position."""
    for a, update, b in zip(operands[0], operands[1], results[0], strict=True):
        tie(a, b)
        if update.size == a.size:
            tie(update, a)
        else:
            freeze(a, eqn.name)
            freeze(update, eqn.name)


def gather(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """Axes taken whole pass through; indexed ones are read by position, and index axes come out as batch axes."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    operand, indices = operands
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    # Offset axes of the result are the operand's axes that are neither indexed by one element nor batched, in order.
    kept = [k for k in range(len(operand)) if k not in (*numbers.collapsed_slice_dims, *batching)]
    for k, position in zip(kept, numbers.offset_dims, strict=True):
        if sizes[k] == operand[k].size:
            tie(operand[k], results[0][position])
        else:
            freeze(operand[k], "gather")
            freeze(results[0][position], "gather")
    for k in numbers.collapsed_slice_dims:
        freeze(operand[k], "gather")
    batch = [axis for k, axis in enumerate(results[0]) if k not in numbers.offset_dims]
    _tie_equal_sizes(indices[:-1], batch)
    for k, where in zip(batching, getattr(numbers, "start_indices_batching_dims", ()), strict=True):
        tie(operand[k], indices[where])
    if indices:
        freeze(indices[-1], "gather")


def pad(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """Edges are new, uniform channels; negative edges cut; interior padding writes by position."""
    for a, b, (low, high, interior) in zip(operands[0], results[0], eqn.params["padding_config"], strict=True):
        if interior:
            freeze(a, "interior padding")
            freeze(b, "interior padding")
            continue
        drop_low, drop_high = max(-low, 0), max(-high, 0)
        if a.size <= drop_low + drop_high:  # nothing of it is left
            continue
        sizes = [size for size in (drop_low, a.size - drop_low - drop_high, drop_high) if size]
        middle = _take(a, sizes, "pad")[1 if drop_low else 0]
        tie(axes.total([Axis(max(low, 0)), middle, Axis(max(high, 0))]), b)


def windowed(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """Pooling: axes with a window of one pass, the others are positions."""
    params = eqn.params
    strides = params.get("window_strides") or (1,) * len(operands[0])
    for a, b, window, stride in zip(operands[0], results[0], params["window_dimensions"], strides, strict=True):
        if window == 1 and stride == 1 and a.size == b.size:
            tie(a, b)
        else:
            freeze(a, "window")
            freeze(b, "window")


def dot_general(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """Batch axes first, then the free axes of the left operand, then of the right."""
    (contract_left, contract_right), (batch_left, batch_right) = eqn.params["dimension_numbers"]
    left, right = operands
    for i, j in zip((*contract_left, *batch_left), (*contract_right, *batch_right), strict=True):
        tie(left[i], right[j])
    free_left = [a for k, a in enumerate(left) if k not in (*contract_left, *batch_left)]
    free_right = [a for k, a in enumerate(right) if k not in (*contract_right, *batch_right)]
    _tie_equal_sizes([*(left[i] for i in batch_left), *free_left, *free_right], results[0])


def conv_general_dilated(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """`groups` blocks of input channels, each mapped to its block of output channels; space is position."""
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    (images, kernel), (result,) = operands, results
    batch, features, *space = (images[k] for k in numbers.lhs_spec)
    kernel_out, kernel_in, *taps = (kernel[k] for k in numbers.rhs_spec)
    out_batch, out_features, *out_space = (result[k] for k in numbers.out_spec)
    _freeze_all((*space, *taps, *out_space), "window")
    if eqn.params["batch_group_count"] != 1:
        freeze_everything(eqn, operands, results)
        return
    tie(batch, out_batch)
    tie(kernel_out, out_features)
    # Input channels are (group, channel within), outputs (group, output within), with one axis of groups for both.
    block_out = Axis(kernel_out.size // groups)
    block = Axis(groups)
    tie(axes.product([block, kernel_in]), features)
    tie(axes.product([block, block_out]), kernel_out)


def iota(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """Counts along `dimension`; the same everywhere else."""
    freeze(results[0][eqn.params["dimension"]], "iota")


def fft(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """The last axes are transformed, the others pass."""
    leading(len(eqn.params["fft_lengths"]))(eqn, operands, results)


def reduce_by_function(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """A reduction by a function of the model's own, which may depend on the order."""
    along = eqn.params["dimensions"]
    for operand, result in zip(operands[: len(results)], results, strict=True):
        _freeze_all((operand[k] for k in along), eqn.name)
        _tie_equal_sizes((axis for k, axis in enumerate(operand) if k not in along), result)


def leading(rank: int) -> Rule:
    """Matrices or vectors along the last `rank` axes, one for each position of the leading axes."""

    def rule(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
        first = operands[0][: len(operands[0]) - rank]
        for nodes in (*operands, *results):
            _tie_equal_sizes(first, nodes[: len(first)])
            _freeze_all(nodes[len(first) :], eqn.name)

    return rule


def scatter(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """The mirror of `gather`: axes written whole pass through, indexed ones are written by position."""
    numbers = eqn.params["dimension_numbers"]
    operand, indices, updates = operands
    _tie_equal_sizes(operand, results[0])
    batching = tuple(numbers.operand_batching_dims)
    # Window axes of the updates are the operand's axes that are neither indexed by one element nor batched, in order.
    kept = [k for k in range(len(operand)) if k not in (*numbers.inserted_window_dims, *batching)]
    for k, position in zip(kept, numbers.update_window_dims, strict=True):
        if updates[position].size == operand[k].size:
            tie(operand[k], updates[position])
        else:
            _freeze_all((operand[k], updates[position]), eqn.name)
    _freeze_all((operand[k] for k in numbers.inserted_window_dims), eqn.name)
    batch = [axis for k, axis in enumerate(updates) if k not in numbers.update_window_dims]
    _tie_equal_sizes(indices[:-1], batch)
    for k, where in zip(batching, numbers.scatter_indices_batching_dims, strict=True):
        tie(operand[k], indices[where])
    # Of two updates of one element the later one stays, so that their order matters.
    _freeze_all((axis for k, axis in enumerate(indices) if k not in numbers.scatter_indices_batching_dims), eqn.name)


def freeze_everything(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """Order-dependent in ways not worth a rule."""
    for nodes in (*operands, *results):
        _freeze_all(nodes, eqn.name)


def opaque(eqn: Equation, operands: Sequence[Axes], results: Sequence[Axes]) -> None:
    """It is unknown, so every axis may be read by position."""
    reason = f"`{eqn.name}` at {eqn.where}"
    for nodes in (*operands, *results):
        _freeze_all(nodes, reason)
