"""What pruning gave: sizes, multiplications, and time as it was measured."""

import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from swapjax.core import trees
from swapjax.core.checks import require_count
from swapjax.core.static_leaves import of_arrays
from swapjax.core.text import reason
from swapjax.core.types import Masks, Params
from swapjax.deploy import tables
from swapjax.deploy.forms import Form, Row
from swapjax.deploy.shrunk import Shrunk
from swapjax.deploy.sizes import size_of
from swapjax.deploy.timing import Time, time_side_by_side
from swapjax.roles.costs import Costs, count_products
from swapjax.sparsity.masks import apply_masks

_ALIKE = 0.1  # times that differ by less are called alike
Function = Callable[[Params, Any], Any]


@dataclasses.dataclass(frozen=True)
class Report:
    """A network dense, masked and shrunk; its text is a table.

    Attributes:
        forms: of the network, dense first.
        rows: a line for each leaf.
        other_macs: multiplications of data with data, for the batch.
        device: where time was measured.
        notes: what to know of the numbers, a sentence each.
    """

    forms: tuple[Form, ...]
    rows: tuple[Row, ...]
    other_macs: int
    device: str
    notes: tuple[str, ...]

    def __getitem__(self, name: str) -> Form:
        """Return the form of a name."""
        for form in self.forms:
            if form.name == name:
                return form
        known = ", ".join(form.name for form in self.forms)
        raise KeyError(f"{name!r}: the report has {known}")

    def to_dict(self) -> dict[str, Any]:
        """Give all numbers as lists and dicts, for JSON."""
        told = dataclasses.asdict(self)
        for form, own in zip(told["forms"], self.forms, strict=True):
            form["size"] = own.size._asdict()
        return told

    def __str__(self) -> str:
        """Write the tables of forms and of leaves, and the notes."""
        where = f"on {self.device}; macs are multiplications, left those without zeros"
        notes = (where, *self.notes)
        return tables.write(self.forms, self.rows, self.other_macs, notes)


def report(
    loss_or_apply: Function,
    params: Params,
    masks: Masks | None = None,
    shrunk: Any = None,
    *,
    batch: Any,
    repeats: int = 20,
) -> Report:
    """Measure what pruning gave: size, multiplications and time.

    The network as it is, with zeros where masks are False, and shrunk. Sizes and
    multiplications are exact; time is measured, all forms in turn, after compilation.

    Args:
        loss_or_apply: ``apply(params, x)`` or ``loss_fn(params, batch)``; the time is
            that of calling it under ``jax.jit``.
        params: any pytree of arrays.
        masks: of params, if they are to be compared.
        shrunk: what `swapjax.shrink` returned, or smaller params that loss_or_apply
            takes as well.
        batch: what loss_or_apply takes; it decides on all numbers but sizes. With
            ``repeats=0`` shapes and dtypes will do.
        repeats: how often time is measured; 0 measures none.

    Returns:
        The report: ``print`` it, or take ``to_dict()`` for JSON.

    Raises:
        ValueError: for masks of other params, params of other leaves in shrunk, or such
            that cannot be run on the batch, and negative repeats.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"w": jnp.ones((64, 32))}
        >>> masks = {"w": jnp.arange(64 * 32).reshape(64, 32) % 4 == 0}
        >>> apply = lambda p, x: x @ p["w"]
        >>> told = report(apply, params, masks, batch=jnp.ones((8, 64)), repeats=0)
        >>> told["dense"].macs, told["masked"].macs_left, told["masked"].size.packed
        (16384, 4096, 2304)
    """
    if not callable(loss_or_apply):
        raise ValueError(
            "loss_or_apply must be a function of params and a batch, got "
            f"{loss_or_apply!r}"
        )
    require_count("repeats", repeats, 0)
    networks: dict[str, tuple[Function, Params]] = {"dense": (loss_or_apply, params)}
    if masks is not None:
        networks["masked"] = loss_or_apply, apply_masks(params, masks)
    if shrunk is not None:
        networks["shrunk"] = _smaller(loss_or_apply, params, shrunk, batch)
    costs = {
        name: count_products(*network, batch) for name, network in networks.items()
    }
    times: dict[str, Time] = {}
    of_dense: dict[str, float] = {}
    if repeats:
        times, of_dense = _time(networks, batch, repeats)
    forms = tuple(
        Form(
            name,
            size_of(jax.tree.leaves(network[1])),
            *costs[name].total,
            times.get(name),
            of_dense.get(name),
        )
        for name, network in networks.items()
    )
    return Report(
        forms,
        _rows({name: network[1] for name, network in networks.items()}, costs),
        costs["dense"].others.macs,
        _device(),
        tuple(_notes(costs, of_dense)),
    )


