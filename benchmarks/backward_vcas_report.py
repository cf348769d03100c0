"""What `backward_vcas.py` measured, as a table and a picture."""

import dataclasses
import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Line:
    """One epoch of a run.

    Attributes:
        method: ``"exact"`` or ``"vcas"``.
        seed: of the run.
        epoch: from 1.
        loss: the mean over its steps.
        accuracy: on the test set after it, in percent.
        backward: share of the multiplications of the backward pass that is left.
        adaptations: those of adaptations, at most, as a share of all of exact training.
        norm_share: that is kept.
        added: variance at the last adaptation, as a share of that of SGD.
        seconds: of wall time.
    """

    method: str
    seed: int
    epoch: int
    loss: float
    accuracy: float
    backward: float
    adaptations: float
    norm_share: float
    added: float
    seconds: float

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells it from others."""
        return self.method, self.seed, self.epoch


def by_epoch(lines: Sequence[Line], method: str, field: str) -> dict[int, list[float]]:
    """Gather a number of all seeds, in their order, by epoch."""
    found: dict[int, list[float]] = {}
    for line in sorted(lines, key=lambda line: (line.epoch, line.seed)):
        if line.method == method:
            found.setdefault(line.epoch, []).append(getattr(line, field))
    return found


def report(lines: Sequence[Line]) -> str:
    """Tell each epoch, and what was saved, in Markdown.

    A gap is the mean over seeds of VCAS's loss less exact training's of the same seed,
    in deviations of exact training between seeds.
    """
    loss, accuracy = (
        {method: by_epoch(lines, method, field) for method in ("exact", "vcas")}
        for field in ("loss", "accuracy")
    )
    left = by_epoch(lines, "vcas", "backward")
    text = [
        "| epoch | loss, exact | loss, VCAS | deviation of exact | gap "
        "| accuracy, exact | accuracy, VCAS | backward pass left |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for epoch, shares in left.items():
        exact, sampled = loss["exact"][epoch], loss["vcas"][epoch]
        deviation = statistics.stdev(exact)
        gap = statistics.mean(sampled) - statistics.mean(exact)
        scores = [statistics.mean(accuracy[m][epoch]) for m in ("exact", "vcas")]
        text.append(
            f"| {epoch} | {statistics.mean(exact):.4f} "
            f"| {statistics.mean(sampled):.4f} "
            f"| {deviation:.4f} | {gap / deviation:+.2f} | {scores[0]:.2f} "
            f"| {scores[1]:.2f} | {100 * statistics.mean(shares):.1f} % |"
        )
    return "\n".join([*text, "", saved(lines)])


def saved(lines: Sequence[Line]) -> str:
    """Tell what was saved of all multiplications."""
    ours = [line for line in lines if line.method == "vcas"]
    sampled = statistics.mean(line.backward for line in ours)
    more = statistics.mean(line.adaptations for line in ours)
    # A step is a forward pass and two backward products, of like cost; an adaptation
    # has both.
    whole = (1 + 2 * sampled + 3 * more) / 3
    return (
        f"Of the multiplications of the backward pass {100 * (1 - sampled):.0f} % were "
        f"saved, {100 * (1 - sampled - more):.0f} % with the backward passes of the "
        f"adaptations counted, and {100 * (1 - whole):.0f} % of those of training."
    )


def picture(lines: Sequence[Line]) -> Figure:
    """Draw losses of both, and what is left of the backward pass."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    above, below = figure.subplots(1, 2)
    for method, label, style in (("exact", "exact", "-"), ("vcas", "VCAS", "--")):
        found = by_epoch(lines, method, "loss")
        epochs = list(found)
        for number in range(len(found[epochs[0]])):
            losses = [found[epoch][number] for epoch in epochs]
            above.plot(epochs, losses, style, color=f"C{number}",
                       label=f"{label}, seed {number}")  # fmt: skip
    above.set(xlabel="epoch", ylabel="training loss", yscale="log")
    above.legend(fontsize="x-small")
    left = by_epoch(lines, "vcas", "backward")
    for number in range(len(left[1])):
        below.plot(list(left), [100 * x[number] for x in left.values()],
                   color=f"C{number}")  # fmt: skip
    below.set(xlabel="epoch", ylabel="backward pass left, percent", ylim=(0, 100))
    figure.suptitle("VCAS at its default budget, a transformer on rows of MNIST")
    return figure
