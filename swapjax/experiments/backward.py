"""What pruned back-propagation leaves of gradients: measured, as table and panels."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from rich.table import Table
from rich.text import Text

from swapjax import backward
from swapjax.core.objective import Objective
from swapjax.core.text import printable
from swapjax.core.types import Params
from swapjax.training import Epoch

LEFT, LEFT_UNPRUNED = "backward", "backward unpruned"
"""What epochs tell: the share of multiplications that zeros leave of the way back."""
_ZEROS, _ZEROS_UNPRUNED = "dY zeros ", "dY unpruned zeros "
EXAMPLES, ROWS = "examples kept ", "rows kept "
"""What an objective of vcas reports by layer; names of layers follow."""
_LEGEND = 12  # layers that are told apart by name


class Gauge(NamedTuple):
    """Measures what pruning does to the way back of one batch, at any params.

    Attributes:
        pruned: of `swapjax.backward.prune_backward`, with exact thresholds, so that
            params are all that counts.
        state: the first one.
        batch: of the loss.
        key: to draw with, the same each time.
    """

    pruned: Objective
    state: Any
    batch: Any
    key: jax.Array

    @classmethod
    def of(
        cls, pruned: Objective, params: Params, batch: Any, key: jax.Array
    ) -> "Gauge":
        """Make a gauge for a network.

        Args:
            pruned: with exact thresholds.
            params: like those to come.
            batch: of the loss.
            key: to draw with.

        Raises:
            ValueError: as `swapjax.backward.prune_backward` does.
        """
        return cls(pruned, pruned.init(params, batch), batch, key)

    def cost(self, params: Params) -> backward.BackwardCost:
        """Count zeros and multiplications."""
        return backward.measure(self.pruned, params, self.state, self.batch, self.key)

    def noise(self, params: Params) -> backward.GradientNoise:
        """Measure the noise of gradients over draws."""
        return backward.gradient_noise(
            self.pruned, params, self.state, self.batch, self.key
        )


def told(cost: backward.BackwardCost) -> dict[str, float]:
    """Return the numbers that an epoch tells, which the panels are drawn from."""
    found = {LEFT: cost.ratio, LEFT_UNPRUNED: cost.natural_ratio}
    for layer in cost.layers:
        found[_ZEROS + layer.name] = layer.zeros_after
        found[_ZEROS_UNPRUNED + layer.name] = layer.zeros_before
    return found


def with_sparse_weights(
    cost: backward.BackwardCost, layers: Sequence[Mapping[str, Any]]
) -> float:
    """Estimate what part of the multiplications is left where weights are zero, too.

    As if zeros of gradients and of weights met at random, and no gradient of a zero
    weight were needed, as between two changes of masks.

    Args:
        cost: of a network.
        layers: of the same, from `swapjax.experiments.report.layers`.
    """
    density = {row["leaf"]: row["nonzeros"] / max(row["entries"], 1) for row in layers}
    return backward.mac_ratio(
        [layer.macs for layer in cost.layers],
        [
            (1 - layer.zeros_after) * density.get(layer.name.partition("#")[0], 1.0)
            for layer in cost.layers
        ],
    )


def backward_table(cost: backward.BackwardCost) -> Table:
    """Show the zeros of the gradient of each layer's output, and what they leave."""
    table = Table(title="The way back: zeros of the gradient of each layer's output")
    table.title_justify = "left"
    table.add_column("layer", overflow="fold")
    for name in ("multiplications", "zeros unpruned", "zeros pruned"):
        table.add_column(name, justify="right", no_wrap=True)
    total = sum(layer.macs for layer in cost.layers)
    for layer in cost.layers:
        table.add_row(
            Text(printable(layer.name)), f"{layer.macs / total:.1%}",
            f"{layer.zeros_before:.1%}", f"{layer.zeros_after:.1%}",
        )  # fmt: skip
    table.add_section()
    natural, pruned = 1 - cost.natural_ratio, 1 - cost.ratio
    table.add_row("all", f"{total:,}", f"{natural:.1%}", f"{pruned:.1%}")
    return table


