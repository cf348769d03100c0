"""The methods by their names on the command line, and the options that concern them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from swapjax.pruning import (
    Method,
    cbs,
    chita,
    layerwise_obs,
    linear_regression,
    magnitude,
    obd,
    saliency,
    swap,
    wanda,
    woodfisher,
)

MethodName = Literal[
    "magnitude",
    "saliency",
    "obd",
    "woodfisher",
    "cbs",
    "chita",
    "layerwise-obs",
    "wanda",
    "linear-regression",
    "swap",
]


if TYPE_CHECKING:
    from swapjax.cli.options import Options


def _damping(options: "Options") -> dict:
    return {} if options.damping is None else {"damping": options.damping}


def _block(options: "Options") -> dict:
    return {} if options.block is None else {"block": options.block}


def _transport(options: "Options") -> Method:
    return swap(
        target=options.target,
        epsilon=options.epsilon,
        perplexity=options.perplexity,
        first_order=options.first_order,
        **_damping(options),
    )


def _regression(options: "Options") -> Method:
    return linear_regression(first_order=options.first_order, **_damping(options))


METHODS: dict[MethodName, Callable[["Options"], Method]] = {
    "magnitude": lambda _: magnitude(),
    "saliency": lambda _: saliency(),
    "obd": lambda _: obd(),
    "woodfisher": lambda o: woodfisher(**_damping(o), **_block(o)),
    "cbs": lambda o: cbs(**_damping(o), **_block(o)),
    "chita": lambda o: chita(**_damping(o), **_block(o)),
    "layerwise-obs": lambda _: layerwise_obs(),
    "wanda": lambda _: wanda(),
    "linear-regression": _regression,
    "swap": _transport,
}