def _smaller(
    function: Function, params: Params, shrunk: Any, batch: Any
) -> tuple[Function, Params]:
    """Take the smaller network, and the function that runs it."""
    hint = "give what swapjax.shrink returned, which has a function of its own"
    if isinstance(shrunk, Shrunk):
        function, smaller = shrunk.apply, shrunk.params
        hint = "shrink it with inputs of the shapes of this batch"
    else:
        smaller = shrunk
    paths, given = trees.paths(params), trees.paths(smaller)
    if paths != given:
        other = sorted(set(paths) ^ set(given)) or ["the order of leaves"]
        raise ValueError(
            "shrunk: must be what swapjax.shrink returns, or params of the same "
            f"leaves; {other[0]} differs"
        )
    try:
        count_products(function, smaller, batch)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"shrunk: cannot be run on this batch ({reason(error)}); {hint}"
        ) from error
    return function, smaller


def _time(
    networks: dict[str, tuple[Function, Params]], batch: Any, repeats: int
) -> tuple[dict[str, Time], dict[str, float]]:
    """Time all forms; those of the same function share what it is traced as."""
    functions: dict[Any, Function] = {}
    calls = {}
    for name, (function, params) in networks.items():
        arrays, of_list = of_arrays(function, params)
        key = id(function), jax.tree.structure(params)
        calls[name] = functions.setdefault(key, of_list), (arrays, batch)
    times, rounds = time_side_by_side(calls, repeats)
    pairs = {
        name: zip(all_, rounds["dense"], strict=True) for name, all_ in rounds.items()
    }
    of_dense = {
        name: statistics.median(own / dense for own, dense in several)
        for name, several in pairs.items()
    }
    return times, of_dense


def _rows(params: dict[str, Params], costs: dict[str, Costs]) -> tuple[Row, ...]:
    """Tell of each leaf."""
    dense = jax.tree.leaves(params["dense"])
    pruned = "masked" if "masked" in params else "dense"
    left = jax.tree.leaves(params[pruned])
    smaller = jax.tree.leaves(params["shrunk"]) if "shrunk" in params else []
    rows = []
    for i, path in enumerate(trees.paths(params["dense"])):
        if not hasattr(dense[i], "dtype"):
            continue
        shape = tuple(np.shape(dense[i]))
        row = Row(
            path,
            shape,
            math.prod(shape),
            size_of([left[i]]).nonzeros,
            costs["dense"].leaves[i].macs,
            costs[pruned].leaves[i].left,
        )
        if smaller:
            row = dataclasses.replace(
                row,
                shrunk_shape=tuple(np.shape(smaller[i])),
                shrunk_macs=costs["shrunk"].leaves[i].macs,
            )
        rows.append(row)
    return tuple(rows)


def _notes(costs: dict[str, Costs], of_dense: dict[str, float]) -> list[str]:
    """Say what the numbers mean."""
    notes = list(dict.fromkeys(n for one in costs.values() for n in one.notes))
    notes = [f"of the multiplications: {note}" for note in notes]
    masked, shrunk = of_dense.get("masked"), of_dense.get("shrunk")
    if masked is not None and abs(masked - 1) <= _ALIKE:
        notes.append(
            f"masked runs as fast as dense, {masked:.2f} times its time: zeros are "
            "multiplied like any other number"
        )
    elif masked is not None:
        notes.append(
            f"masked took {masked:.2f} times the time of dense by the same program, "
            "which multiplies zeros too; so far do times differ here by themselves"
        )
    if shrunk is not None:
        notes.append(f"shrunk takes {shrunk:.2f} times the time of dense")
    if not of_dense:
        notes.append("time was not measured: repeats=0")
    return notes


def _device() -> str:
    device = jax.devices()[0]
    kind = device.device_kind
    return device.platform if kind == device.platform else f"{device.platform}, {kind}"
