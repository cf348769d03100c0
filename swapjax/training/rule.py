"""What a rule of sparse training is: data, and one pure function that chooses masks."""

import dataclasses
import numbers
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from swapjax.core.sharding import by_compiler
from swapjax.core.types import Leaves, Masks
from swapjax.sparsity.allocation import Allocation
from swapjax.sparsity.budget import Budget
from swapjax.sparsity.schedules import Schedule

Begin = Literal["magnitude", "random"]
Grow = Literal["gradient", "random"]


class MaskStep(NamedTuple):
    """What a rule sees at a mask step. All leaves are prunable ones, in one order.

    Where a plan keeps units, as whole heads, a rule sees their grids in place of
    leaves: their mean magnitudes, the units that are active, and counts of units. A
    choice that is marked by `by_entry` may see one vector of all leaves.

    Attributes:
        weights: params, zero outside of the masks; the dense weights behind them, after
            their update, for a rule with ``straight_through``.
        gradients: of the loss at params, dense: also where masks are False.
        masks: bool, those before this mask step.
        within: bool, where entries may ever be active; None for anywhere.
        budget: how many entries to keep now, as `swapjax.sparsity.budget.select` takes
            it.
        fraction: of the active entries of each leaf to exchange, ``float32[]``; what
            `Rule.fraction` says.
        key: a PRNG key of this mask step; None if `swapjax.sparse` was given none,
            which it refuses where `Rule.draws` is True.
    """

    weights: Leaves
    gradients: Leaves
    masks: Leaves
    within: Leaves | None
    budget: Budget
    fraction: jax.Array
    key: jax.Array | None


Choose = Callable[[MaskStep], Leaves]


def by_entry(choose: Choose) -> Choose:
    """Mark a choice that looks at no shapes of leaves, and not at their number.

    It may get them laid end to end as one vector, whose layers are those of the budget:
    what is done once a leaf is compiled once a leaf.
    """
    choose.looks_at_entries = True  # type: ignore[attr-defined]
    return choose


def is_by_entry(choose: Choose | None) -> bool:
    """Tell whether a choice is marked by `by_entry`."""
    return getattr(choose, "looks_at_entries", False)


def follow(schedule: Schedule, final: Fraction) -> tuple[Fraction, ...]:
    """Take the sparsities of the schedule."""
    return schedule.table(final, schedule.mask_steps)


def stay(schedule: Schedule, final: Fraction) -> tuple[Fraction, ...]:
    """Take the final sparsity from the start: a schedule says when, not how far."""
    del schedule
    return (final,)


