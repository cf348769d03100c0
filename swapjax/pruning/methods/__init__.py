"""The methods of pruning, a file a method, and the table of them all.

A new method is a file beside this one, a row in `METHODS` and a test: the public face,
the command line, the pictures and the contract tests read the table.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

from swapjax.pruning.method import Method
from swapjax.pruning.methods.alps import alps
from swapjax.pruning.methods.cbs import cbs
from swapjax.pruning.methods.chita import chita
from swapjax.pruning.methods.kfac_regression import kfac_regression
from swapjax.pruning.methods.layerwise_obs import layerwise_obs
from swapjax.pruning.methods.regression import linear_regression
from swapjax.pruning.methods.scored import (
    grasp,
    magnitude,
    obd,
    random,
    saliency,
    snip,
)
from swapjax.pruning.methods.swap import swap
from swapjax.pruning.methods.swap_released import (
    linear_regression_released,
    swap_released,
)
from swapjax.pruning.methods.synflow import synflow
from swapjax.pruning.methods.wanda import wanda
from swapjax.pruning.methods.woodfisher import woodfisher

__all__ = [
    "alps",
    "cbs",
    "chita",
    "grasp",
    "kfac_regression",
    "layerwise_obs",
    "linear_regression",
    "linear_regression_released",
    "magnitude",
    "obd",
    "random",
    "saliency",
    "snip",
    "swap",
    "swap_released",
    "synflow",
    "wanda",
    "woodfisher",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodInfo:
    """What there is to know of a method without calling it.

    Attributes:
        factory: the function that makes it, with keyword arguments that all have
            defaults, but for ``random(key)`` and ``synflow(apply, shape)``.
        name: on the command line, in tables and in pictures: the factory's, with
            hyphens.
        summary: what it optimises, in a few words without a full stop.
        source: the paper with its arXiv id, or its venue where it has none; empty for
            the controls.
        needs: what it looks at besides the weights, with default arguments: nothing,
            gradients of the loss, what layers read, both, or the whole network.
        kind: ``"trained"`` for the methods that prune a trained network, which the
            command line and its comparison offer; ``"untrained"`` for those that prune
            before training; ``"released"`` for replicas of released code.
        options: the options of the command line that it takes, by the names of the
            factory's arguments.
        unsupported: what it cannot do: ``"patterns"``, if a plan with a pattern is
            refused, N:M or units such as blocks and channels.
        colour: of its line in every picture.
        marker: of its points there, as Matplotlib names them.
    """

    factory: Callable[..., Method]
    name: str
    summary: str
    source: str
    needs: Literal["nothing", "gradients", "activations", "both", "network"]
    kind: Literal["trained", "untrained", "released"] = "trained"
    options: tuple[str, ...] = ()
    unsupported: tuple[Literal["patterns"], ...] = ()
    colour: str
    marker: str


_ROWS = (
    MethodInfo(
        factory=magnitude,
        name="magnitude",
        summary="nothing: the largest weights stay",
        source="",
        needs="nothing",
        colour="#7f7f7f",
        marker="s",
    ),
    MethodInfo(
        factory=saliency,
        name="saliency",
        summary="the loss to first order, |w g|",
        source="Mozer and Smolensky, NIPS 1988",
        needs="gradients",
        colour="#bcbd22",
        marker="v",
    ),
    MethodInfo(
        factory=obd,
        name="obd",
        summary="the loss to second order, one weight at a time: w^2 F",
        source="LeCun, Denker and Solla, NIPS 1989",
        needs="gradients",
        colour="#8c564b",
        marker="^",
    ),
    MethodInfo(
        factory=woodfisher,
        name="woodfisher",
        summary="the loss to second order, the other weights adapting: w^2 / [F^-1]",
        source="Singh and Alistarh, NeurIPS 2020, arXiv:2004.14340",
        needs="gradients",
        options=("damping", "block"),
        colour="#2ca02c",
        marker="<",
    ),
    MethodInfo(
        factory=cbs,
        name="cbs",
        summary="which weights to remove together, by exchanging pairs",
        source="Yu et al., ICML 2022, arXiv:2203.04466",
        needs="gradients",
        options=("damping", "block"),
        unsupported=("patterns",),
        colour="#9467bd",
        marker=">",
    ),
    MethodInfo(
        factory=chita,
        name="chita",
        summary="G w kept at G wbar with k non-zeros, the support searched",
        source="Benbaki et al., ICML 2023, arXiv:2302.14623",
        needs="gradients",
        options=("damping", "block"),
        colour="#ff7f0e",
        marker="p",
    ),
    MethodInfo(
        factory=layerwise_obs,
        name="layerwise-obs",
        summary="the outputs of each layer, from what it reads",
        source="Frantar and Alistarh, NeurIPS 2022, arXiv:2208.11580, and ICML 2023, "
        "arXiv:2301.00774",
        needs="activations",
        colour="#17becf",
        marker="*",
    ),
    MethodInfo(
        factory=alps,
        name="alps",
        summary="the same, the support of all weights searched at once, by ADMM",
        source="Meng et al., NeurIPS 2024, arXiv:2406.07831",
        needs="activations",
        colour="#393b79",
        marker="d",
    ),
    MethodInfo(
        factory=wanda,
        name="wanda",
        summary="nothing: the largest weights stay, times what they read",
        source="Sun et al., ICLR 2024, arXiv:2306.11695",
        needs="activations",
        colour="#e377c2",
        marker="h",
    ),
    MethodInfo(
        factory=linear_regression,
        name="linear-regression",
        summary="G w kept at G wbar on a support, and the slope of the loss",
        source="Benbaki et al., ICML 2023, arXiv:2302.14623",
        needs="gradients",
        options=("damping", "first_order"),
        colour="#1f77b4",
        marker="o",
    ),
    MethodInfo(
        factory=kfac_regression,
        name="kfac-regression",
        summary="the same, held by what layers read: it resists noise; the default",
        source="Martens and Grosse, ICML 2015, arXiv:1503.05671",
        needs="both",
        options=("damping", "kappa", "first_order"),
        colour="#111111",
        marker="X",
    ),
    MethodInfo(
        factory=swap,
        name="swap",
        summary="G w kept at transported targets, on a support",
        source="You and Cheng, ICLR 2024, arXiv:2310.04918",
        needs="gradients",
        options=("target", "epsilon", "perplexity", "damping", "first_order"),
        colour="#d62728",
        marker="D",
    ),
    MethodInfo(
        factory=snip,
        name="snip",
        summary="the loss to first order, |w g|, at initialisation",
        source="Lee, Ajanthan and Torr, ICLR 2019, arXiv:1810.02340",
        needs="gradients",
        kind="untrained",
        colour="#dbdb8d",
        marker="v",
    ),
    MethodInfo(
        factory=grasp,
        name="grasp",
        summary="the squared norm of the gradient, to first order",
        source="Wang, Zhang and Grosse, ICLR 2020, arXiv:2002.07376",
        needs="gradients",
        kind="untrained",
        colour="#98df8a",
        marker="^",
    ),
    MethodInfo(
        factory=synflow,
        name="synflow",
        summary="what the paths from inputs to outputs carry",
        source="Tanaka et al., NeurIPS 2020, arXiv:2006.05467",
        needs="network",
        kind="untrained",
        colour="#9edae5",
        marker="P",
    ),
    MethodInfo(
        factory=random,
        name="random",
        summary="nothing: what is drawn stays",
        source="",
        needs="nothing",
        kind="untrained",
        colour="#c7c7c7",
        marker="x",
    ),
    MethodInfo(
        factory=linear_regression_released,
        name="linear-regression-released",
        summary="a support, by one step of the released code of SWAP without transport",
        source="You and Cheng, ICLR 2024, arXiv:2310.04918",
        needs="gradients",
        kind="released",
        colour="#aec7e8",
        marker="o",
    ),
    MethodInfo(
        factory=swap_released,
        name="swap-released",
        summary="a support, by one step of the released code of SWAP",
        source="You and Cheng, ICLR 2024, arXiv:2310.04918",
        needs="gradients",
        kind="released",
        colour="#c5b0d5",
        marker="D",
    ),
)

METHODS: Mapping[str, MethodInfo] = {row.name: row for row in _ROWS}
"""All methods by their names; those of the command line first, cheap ones first."""
