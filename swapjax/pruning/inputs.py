"""What `prune` checks and places before any work starts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.activations.trace import followed
from swapjax.core import identity, sharding, trees
from swapjax.core.checks import require_count, require_float, take_key
from swapjax.core.losses import require_scalar
from swapjax.core.static_leaves import take_arrays
from swapjax.core.types import Leaves, LossFn, Masks, Params
from swapjax.gradients.build import check_storage
from swapjax.gradients.operator import Corruption, Storage
from swapjax.loops import streams
from swapjax.loops.examples import Source
from swapjax.loops.finetune import FineTune
from swapjax.loops.streams import Stream
from swapjax.pruning.history import Stage
from swapjax.pruning.method import CRITERIA, Criterion, Method
from swapjax.pruning.validation import Validation, check_validation
from swapjax.pruning.vector import layout_for, pack, pack_masks
from swapjax.sparsity.bounds import allowed, keep_inside
from swapjax.sparsity.budget import Budget
from swapjax.sparsity.layout import Layout
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.planned import planned
from swapjax.sparsity.schedules import Schedule


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to prune; the attributes are the arguments of `prune`, checked.

    Raises:
        ValueError: for one out of range, naming it.
    """

    loss_fn: LossFn | None
    method: Method
    stages: int
    samples: int
    batch: int
    schedule: Schedule
    key: jax.Array | None
    finetune: FineTune | None
    recalibrate: Callable[[Params], Params] | None
    noise: Corruption | None
    storage: Storage
    dtype: Any
    callback: Callable[[Stage], None] | None
    criterion: LossFn | Criterion | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, Schedule):
            raise ValueError(
                "schedule must be what a function like swapjax.cubic() returns, got "
                f"{self.schedule!r}"
            )
        if self.schedule.start is not None:
            raise ValueError(
                f"schedule: {self.schedule} counts updates of an optimizer, for "
                "swapjax.sparse; leave start and end out for stages"
            )
        check_storage(self.storage)
        for name in ("stages", "samples", "batch"):
            require_count(name, getattr(self, name))
        if not isinstance(self.method, Method):
            raise ValueError(
                "method must be what a function like swapjax.swap() returns, got "
                f"{self.method!r}"
            )
        if self.noise is not None and not callable(self.noise):
            raise ValueError(
                "noise must be a function of rows, such as "
                f"swapjax.GradientNoise(scale, proportion), got {self.noise!r}"
            )
        if not isinstance(self.finetune, FineTune | None):
            raise ValueError(
                f"finetune must be a swapjax.FineTune, got {self.finetune!r}"
            )
        if not (self.criterion in (None, *CRITERIA) or callable(self.criterion)):
            raise ValueError(
                "criterion must be 'loss', 'bounded' or a function, got "
                f"{self.criterion!r}"
            )
        for name in ("recalibrate", "callback"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise ValueError(f"{name} must be a function, got {value!r}")
        if self.dtype is not None:
            require_float("dtype", self.dtype)
        if self.key is not None:
            take_key(self.key)

    @property
    def corruption(self) -> Corruption | None:
        """The noise, where the method looks at gradients."""
        return self.noise if self.method.needs_rows else None

    @property
    def judged_by(self) -> LossFn | Criterion:
        """The criterion, or what the method asks for without one."""
        return self.method.criterion if self.criterion is None else self.criterion

    @property
    def needs_examples(self) -> bool:
        """Whether the method looks at examples at all."""
        return self.method.needs_rows or bool(self.method.needs_layers)

    def of_whole(self, put_back: Callable[[Params], Params]) -> "Settings":
        """Let the functions see params with what is no array put back.

        Raises:
            ValueError: for a method that looks at the whole network itself.
        """
        loss_fn, recalibrate = self.loss_fn, self.recalibrate
        criterion = self.criterion
        if self.method.needs_params:
            raise ValueError(
                f"params: functions are among them, which the method "
                f"{self.method.name} cannot take; give it the arrays alone, as of "
                "eqx.partition"
            )

        def loss(params: Params, batch: Any) -> jax.Array:
            assert loss_fn is not None
            return loss_fn(put_back(params), batch)

        def again(params: Params) -> Params:
            assert recalibrate is not None
            return take_arrays(recalibrate(put_back(params)), "recalibrate")[0]

        def measure(params: Params, batch: Any) -> jax.Array:
            assert callable(criterion)
            return criterion(put_back(params), batch)

        return dataclasses.replace(
            self,
            loss_fn=loss if callable(loss_fn) else loss_fn,
            criterion=measure if callable(criterion) else criterion,
            recalibrate=None if recalibrate is None else again,
        )

    def keys(self, stage: int) -> tuple[jax.Array | None, ...]:
        """Derive the keys of a stage: of its examples, its noise, its fine-tuning."""
        if self.key is None:
            return None, None, None
        return _keys(self.key, stage)

    def describe(self) -> dict[str, Any]:
        """Describe what tells one run from another, for its state file."""
        method = self.method
        settings = (f"{k}={identity.describe(v)}" for k, v in method.settings)
        code = identity.describe(method.identity)
        return {
            "method": f"{method.name}({', '.join(settings)}), {code}",
            "stages": self.stages,
            "samples": self.samples,
            "batch": self.batch,
            "schedule": self.schedule,
            "noise": self.noise,
            "dtype": None if self.dtype is None else jnp.dtype(self.dtype),
            "storage": self.storage,
            "finetune": self.finetune and self.finetune.describe(),
        }


@jax.jit
def _keys(key: jax.Array, stage: jax.Array) -> tuple[jax.Array, ...]:
    """Derive three keys of a stage, in one program."""
    found = jax.random.split(jax.random.fold_in(key, stage), 3)
    return found[0], found[1], found[2]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What to prune, checked and placed.

    Attributes:
        params: the network, its mesh left to the compiler.
        plan: which entries, and how many of them stay in the end.
        layout: of the prunable leaves as the method sees them.
        initial: the prunable leaves, in this layout.
        source: the examples; None without data.
        validation: those that judge; None for the same.
        followed: the paths of the leaves whose layers the method looks at.
        within: bool leaves outside of which nothing may be kept, or None.
        budgets: the counts of every stage.
    """

    params: Params
    plan: Plan
    layout: Layout
    initial: Leaves
    source: Source | None
    validation: Validation | None
    followed: tuple[str, ...]
    within: Leaves | None
    budgets: tuple[Budget, ...]


def place(
    settings: Settings,
    params: Params,
    data: Any,
    *,
    sparsity: float | None,
    plan: Plan | None,
    within: Masks | None,
    validation: Any = None,
) -> Inputs:
    """Check what is to be pruned against how, and leave its devices to the compiler.

    Args:
        settings: how to prune.
        params: arrays.
        data: examples, or None.
        sparsity: how far.
        plan: instead of a sparsity.
        within: masks outside of which nothing may be kept, or None.
        validation: a fraction of each stage's examples, or others, to judge by.

    Raises:
        ValueError: as `prune` does.
    """
    data = _take_data(settings, params, data)
    arrays = () if isinstance(data, Stream) else data
    others = () if streams.is_stream(validation) else validation
    sharding.require_same_devices(
        params=params, data=arrays, within=within, validation=others
    )
    params, within = sharding.leave_to_compiler((params, within))
    first = _shapes(settings, data)
    loss_fn = settings.loss_fn if first is not None else None
    target = planned(params, sparsity, plan, loss_fn=loss_fn, batch=first)
    layout = layout_for(settings.method, target, params)
    initial, is_finite = pack(params, layout)
    if not is_finite:
        trees.require_finite(trees.paths(params), jax.tree.leaves(params), "params")
    source = _source(settings, data)
    judge = check_validation(
        validation, first, source, samples=settings.samples, batch=settings.batch
    )
    _check_criterion(settings, params, first, source)
    inside = None if within is None else allowed(within, params, target)
    table = settings.schedule.table(target.sparsity, settings.stages)
    budgets = budgets_for([target.at(level) for level in table], inside, layout)
    if inside is not None and layout.is_flat:
        inside = pack_masks(inside, layout)
    paths = target.layout.paths
    if settings.method.needs_layers == "some" and loss_fn is not None:
        paths = followed(loss_fn, params, first, paths)
    return Inputs(
        params, target, layout, initial, source, judge, paths, inside, budgets
    )


def _take_data(settings: Settings, params: Params, data: Any) -> Any:
    """Take examples for arrays or for a stream of batches; None stays None."""
    if data is None:
        return None
    loss_fn = settings.loss_fn
    fits = streams.taken_by(loss_fn, params) if callable(loss_fn) else None
    return streams.take_data(data, fits, settings.batch)


def _shapes(settings: Settings, data: Any) -> Any:
    """Tell the shapes of a batch of the loss, where there is one."""
    if not callable(settings.loss_fn) or data is None:
        return None
    examples = data.peek() if isinstance(data, Stream) else data
    arrays = jax.tree.leaves(examples)
    if not arrays or any(np.ndim(x) < 1 or len(x) < settings.batch for x in arrays):
        return None  # which is an error later on
    # Without their devices: a few examples may not be spread over all of them.
    return streams.shapes_of(examples, settings.batch)


def _check_criterion(
    settings: Settings, params: Params, first: Any, source: Source | None
) -> None:
    """Raise for a criterion without examples, and one that returns no scalar."""
    if settings.criterion is None:
        return
    if source is None:
        raise ValueError("criterion: there is nothing to judge by without data")
    if first is not None and callable(settings.criterion):
        returned = jax.eval_shape(settings.criterion, params, first)
        require_scalar(returned, differentiable=False, name="criterion")


def _source(settings: Settings, data: Any) -> Source | None:
    """Take the examples that there are; raise for those, or a key, that are missing."""
    wants = {
        f"the method {settings.method.name}": settings.needs_examples,
        "finetune": settings.finetune is not None,
    }
    wanting = next((name for name, wanted in wants.items() if wanted), None)
    if data is None:
        if wanting is not None:
            raise ValueError(f"data: {wanting} needs examples, got None")
        return None
    if not callable(settings.loss_fn):
        raise ValueError(
            f"loss_fn must be a function of params and a batch, got "
            f"{settings.loss_fn!r}"
        )
    if isinstance(data, Stream):
        if settings.corruption is not None and settings.key is None:
            raise ValueError("key: noise needs a PRNG key, got None")
        return Source(data, settings.samples * settings.batch)
    if wanting is not None and settings.key is None:
        raise ValueError(
            f"key: examples are drawn for {wanting}, which needs a PRNG key, got None"
        )
    data = sharding.leave_to_compiler(data)
    samples = settings.samples
    if not settings.needs_examples:
        # They are for the loss that is reported, and as many as there are will do.
        available = trees.count_examples(data) // settings.batch
        samples = max(1, min(samples, available))
    return Source(data, samples * settings.batch)


def budgets_for(
    stages: list[Plan], inside: Leaves | None, layout: Layout
) -> tuple[Budget, ...]:
    """Count what every stage keeps, no more than what may be kept at all.

    Args:
        stages: their plans.
        inside: masks that bound them, or None.
        layout: of the leaves as the method sees them.
    """
    found = []
    for stage in stages:
        keep = np.asarray(keep_inside(stage, inside), np.int32)
        budget = dataclasses.replace(stage.budget, keep=jnp.asarray(keep))
        if layout.is_flat:
            budget = dataclasses.replace(budget, stacking=layout.stacking, patterns=())
        found.append(budget)
    return tuple(found)
