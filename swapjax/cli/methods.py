"""The methods by their names on the command line, and the options that concern them."""

from collections.abc import Callable
from typing import Literal, Protocol

from swapjax.oneshot import (
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


class Settings(Protocol):
    """The options that concern methods."""

    target: Literal["hybrid", "smoothed", "debiased", "exact"]
    epsilon: float | None
    perplexity: float | None
    damping: float | None
    block: int | None
    first_order: bool


def _damping(options: Settings) -> dict:
    return {} if options.damping is None else {"damping": options.damping}


def _block(options: Settings) -> dict:
    return {} if options.block is None else {"block": options.block}


def _transport(options: Settings) -> Method:
    return swap(
        target=options.target,
        epsilon=options.epsilon,
        perplexity=options.perplexity,
        first_order=options.first_order,
        **_damping(options),
    )


def _regression(options: Settings) -> Method:
    return linear_regression(first_order=options.first_order, **_damping(options))


METHODS: dict[MethodName, Callable[[Settings], Method]] = {
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
