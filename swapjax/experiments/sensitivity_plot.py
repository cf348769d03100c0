"""A picture of what it costs to prune one layer alone."""

import numpy as np
from matplotlib.figure import Figure

from swapjax.core.text import printable
from swapjax.pruning.sensitivities import Sensitivity

_NAME = 40  # the most characters drawn of a name


def sensitivity_figure(table: Sensitivity) -> Figure:
    """Draw a map: a line a layer, a column a level, the colour how the loss rises.

    Colours go by the logarithm, so that small rises are told apart; where the loss
    falls they are those of the smallest rise. Numbers say what is what.

    Args:
        table: from `swapjax.sensitivity`.

    Returns:
        The figure, for `swapjax.experiments.plot.save`.
    """
    rises = np.asarray(table.losses) - table.loss
    high, wide = rises.shape
    figure = Figure(figsize=(4 + 0.9 * wide, 1.6 + 0.3 * high), layout="constrained")
    axes = figure.subplots()
    finite = rises[np.isfinite(rises) & (rises > 0)]
    least = max(finite.min(), finite.max() * 1e-4) if finite.size else 1.0
    colours = np.log10(np.where(rises > least, rises, least))
    shown = np.where(np.isfinite(colours), colours, np.nan)
    axes.imshow(shown, aspect="auto", cmap="viridis")
    middle = (np.nanmin(shown) + np.nanmax(shown)) / 2
    for (i, j), rise in np.ndenumerate(rises):
        dark = np.isfinite(colours[i, j]) and colours[i, j] < middle
        axes.text(
            j, i, f"{rise:.2g}", ha="center", va="center", fontsize="small",
            color="white" if dark else "black",
        )  # fmt: skip
    axes.set_xticks(range(wide), [f"{level:g}" for level in table.levels])
    names = [printable(name)[-_NAME:] for name in table.layers]
    axes.set_yticks(range(high), names, fontsize="small")
    axes.set_xlabel("sparsity of this layer alone")
    axes.set_title(f"{table.method}: rise of the loss from {table.loss:.3g}")
    return figure
