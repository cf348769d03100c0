"""Arguments that go with pruning block by block, and those that do not."""

from typing import Any

from swapjax.loops.examples import Source
from swapjax.pruning.methods import METHODS
from swapjax.pruning.settings import Settings

_BY_LAYER = [
    name
    for name, row in METHODS.items()
    if row.needs in ("nothing", "activations") and row.kind == "trained"
]


def require_alone(
    sequential: bool, *, blocks: Any, progress: Any, **others: Any
) -> None:
    """Raise for arguments of `prune` that do not go together.

    Args:
        sequential: whether to go block by block.
        blocks: what a block is, or None.
        progress: a function, or a truth value.
        others: what block by block does not know, by name.

    Raises:
        ValueError: naming the argument.
    """
    if not isinstance(sequential, bool):
        raise ValueError(f"sequential must be True or False, got {sequential!r}")
    if not sequential:
        name = "progress" if blocks is None else "blocks"
        raise ValueError(f"{name}: only sequential=True goes block by block")
    if progress and progress is not True and not callable(progress):
        raise ValueError(f"progress must be True or a function, got {progress!r}")
    for name, value in others.items():
        if value is not None:
            raise ValueError(
                f"{name} looks at the whole network, which sequential never holds; "
                "leave it out"
            )


def require_fits(settings: Settings, data: Any) -> None:
    """Raise for settings that block by block means nothing to.

    Raises:
        ValueError: naming the argument, and what to do.
    """
    method = settings.method
    if method.needs_rows or method.needs_params:
        looks = "gradients" if method.needs_rows else "the whole network"
        raise ValueError(
            f"method {method.name} looks at {looks}, which sequential never holds; "
            f"take one that works layer by layer: {', '.join(_BY_LAYER)}"
        )
    if data is None or not callable(settings.loss_fn):
        raise ValueError(
            "data: sequential carries examples through the program of loss_fn, and "
            "needs both"
        )
    if settings.draws:
        raise ValueError(
            "loss_fn: draws with a key, which sequential does not hand over; fix one: "
            "lambda params, batch: loss(params, batch, key)"
        )
    if settings.stages > 1:
        raise ValueError(
            f"stages: sequential goes through the network once, got {settings.stages}"
        )
    for name in ("finetune", "recalibrate", "noise", "criterion"):
        if getattr(settings, name) is not None:
            raise ValueError(
                f"{name} looks at the whole network, which sequential never holds; "
                "leave it out"
            )


def require_key(settings: Settings, source: Source) -> None:
    """Raise where examples are drawn of arrays without a key.

    Raises:
        ValueError: naming the argument.
    """
    if settings.key is None and not source.counts:
        raise ValueError(
            "key: examples are drawn for sequential, which needs a PRNG key, got None"
        )
