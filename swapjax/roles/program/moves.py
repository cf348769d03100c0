"""Equations that move entries of one operand, or take some: views before and after."""

from collections.abc import Callable

from jax.extend import core

from swapjax.roles.program.views import (
    Shape,
    View,
    fitted,
    reduced,
    reshaped,
    spread,
    squeezed,
    transposed,
)


def _squeeze(view: View, eqn: core.JaxprEqn, shape: Shape) -> View:
    return squeezed(view, eqn.params["dimensions"])


def _transpose(view: View, eqn: core.JaxprEqn, shape: Shape) -> View:
    return transposed(view, eqn.params["permutation"])


def _broadcast(view: View, eqn: core.JaxprEqn, shape: Shape) -> View:
    return spread(view, shape, eqn.params["broadcast_dimensions"])


def _reshape(view: View, eqn: core.JaxprEqn, shape: Shape) -> View:
    # vmap of a convolution permutes axes and reshapes in one equation.
    order = eqn.params["dimensions"]
    return reshaped(view if order is None else transposed(view, order), shape)


def _fit(view: View, eqn: core.JaxprEqn, shape: Shape) -> View:
    return fitted(view, shape)


def _reduce(view: View, eqn: core.JaxprEqn, shape: Shape) -> View:
    return reduced(view, eqn.params["axes"])


def _gather_devices(view: View, eqn: core.JaxprEqn, shape: Shape) -> View:
    """Put the parts of devices together, along an axis of theirs or a new one."""
    if len(shape) > len(view.axes):
        dim = eqn.params["all_gather_dimension"]
        axes = (*view.axes[:dim], ((shape[dim], 0),), *view.axes[dim:])
        return view._replace(axes=axes)
    return fitted(view, shape)


def _scatter_devices(view: View, eqn: core.JaxprEqn, shape: Shape) -> View:
    if len(shape) < len(view.axes):
        return squeezed(view, (eqn.params["scatter_dimension"],))
    return fitted(view, shape)


def _tile(view: View, eqn: core.JaxprEqn, shape: Shape) -> View:
    """Repeat along axes, as a slowest factor of each."""
    axes = tuple(
        ((n, 0), *axis) if n > 1 else axis
        for n, axis in zip(eqn.params["reps"], view.axes, strict=True)
    )
    return view._replace(axes=axes)


def _unstack(view: View, eqn: core.JaxprEqn, shape: Shape) -> View:
    return squeezed(view, (eqn.params["axis"],))


def _bitcast(view: View, eqn: core.JaxprEqn, shape: Shape) -> View:
    """Follow entries that are cut into smaller ones, along a new last axis, or back."""
    if len(shape) > len(view.axes):
        return view._replace(axes=(*view.axes, ((shape[-1], 0),)))
    return view._replace(axes=view.axes[: len(shape)])


Move = Callable[[View, core.JaxprEqn, Shape], View]
MOVED: dict[str, Move] = {
    "all_gather": _gather_devices,
    "all_gather_invariant": _gather_devices,
    "all_to_all": _fit,
    "bitcast_convert_type": _bitcast,
    "broadcast_in_dim": _broadcast,
    "reduce_scatter": _scatter_devices,
    "reshape": _reshape,
    "rev": _fit,
    "slice": _fit,
    "split": _fit,
    "squeeze": _squeeze,
    "tile": _tile,
    "transpose": _transpose,
    "unstack": _unstack,
    **{
        f"reduce_{name}": _reduce
        for name in ("and", "max", "min", "or", "prod", "sum", "xor")
    },
    "argmax": _reduce,
    "argmin": _reduce,
}