@dataclasses.dataclass(frozen=True)
class Rule:
    """How masks change while a network trains.

    To write one, fill in a name and ``choose``, a pure function of arrays that may be
    traced; all else has a default. ``choose`` should keep as many entries as the budget
    says, none outside of ``within``; `swapjax.sparse` does the rest.

    Attributes:
        name: for reports and errors.
        choose: ``MaskStep -> masks``, a bool leaf of the same shape for each leaf of
            weights; None for masks that never change.
        settings: pairs of hyper-parameter and value, for reports.
        begin: ``"magnitude"`` keeps what `levels` says of the initial weights if the
            schedule starts at 0, and all otherwise; ``"random"`` keeps as many at
            random, by the Erdos-Renyi kernel where the plan lets leaves compete.
        allocation: of a sparsity that comes without a plan.
        levels: ``(schedule, final sparsity) -> sparsities`` of the mask steps; the last
            is kept after them. By default those of the schedule.
        fraction: ``(t, last) -> fraction`` of the active entries to exchange at update
            t, the last mask step being that of update ``last``.
        goes_on: whether mask steps go on after the schedule, to the end of training.
        grows: by which score entries grow; None where none do. With ``"gradient"``
            `swapjax.check_state` reports gradients that are zero outside of the masks.
        skips: whether a mask step takes the place of an update.
        straight_through: whether gradients go to dense weights beside the params.
        decay: for straight-through rules, of the weights that are not active.
        masks: to begin with, instead of what `begin` says.
        draws: whether ``choose`` draws by the key of its `MaskStep`. Without it
            `swapjax.sparse` does not ask for a key, and the one of the step may be
            None.

    Raises:
        ValueError: for fields that are not of these kinds. What ``levels`` and
            ``fraction`` return is checked by ``init``, masks by ``update``.

    Example:
        Straight-through training with hysteresis: an inactive weight must outgrow an
        active one by a fifth to take its place.

        >>> import jax, jax.numpy as jnp, optax, swapjax
        >>> from swapjax.sparsity.budget import select
        >>> from swapjax.training import Rule, sparse
        >>> def choose(step):
        ...     scores = [jnp.abs(w) * jnp.where(m, 1.2, 1.0)
        ...               for w, m in zip(step.weights, step.masks)]
        ...     return select(scores, step.budget, step.within)
        >>> rule = Rule("hysteresis", choose, straight_through=True)
        >>> tx = sparse(optax.adam(0.01), rule, sparsity=0.75,
        ...             schedule=swapjax.constant(0, 80, every=10))
        >>> params = {"kernel": jax.random.normal(jax.random.key(0), (8, 4))}
        >>> updates, state = tx.update(params, tx.init(params), params)
        >>> int(jnp.sum(optax.apply_updates(params, updates)["kernel"] != 0))
        8
    """

    name: str
    choose: Choose | None
    settings: tuple[tuple[str, Any], ...] = ()
    begin: Begin = "magnitude"
    allocation: Allocation = "global"
    levels: Callable[[Schedule, Fraction], tuple[Fraction, ...]] = follow
    fraction: Callable[[int, int], float] = lambda t, last: 0.0
    goes_on: bool = False
    grows: Grow | None = None
    skips: bool = False
    straight_through: bool = False
    decay: float = 0.0
    masks: Masks | None = None
    draws: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(
                f"name must be a string that names the rule, got {self.name!r}"
            )
        if self.choose is not None and not callable(self.choose):
            raise ValueError(
                "choose must be a function of a MaskStep, or None for masks that never "
                f"change, got {self.choose!r}"
            )
        if not _are_pairs(self.settings):
            raise ValueError(
                "settings must be a tuple of pairs, a hyper-parameter's name and its "
                f"value, got {self.settings!r}"
            )
        for name in ("goes_on", "skips", "straight_through", "draws"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"{name} must be True or False, got {getattr(self, name)!r}"
                )
        for name in ("levels", "fraction"):
            function = getattr(self, name)
            if not callable(function):
                raise ValueError(f"{name} must be a function, got {function!r}")
        _require_one_of("begin", self.begin, get_args(Begin))
        _require_one_of("allocation", self.allocation, get_args(Allocation))
        _require_one_of("grows", self.grows, (*get_args(Grow), None))
        decay: Any = self.decay
        if not (isinstance(decay, numbers.Real) and float(decay) >= 0):
            raise ValueError(f"decay must be 0 or more, got {decay!r}")

    @property
    def needs_key(self) -> bool:
        """Whether anything is drawn at random, so that `swapjax.sparse` needs a key."""
        first_masks = self.begin == "random" and self.masks is None
        return first_masks or self.grows == "random" or self.draws

    def masks_at(self, step: MaskStep) -> Leaves:
        """Choose the masks of a mask step.

        Units are kept or removed as one, by their mean magnitudes: ``choose`` sees
        their grids in place of leaves, and a budget that counts units.

        Args:
            step: the arguments of the choice.

        Raises:
            ValueError: for masks of other shapes or dtypes than those of the step.
        """
        if step.budget.units is None:
            return self._choose(step)
        return by_compiler(self._choose_units, step.masks)(step)

    def _choose_units(self, step: MaskStep) -> Leaves:
        units, inside = step.budget.units, step.within
        assert units is not None
        chosen = self._choose(
            step._replace(
                weights=units.means(tuple(map(jnp.abs, step.weights))),
                gradients=units.means(tuple(map(jnp.abs, step.gradients))),
                masks=units.touched(step.masks),
                within=None if inside is None else units.touched(inside),
                budget=step.budget.in_units,
            )
        )
        return units.expand(chosen, inside)

    def _choose(self, step: MaskStep) -> Leaves:
        assert self.choose is not None
        try:
            chosen = self.choose(step)
        except Exception as e:
            if step.key is None and not self.draws:
                e.add_note(
                    f"rule {self.name}: the key of the step is None; if choose draws "
                    "by it, make the rule with draws=True"
                )
            raise
        wanted = [jax.ShapeDtypeStruct(m.shape, bool) for m in step.masks]
        got = chosen if isinstance(chosen, (tuple, list)) else (chosen,)
        if [_kind(leaf) for leaf in got] != [_kind(leaf) for leaf in wanted]:
            raise ValueError(
                f"rule {self.name}: choose must return masks {_kinds(wanted)}, one for "
                f"each prunable leaf, got {_kinds(got)}"
            )
        return tuple(chosen)

    def __str__(self) -> str:
        inner = ", ".join(f"{k}={v!r}" for k, v in self.settings)
        return f"{self.name}({inner})"


def _are_pairs(settings: Any) -> bool:
    return isinstance(settings, tuple) and all(
        isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)
        for pair in settings
    )


def _require_one_of(name: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{name} must be one of {listed}, got {value!r}")


def _kind(leaf: Any) -> str:
    if not hasattr(leaf, "dtype"):
        return f"a {type(leaf).__name__}"
    return f"{leaf.dtype}{list(leaf.shape)}"


def _kinds(leaves: Sequence[Any]) -> str:
    return f"({', '.join(map(_kind, leaves))})"
