"""Dampings: lambda of a ridge, relative to the gradient rows.

``n lambda/2 |w - wbar|^2`` holds weights near a reference, beside ``1/2 |G w - t|^2``.
Rows come in their own unit (`swapjax.gradients.unit`), with a mean squared norm of 1,
so that lambda is a fraction of the trace of the Fisher, which is also the mean
eigenvalue of ``G G^T / n`` times n: 1 holds weights as firmly as the rows pull at them
on average, whatever the loss is measured in, however many weights there are and
however many examples make a row. In float32 the rounding of a system hides what is
below 1e-7 of its trace; a damping below that is raised to it.
"""

import math

import numpy as np


def check_dampings(
    damping: float | tuple[float, ...], name: str = "damping"
) -> tuple[float, ...]:
    """One or several dampings, as a tuple.

    Args:
        damping: as a method was given it.
        name: of the argument.

    Raises:
        ValueError: for none, other than numbers, and values below 0 or not finite.
    """
    try:
        dampings = tuple(float(d) for d in np.atleast_1d(np.asarray(damping)))
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numbers, got {damping!r}") from None
    if not dampings or not all(math.isfinite(d) and d >= 0 for d in dampings):
        raise ValueError(f"{name} must be 0 or more, got {damping}")
    return dampings


KAPPAS = (0.1, 0.5, 2.0, 8.0, 32.0, 1e4)  # the last is a layer-wise re-fit


def check_ridge(
    ridge: str,
    damping: float | tuple[float, ...] | None,
    kappa: float | tuple[float, ...] | None,
    dampings: tuple[float, ...],
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Check what holds the weights.

    Args:
        ridge: ``"identity"`` or ``"kfac"``.
        damping: lambda, one or several; None for the default.
        kappa: of kfac, one or several; None for the default.
        dampings: the default of the identity.

    Returns:
        The dampings, None where they follow kappa, and the kappas, None for the
        identity.

    Raises:
        ValueError: for another ridge, kappa with the identity, and values below 0 or
            not finite.
    """
    if ridge not in ("identity", "kfac"):
        raise ValueError(f"ridge must be 'identity' or 'kfac', got {ridge!r}")
    if ridge == "identity":
        if kappa is not None:
            raise ValueError(f"kappa: belongs to ridge='kfac', got {kappa!r} without")
        return check_dampings(dampings if damping is None else damping), None
    found = None if damping is None else check_dampings(damping)
    return found, check_dampings(KAPPAS if kappa is None else kappa, "kappa")
