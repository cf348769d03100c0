"""Networks of search spaces by name."""

import re

import jax

from swapjax import search
from swapjax.core.types import Params
from swapjax.experiments.models.model import Model, from_functions

SPACES = {"nb201": search.nb201, "darts": search.darts, "mobilenet": search.mobilenet}
_NAME = re.compile(r"(\w+)(?:\((\d+(?:,\d+)?)\))?:(.*)", re.DOTALL)


def is_searched(name: str) -> bool:
    """Whether a name is that of a space and a genotype."""
    match = _NAME.fullmatch(name)
    return match is not None and match[1] in SPACES


def create(name: str, shape: tuple[int, ...], classes: int, *, seed: int = 0) -> Model:
    """Make the network of a genotype.

    Args:
        name: ``space:genotype`` or ``space(channels,cells):genotype``, as
            ``nb201(8,1):|nor_conv_3x3~0|+|...``; a mobilenet has channels alone.
        shape: of one image, with channels or without.
        classes: how many there are.
        seed: of the initial weights.

    Raises:
        ValueError: for what is no genotype of the space, sizes that it does not have,
            and images that it cannot take.
    """
    match = _NAME.fullmatch(name)
    assert match is not None
    space, sizes, text = match.groups()
    numbers = [int(n) for n in sizes.split(",")] if sizes else []
    if space == "mobilenet" and len(numbers) > 1:
        raise ValueError(f"model: a mobilenet has channels alone, got ({sizes})")
    try:
        found = SPACES[space](*numbers)
        network = found.network(text, _with_channels(shape), classes)
    except ValueError as error:
        raise ValueError(f"model: {error}") from None
    return from_network(name, network, shape, seed=seed)


def from_network(
    name: str,
    network: search.Network,
    shape: tuple[int, ...] | None = None,
    *,
    seed: int = 0,
) -> Model:
    """Make a model of any network of `swapjax.search`.

    Args:
        name: of the model.
        network: as `swapjax.search.Space.network` returns it.
        shape: of one image; without channels, where data have none.
        seed: of the initial weights.
    """
    flat = shape is not None and len(shape) == 2

    def images(x: jax.Array) -> jax.Array:
        return x[..., None] if flat else x

    def apply(params: Params, x: jax.Array) -> jax.Array:
        return network.apply(params, images(x))

    def training_apply(params: Params, x: jax.Array) -> jax.Array:
        return network.apply(params, images(x), norm="train")

    def statistics(params: Params, x: jax.Array) -> Params:
        return network.statistics(params, images(x))

    return from_functions(
        name,
        network.init(jax.random.key(seed)),
        jax.jit(apply),
        training_apply=training_apply,
        statistics=jax.jit(statistics),
    )


def _with_channels(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) not in (2, 3):
        raise ValueError(
            "images must be of (height, width) or (height, width, channels), got "
            f"{shape}"
        )
    return shape[0], shape[1], shape[2] if len(shape) == 3 else 1