def kept_by_layer(epoch: Epoch) -> list[dict[str, Any]]:
    """List what vcas kept of each layer in an epoch.

    Returns:
        One dict a layer: its name, the share of the ``"examples"`` whose gradients come
        to it, if some are dropped right behind it, and of their ``"rows"`` that the
        gradient of its weights is made of.
    """
    told = {"rows": _by_layer(epoch, ROWS), "examples": _by_layer(epoch, EXAMPLES)}
    names = dict.fromkeys(name for numbers in told.values() for name in numbers)
    return [
        {"name": name} | {what: x[name] for what, x in told.items() if name in x}
        for name in names
    ]


def kept_table(epoch: Epoch) -> Table:
    """Show what vcas kept of each layer in an epoch."""
    table = Table(title="The way back, kept by vcas")
    table.title_justify = "left"
    table.add_column("layer", overflow="fold")
    for name in ("examples", "rows of them"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in kept_by_layer(epoch):
        kept = (
            f"{row[name]:.1%}" if name in row else "" for name in ("examples", "rows")
        )
        table.add_row(Text(printable(row["name"])), *kept)
    return table


def draw_zeros(axes: Axes, history: Sequence[Epoch]) -> None:
    """Draw the zeros of the gradient of each layer's output by epoch."""
    _draw_pairs(axes, history, (_ZEROS, _ZEROS_UNPRUNED))
    axes.set_ylabel("zeros of dY, dashed: unpruned")


def draw_kept(axes: Axes, history: Sequence[Epoch]) -> None:
    """Draw what vcas keeps of each layer by epoch."""
    _draw_pairs(axes, history, (EXAMPLES, ROWS))
    axes.set_ylabel("kept examples, dashed: rows of them")


def draw_speedup(axes: Axes, history: Sequence[Epoch]) -> None:
    """Draw the ideal speed-up of the way back by epoch."""
    at = [epoch.epoch for epoch in history]
    for key, style, label in (
        (LEFT, "-", "pruned"), (LEFT_UNPRUNED, "--", "unpruned"),
    ):  # fmt: skip
        if all(key in epoch.told for epoch in history):
            values = [1 / max(epoch.told[key], 1e-9) for epoch in history]
            axes.plot(at, values, style, color="#d62728", label=label)
    axes.set_ylabel("ideal speed-up of the way back")
    axes.set_ylim(bottom=0)
    _finish(axes, legend=LEFT_UNPRUNED in history[0].told)


def _by_layer(epoch: Epoch, what: str) -> dict[str, float]:
    """Take what an epoch tells of layers."""
    return {
        name.removeprefix(what).removeprefix("after "): value
        for name, value in epoch.told.items()
        if name.startswith(what)
    }


def _draw_pairs(axes: Axes, history: Sequence[Epoch], pair: tuple[str, str]) -> None:
    """Draw two numbers of each layer by epoch, in one colour; the second is dashed."""
    at = [epoch.epoch for epoch in history]
    told = [[_by_layer(epoch, what) for epoch in history] for what in pair]
    names = dict.fromkeys(name for numbers in told for name in numbers[0])
    for i, name in enumerate(names):
        label: str | None = printable(name)
        for numbers, style in zip(told, ("-", "--"), strict=True):
            if name in numbers[0]:
                values = [one[name] for one in numbers]
                axes.plot(at, values, style, color=f"C{i % 10}", label=label)
                label = None
    axes.set_ylim(0, 1.02)
    _finish(axes, legend=len(names) <= _LEGEND)


def _finish(axes: Axes, *, legend: bool) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if legend:
        for text in axes.legend(fontsize="small").get_texts():
            text.set_parse_math(False)
            text.set_usetex(False)
