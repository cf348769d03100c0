"""What each kind of step ties, by the name of its primitive."""

from collections.abc import Sequence

import numpy as np

from swapjax.roles.program.primitives import BENT, LINEAR
from swapjax.roles.ties import reshape, sums
from swapjax.roles.ties.state import Axes, State
from swapjax.roles.ties.steps import Step
from swapjax.roles.ties.sums import Rule
from swapjax.roles.ties.union import Labels

_RUNNING = frozenset({"cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"})
_ACROSS = frozenset({"pmax", "pmin", "ppermute", "psum", "psum_invariant"})
ELEMENTWISE = (LINEAR | BENT) - _RUNNING - _ACROSS


def _elementwise(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    """Tie operands and results of one shape; what has size one is repeated."""
    results = []
    for number in step.makes:
        shape = state.shapes[number]
        made: list[Labels | None] = [None] * len(shape)
        for axes in operands:
            if len(axes) != len(shape):
                continue  # a scalar
            for i, labels in enumerate(axes):
                if len(labels) == shape[i]:
                    first = made[i]
                    if first is None:
                        made[i] = labels
                    else:
                        state.union.tie(first, labels)
        results.append(state.filled(made, shape))
    return results


def _each_its_own(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    """Hand several values on."""
    del state, step
    return list(operands)


def _broadcast(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    shape = state.shapes[step.makes[0]]
    made: list[Labels | None] = [None] * len(shape)
    for dim, labels in zip(
        step.equation.params["broadcast_dimensions"], operands[0], strict=True
    ):
        if len(labels) == shape[dim]:
            made[dim] = labels
    return [state.filled(made, shape)]


def _reshape(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    (before,) = operands[:1]
    old, new = state.shapes[step.reads[0]], state.shapes[step.makes[0]]
    if step.equation.params.get("dimensions") is not None or 0 in old:
        return state.unknown(step, operands)
    made = list(state.fresh(new))
    for left, right in reshape.blocks(old, new):
        if len(left) == len(right) == 1:
            made[right[0]] = before[left[0]]
            continue
        state.reshapes.append(
            reshape.Reshape(
                tuple(before[i] for i in left), tuple(made[i] for i in right)
            )
        )
    return [tuple(made)]


def _transpose(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    return [tuple(operands[0][i] for i in step.equation.params["permutation"])]


def _squeeze(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    gone = step.equation.params["dimensions"]
    return [tuple(x for i, x in enumerate(operands[0]) if i not in gone)]


def _expand(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    new, left = step.equation.params["dimensions"], list(operands[0])
    rank = len(state.shapes[step.makes[0]])
    return [
        tuple(state.fresh((1,))[0] if i in new else left.pop(0) for i in range(rank))
    ]


def _rev(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    turned = step.equation.params["dimensions"]
    return [tuple(x[::-1] if i in turned else x for i, x in enumerate(operands[0]))]


def _slice(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    params = step.equation.params
    strides = params["strides"] or (1,) * len(operands[0])
    limits = params["start_indices"], params["limit_indices"], strides
    return [
        tuple(
            _one_stays(state, labels[first:last:stride])
            for labels, first, last, stride in zip(operands[0], *limits, strict=True)
        )
    ]


def _one_stays(state: State, labels: Labels) -> Labels:
    """Pin an axis that has one place left."""
    if len(labels) == 1:
        state.union.pin(labels, "is one place that is taken out")
    return labels


def _split(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    axis, sizes = step.equation.params["axis"], step.equation.params["sizes"]
    parts = np.split(operands[0][axis], np.cumsum(sizes)[:-1])
    return [
        (*operands[0][:axis], _one_stays(state, part), *operands[0][axis + 1 :])
        for part in parts
    ]


def _concatenate(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    dim = step.equation.params["dimension"]
    made = list(operands[0])
    for axes in operands[1:]:
        for i, labels in enumerate(axes):
            if i != dim:
                state.union.tie(made[i], labels)
    made[dim] = np.concatenate([axes[dim] for axes in operands])
    return [tuple(made)]


def _pad(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    made = []
    for labels, (low, high, inner) in zip(
        operands[0], step.equation.params["padding_config"], strict=True
    ):
        if inner or low < 0 or high < 0:
            why = "is padded between its places"
            state.union.pin(labels, why)
            size = len(labels) + low + high + inner * max(len(labels) - 1, 0)
            made.append(state.fresh((size,), why)[0])
        elif low or high:
            ends = state.union.fresh(low), state.union.fresh(high)
            made.append(np.concatenate([ends[0], labels, ends[1]]))
        else:
            made.append(labels)
    return [tuple(made)]


def _iota(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    made = state.fresh(state.shapes[step.makes[0]])
    state.union.pin(made[step.equation.params["dimension"]], "has its places counted")
    return [made]


def _gather(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    numbers, sizes = (
        step.equation.params[n] for n in ("dimension_numbers", "slice_sizes")
    )
    table, places = operands
    shape = state.shapes[step.makes[0]]
    why = "is looked up by number"
    state.union.pin(places[-1], why)
    made: list[Labels | None] = [None] * len(shape)
    batching = tuple(numbers.operand_batching_dims)
    dropped = (*numbers.collapsed_slice_dims, *batching)
    kept = [i for i in range(len(table)) if i not in dropped]
    for dim, i in zip(sorted(numbers.offset_dims), kept, strict=True):
        if sizes[i] == len(table[i]):
            made[dim] = table[i]
    taken = [labels for labels in made if labels is not None]
    for i, labels in enumerate(table):
        if i not in batching and not any(labels is x for x in taken):
            state.union.pin(labels, why)
    rest = [i for i in range(len(shape)) if i not in numbers.offset_dims]
    for dim, labels in zip(rest, places[:-1], strict=True):
        made[dim] = labels
    for i, j in zip(batching, numbers.start_indices_batching_dims, strict=True):
        state.union.tie(table[i], places[j])
    return [state.filled(made, shape, why)]


def _dynamic_slice(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    shape, made, why = (
        state.shapes[step.makes[0]],
        [],
        "has a part of it taken by number",
    )
    for labels, n in zip(operands[0], shape, strict=True):
        if len(labels) == n:
            made.append(labels)
        else:
            state.union.pin(labels, why)
            made.append(state.fresh((n,), why)[0])
    return [tuple(made)]


def _dynamic_update(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    for whole, part in zip(operands[0], operands[1], strict=True):
        if len(whole) == len(part):
            state.union.tie(whole, part)
        else:
            state.union.pin(whole, "has a part of it written by number")
            state.union.pin(part, "is written to a part by number")
    return [operands[0]]


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "optimization_barrier": _each_its_own,
    "argmax": sums.reduce,
    "argmin": sums.reduce,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": sums.convolution,
    "cumlogsumexp": sums.along("axis"),
    "cummax": sums.along("axis"),
    "cummin": sums.along("axis"),
    "cumprod": sums.along("axis"),
    "cumsum": sums.along("axis"),
    "dot_general": sums.dot,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update,
    "expand_dims": _expand,
    "gather": _gather,
    "iota": _iota,
    "pad": _pad,
    "reduce_and": sums.reduce,
    "reduce_max": sums.reduce,
    "reduce_min": sums.reduce,
    "reduce_or": sums.reduce,
    "reduce_prod": sums.reduce,
    "reduce_sum": sums.sum,
    "reduce_window_max": sums.window,
    "reduce_window_min": sums.window,
    "reduce_window_sum": sums.window,
    "reshape": _reshape,
    "rev": _rev,
    "slice": _slice,
    "sort": sums.along("dimension"),
    "split": _split,
    "squeeze": _squeeze,
    "top_k": sums.along(""),
    "transpose": _transpose,
}
