"""What a user's function returns for a network: read, and tried by shapes alone."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from swapjax.core import losses, trees
from swapjax.core.text import printable
from swapjax.core.types import Params
from swapjax.experiments.models.own_module import failed

_ADVICE = "(params, apply, loss) wanted, or a mapping or an object with these names"
IMAGES = 2  # that functions are tried on


class Parts(NamedTuple):
    """The parts of a network, as `swapjax.experiments.models.own` names them."""

    params: Params
    apply: Callable[[Params, Any], Any]
    loss: Callable[[Params, Any], Any] | None = None
    training_apply: Callable[[Params, Any], Any] | None = None
    training_loss: Callable[[Params, Any], Any] | None = None
    statistics: Callable[[Params, Any], Params] | None = None


_NEEDED = Parts._fields[:2]


def take(what: str, found: Any) -> Parts:
    """Read what a function returned.

    Args:
        what: the function makes, the start of a sentence.
        found: a tuple, a mapping or an object.

    Raises:
        ValueError: for anything else, params that are no arrays or not finite, and
            parts that do not go together.
    """
    given = _named(what, found)
    for name in Parts._fields[1:]:
        if given.get(name) is not None and not callable(given[name]):
            kind = type(given[name]).__name__
            raise ValueError(f"{what}: {name} is a {kind}, a function wanted")
    trees.require_arrays(given["params"], f"{what}: params")
    params = jax.tree.map(jnp.asarray, given["params"])
    leaves = jax.tree.leaves(params)
    if not leaves:
        raise ValueError(f"{what}: params holds no arrays; {_ADVICE}")
    trees.require_finite(trees.paths(params), leaves, f"{what}: params")
    parts = Parts(**{**given, "params": params})
    if parts.loss and parts.training_apply and not parts.training_loss:
        raise ValueError(
            f"{what}: loss and training_apply leave open what is trained on; return "
            "training_loss too, or leave loss out for the cross-entropy"
        )
    return parts


def _named(what: str, found: Any) -> dict[str, Any]:
    if isinstance(found, Mapping):
        missing = [name for name in _NEEDED if name not in found]
        extra = [printable(key) for key in found if key not in Parts._fields]
        if missing or extra:
            told = [f"without {', '.join(missing)}"] if missing else []
            told += [f"with {', '.join(extra[:5])}"] if extra else []
            raise ValueError(f"{what}: returns a dict {' and '.join(told)}; {_ADVICE}")
        return dict(found)
    if all(hasattr(found, name) for name in _NEEDED):
        given = {name: getattr(found, name, None) for name in Parts._fields}
        # As `swapjax.experiments.models.Model` has it.
        return {**given, "loss": given["loss"] or getattr(found, "loss_fn", None)}
    if isinstance(found, tuple | list) and len(found) in (2, 3):
        return dict(zip(Parts._fields, found, strict=False))
    many = f" of {len(found)}" if isinstance(found, tuple | list) else ""
    raise ValueError(f"{what}: returns a {type(found).__name__}{many}; {_ADVICE}")


def try_out(what: str, parts: Parts, shape: tuple[int, ...], classes: int) -> None:
    """Trace all functions on images of a shape, computing nothing.

    Args:
        what: the start of a sentence.
        parts: of a network.
        shape: of one image.
        classes: how many there are.

    Raises:
        ValueError: for functions that cannot take such images, or that return something
            else than logits, a loss, or params.
    """
    images = jax.ShapeDtypeStruct((IMAGES, *shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((IMAGES,), jnp.int32)

    def tried(name: str, given: Any) -> Any:
        function = getattr(parts, name)
        try:
            return jax.eval_shape(function, parts.params, given)
        except Exception as e:
            module = getattr(function, "__module__", None) or ""
            told = failed(e, module, f"{name}() of {IMAGES} images of {shape}")
            raise ValueError(f"{what}: {told}") from e

    for name in ("apply", "training_apply"):
        if getattr(parts, name) is not None:
            _require_logits(what, name, tried(name, images), classes)
    for name in ("loss", "training_loss"):
        if getattr(parts, name) is not None:
            told = f"{what}: {name}"
            losses.require_scalar(tried(name, (images, labels)), name=told)
    if parts.statistics is not None:
        found = tried("statistics", images)
        trees.require_like(found, parts.params, f"{what}: statistics")


def _require_logits(what: str, name: str, found: Any, classes: int) -> None:
    shape, told = getattr(found, "shape", None), None
    if shape is None:
        told = f"a {type(found).__name__}"
    elif len(shape) != 2 or shape[0] != IMAGES or shape[1] < classes:
        told = f"an array of {shape}"
    elif not jnp.issubdtype(found.dtype, jnp.floating):
        told = str(found.dtype)
    if told is not None:
        raise ValueError(
            f"{what}: {name} returns {told} for {IMAGES} images of {classes} classes; "
            f"logits of ({IMAGES}, {classes}) wanted"
        )
