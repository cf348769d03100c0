"""The table of small networks that what knows layers is tested with."""

from networks import convolutions, language, mixtures, others, recurrent, transformers

NETWORKS = {
    row.name: row
    for room in (
        transformers, recurrent, convolutions, mixtures, language, others,
    )
    for row in room.ROWS
}  # fmt: skip
