"""Networks of users' own, made by a function in a module of theirs.

``my_file:make`` names the function ``make`` in ``my_file.py`` of the current folder, or
in any module that can be imported; ``folder/my_file.py:make`` names a file. The
function returns ``(params, apply, loss)``, or a mapping or an object with these names:

- ``params``, the initial weights, a pytree of arrays;
- ``apply(params, images) -> logits [n, classes]``, in inference mode;
- ``loss(params, (images, labels)) -> mean loss``; by default, where it is left out or
  None, the mean cross-entropy of the logits.

Where there is batch norm, it has its running statistics among params, and gives two
functions more:

- ``statistics(params, images) -> params``, with the statistics of those images in place
  of the running ones and all else unchanged; what it changes gets no gradient;
- ``training_apply(params, images) -> logits`` with the statistics of the batch, whose
  mean cross-entropy is then trained on; or ``training_loss(params, (images, labels))``.

The function may have the arguments ``shape`` (of one image), ``classes`` and ``seed``,
and is given those that it names.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core import identity
from swapjax.core.text import printable
from swapjax.core.types import Params
from swapjax.experiments.models import own_parts
from swapjax.experiments.models.model import Model, from_functions
from swapjax.experiments.models.own_module import failed, find
from swapjax.experiments.models.own_parts import IMAGES, Parts


def create(name: str, shape: tuple[int, ...], classes: int, *, seed: int = 0) -> Model:
    """Make the network that a function of a user's returns.

    Args:
        name: as `find` takes it.
        shape: of one image.
        classes: how many there are.
        seed: of the initial weights, if the function takes one.

    Raises:
        ValueError: as `find` does; for a function that needs other arguments, raises or
            returns something else, and functions that do not take such images.
    """
    make, what = find(name), f"model: {printable(name)}"
    given = {"shape": shape, "classes": classes, "seed": seed}
    arguments = _arguments(what, make, given)
    try:
        found = make(**arguments)
    except Exception as e:
        doing = f"{getattr(make, '__name__', 'the function')}()"
        module = getattr(make, "__module__", None) or ""
        raise ValueError(f"{what}: {failed(e, module, doing)}") from e
    parts = own_parts.take(what, found)
    own_parts.try_out(what, parts, shape, classes)
    return _as_functions(name, parts, shape)


def _arguments(what: str, make: Callable[..., Any], given: dict) -> dict[str, Any]:
    """Choose the arguments that a function names."""
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):  # of an extension
        return {}
    strange = [
        name
        for name, p in parameters.items()
        if p.default is p.empty
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and (name not in given or p.kind is p.POSITIONAL_ONLY)
    ]
    if strange:
        raise ValueError(
            f"{what}: needs {', '.join(strange)}; shape, classes and seed are given by "
            "name, all else must have a default"
        )
    return {name: value for name, value in given.items() if name in parameters}


def _as_functions(name: str, parts: Parts, shape: tuple[int, ...]) -> Model:
    """Make a model of parts that fit together."""

    def constant(function: Callable[..., Any] | None) -> Any:
        """Let no gradient reach statistics of batch norm."""
        if function is None or not fixed:
            return function

        def called(params: Any, given: Any) -> Any:
            leaves, treedef = jax.tree.flatten(params)
            for i in fixed:
                leaves[i] = jax.lax.stop_gradient(leaves[i])
            return function(jax.tree.unflatten(treedef, leaves), given)

        return called

    fixed = _changed(parts.statistics, parts.params, shape)
    model = from_functions(
        name,
        parts.params,
        jax.jit(constant(parts.apply)),
        training_apply=constant(parts.training_apply),
        statistics=None if parts.statistics is None else jax.jit(parts.statistics),
    )
    if parts.loss is not None:
        loss = constant(parts.loss)
        model = model._replace(loss_fn=loss, training_loss=loss, training_losses=None)
    if parts.training_loss is not None:
        loss = constant(parts.training_loss)
        model = model._replace(training_loss=loss, training_losses=None)
    return model


def _changed(
    statistics: Callable[..., Any] | None, params: Params, shape: tuple[int, ...]
) -> list[int]:
    """Find the leaves that a function puts something else in the place of."""
    if statistics is None:
        return []
    images = jax.ShapeDtypeStruct((IMAGES, *shape), jnp.float32)
    # A program that is compiled would hide what it hands through.
    program = jax.make_jaxpr(inspect.unwrap(statistics))(params, images).jaxpr
    found = [
        i
        for i, (given, new) in enumerate(
            zip(program.invars[:-1], program.outvars, strict=True)
        )
        if new is not given
    ]
    return found if len(found) < len(program.outvars) else []


def fingerprint(model: Model, shape: tuple[int, ...]) -> str:
    """Tell a network apart by the weights that it starts from, and by its program.

    Args:
        model: whoever made it.
        shape: of one image.
    """
    images = jax.ShapeDtypeStruct((IMAGES, *shape), jnp.float32)
    batch = images, jax.ShapeDtypeStruct((IMAGES,), jnp.int32)
    programs = [
        str(jax.make_jaxpr(loss)(model.params, batch))
        for loss in (model.loss_fn, model.training_loss)
    ]
    text = identity.without_addresses("\n".join(programs))
    return f"{identity.digest(model.params)} {identity.short_hash(text)}"
