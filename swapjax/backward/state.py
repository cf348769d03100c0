"""What pruned back-propagation remembers from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from swapjax.backward.address import Site
from swapjax.backward.shared import keys_after, keys_before
from swapjax.backward.thresholds import deviation, pushed

_SLOW = 0.9  # what a step leaves of running densities


class SiteState(NamedTuple):
    """What is remembered of a site; levels are those of the scans around it.

    Attributes:
        deviations: ``float32[*levels, depth]``, the deviation of the gradient in the
            last steps, the oldest first; thresholds are in proportion to it.
        filled: ``int32[*levels]``, how many of them are known.
        zeros: ``float32[*levels, 2]``, running means of the fractions of zeros before
            and after pruning, in which a step counts a tenth.
    """

    deviations: jax.Array
    filled: jax.Array
    zeros: jax.Array


class BackwardState(NamedTuple):
    """The state of `prune_backward`.

    Attributes:
        sites: a `SiteState` for each site by name.
        step: ``int32[]``, steps taken.
        key: ``uint32[2]``, what tells the key of the last step from others.
        repeated: ``int32[]``, steps that had the key of the step before.
        inner: the state of the objective that is differentiated.
    """

    sites: dict[str, SiteState]
    step: jax.Array
    key: jax.Array
    repeated: jax.Array
    inner: Any = ()

    def followed_by(
        self,
        key: jax.Array,
        statistics: dict[str, jax.Array],
        inner: Any,
        *,
        dense: bool = False,
    ) -> "BackwardState":
        """Make the state for the next step.

        Args:
            key: of this step.
            statistics: of this step, ``float32[*levels, 4]`` for each site.
            inner: state of the inner objective for the next step.
            dense: whether deviations are of the entries that are not zero.
        """
        return BackwardState(
            sites={
                name: _next(x, statistics[name], dense)
                for name, x in self.sites.items()
            },
            inner=inner,
            **keys_after(self, key),
        )


def first_state(sites: tuple[Site, ...], depth: int, inner: Any) -> BackwardState:
    """Make the state before the first step."""
    return BackwardState(
        sites={
            site.name: SiteState(
                jnp.zeros((*site.levels, depth), jnp.float32),
                jnp.zeros(site.levels, jnp.int32),
                jnp.zeros((*site.levels, 2), jnp.float32),
            )
            for site in sites
        },
        inner=inner,
        **keys_before(),
    )


def fractions_of_zeros(statistics: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute the fractions before and after pruning, over all steps of loops."""
    _, n, before, after = statistics.reshape(-1, 4).sum(0)
    return before / jnp.maximum(n, 1), after / jnp.maximum(n, 1)


def _next(state: SiteState, statistics: jax.Array, dense: bool) -> SiteState:
    _, n, *zeros = (statistics[..., i] for i in range(4))
    some = jnp.maximum(n, 1)
    deviations, filled = pushed(
        state.deviations, state.filled, deviation(statistics, dense=dense), n
    )
    now = jnp.stack(zeros, axis=-1) / some[..., None]
    slow = jnp.where(state.filled > 0, _SLOW, 0.0)[..., None]
    mixed = slow * state.zeros + (1 - slow) * now
    return SiteState(
        deviations, filled, jnp.where((n > 0)[..., None], mixed, state.zeros)
    )


def require_same_network(
    state: BackwardState, sites: tuple[Site, ...], depth: int
) -> None:
    """Raise for the state of another network, or of another depth.

    Raises:
        ValueError: naming what differs first.
    """
    own = {site.name: (*site.levels, depth) for site in sites}
    theirs = {name: x.deviations.shape for name, x in state.sites.items()}
    if own.keys() != theirs.keys():
        raise ValueError(
            f"state: it is of another network, with sites {', '.join(sorted(theirs))}; "
            f"here they are {', '.join(sorted(own))}"
        )
    for name, shape in own.items():
        if shape != theirs[name]:
            raise ValueError(
                f"state: it is of another network or depth, {name} has deviations "
                f"{list(theirs[name])} where {list(shape)} are wanted"
            )
