"""What a stage looks at: rows of gradients, what layers read, and who tells losses."""

from typing import Any, NamedTuple

import jax

from swapjax.activations.layer import Layer
from swapjax.activations.trace import second_moments
from swapjax.core.sharding import Spread
from swapjax.core.types import Params
from swapjax.gradients.build import recipe
from swapjax.gradients.matrix_free import MatrixFreeRows
from swapjax.pruning.inputs import Inputs
from swapjax.pruning.settings import Settings


class Seen(NamedTuple):
    """What a stage has seen.

    Attributes:
        rows: unformed; None without examples, as all that follows.
        teller: the rows that tell losses, the same without validation.
        layers: what layers read, where the method looks at it.
        examples: those of the teller.
        spread: the devices that they are spread over.
    """

    rows: MatrixFreeRows | None = None
    teller: MatrixFreeRows | None = None
    layers: tuple[Layer | None, ...] | None = None
    examples: Any = None
    spread: Spread | None = None


def look(
    settings: Settings,
    inputs: Inputs,
    params: Params,
    draw_key: jax.Array | None,
    noise_key: jax.Array | None,
) -> Seen:
    """Draw examples, and look at what follows from them.

    Args:
        settings: how to prune.
        inputs: what to prune.
        params: as they are now.
        draw_key: of the examples.
        noise_key: of the noise on rows.
    """
    if inputs.source is None:
        return Seen()
    assert settings.loss_fn is not None
    examples, told = inputs.source.draw(draw_key), None
    if inputs.validation is not None:
        examples, told = inputs.validation.part(examples, draw_key)
    rows = recipe(
        settings.loss_fn, params, examples, inputs.plan,
        batch=settings.batch, dtype=settings.dtype, corruption=settings.corruption,
        key=noise_key, spread=inputs.source.spread,
        differentiable=settings.method.needs_rows,
    )  # fmt: skip
    teller, spread = rows, inputs.source.spread
    if inputs.validation is not None:
        spread = inputs.validation.spread
        teller = recipe(
            settings.loss_fn, params, told, inputs.plan,
            batch=inputs.validation.batch, spread=spread, differentiable=False,
        )  # fmt: skip
    seen = Seen(rows, teller, None, examples if told is None else told, spread)
    if not settings.method.needs_layers:
        return seen
    layout, paths = inputs.plan.layout, inputs.followed
    found: dict[str, Layer] = {}
    if paths:
        layers = second_moments(
            settings.loss_fn, params, examples, paths,
            batch=settings.batch, chunk=rows.chunk,
        )  # fmt: skip
        found = dict(zip(paths, layers, strict=True))
    leaves = zip(layout.paths, layout.shapes, layout.roles, strict=True)
    split = tuple(
        found[path].split(shape, role.stack) if path in found else None
        for path, shape, role in leaves
    )
    return seen._replace(layers=split)
