"""The table of ways to multiply by a matrix with zeros."""

import dataclasses
from collections.abc import Sequence

ORDER = (
    "masked",
    "fewer outputs",
    "blocks of 128",
    "blocks of 32",
    "2:4, unpacked",
    "gathered",
    "BCSR",
    "BCOO",
    "blocks of 128, Pallas",
    "blocks of 32, Pallas",
)
NAN = float("nan")


@dataclasses.dataclass(frozen=True)
class Line:
    """A way, measured.

    Attributes:
        device: where.
        n: sides of the matrix.
        batch: rows that it is multiplied with.
        density: fraction of the weights that is left.
        way: the name of it.
        microseconds: of a call, the median; NaN if it was not run, for its memory.
        gain: how many times as fast as the dense matrix, median over rounds.
        low: the first quartile of that.
        high: the third.
        stored: bytes of weights and places, as a fraction of the dense matrix.
    """

    device: str
    n: int
    batch: int
    density: float
    way: str
    microseconds: float = NAN
    gain: float = NAN
    low: float = NAN
    high: float = NAN
    stored: float = NAN

    @property
    def case(self) -> tuple:
        """Where ways are compared."""
        return self.device, self.n, self.batch, self.density


def report(lines: Sequence[Line]) -> str:
    """Write the table of each device."""
    devices = list(dict.fromkeys(line.device for line in lines))
    return "\n\n".join(_table([x for x in lines if x.device == d]) for d in devices)


def _table(lines: Sequence[Line]) -> str:
    columns = sorted({(line.n, line.batch) for line in lines})
    found = {(x.density, x.way, x.n, x.batch): x for x in lines}
    heads = ["left", "", "stored", *(f"{n}, {batch}" for n, batch in columns)]
    rows = [heads, ["---"] * len(heads)]
    for density in sorted({line.density for line in lines}, reverse=True):
        for way in ORDER:
            cells = [found.get((density, way, *column)) for column in columns]
            there = [line for line in cells if line is not None]
            if there:
                gains = ["" if x is None else _gain(x) for x in cells]
                stored = f"{there[-1].stored:.2f}"
                rows.append([f"1/{round(1 / density)}", way, stored, *gains])
    dense = [found[max(x.density for x in lines), "dense", *c] for c in columns]
    told = [f"{_time(line.microseconds)}" for line in dense]
    rows.append(["", "dense, time of a call", "1.00", *told])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _gain(line: Line) -> str:
    if line.gain != line.gain:
        return "memory"
    return f"{line.gain:.2f}"


def _time(microseconds: float) -> str:
    if microseconds < 1000:
        return f"{microseconds:.0f} µs"
    return f"{microseconds / 1000:.1f} ms"
