"""How `prune` prunes: its arguments, checked."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core import identity
from swapjax.core.checks import require_count, require_float, take_key
from swapjax.core.loss import Loss, draws
from swapjax.core.objective import Objective
from swapjax.core.static_leaves import take_arrays
from swapjax.core.types import LossFn, Params
from swapjax.gradients.build import check_storage
from swapjax.gradients.operator import Corruption, Storage
from swapjax.loops.finetune import FineTune
from swapjax.pruning.history import Stage
from swapjax.pruning.method import CRITERIA, Criterion, Method
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
    draws: bool = False
    tuned: LossFn | Objective | None = dataclasses.field(init=False, default=None)

    def __post_init__(self) -> None:
        self._take_loss()
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
                "criterion must be 'loss', 'harm' or a function, got "
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

    def _take_loss(self) -> None:
        """Let a loss that draws take rows with keys, and steps with keys of theirs."""
        given, put = self.loss_fn, object.__setattr__
        if draws(given):
            assert isinstance(given, Loss)
            put(self, "draws", True)
            put(self, "loss_fn", given.of_row)
            if draws(self.criterion):
                put(self, "criterion", self.criterion.of_row)  # type: ignore[union-attr]
            elif callable(self.criterion):
                put(self, "criterion", functools.partial(_of_first, self.criterion))
        put(self, "tuned", self.loss_fn)
        if self.draws:
            of_row: Any = self.loss_fn
            put(self, "tuned", Objective(
                lambda params, state, batch, key: (
                    of_row(params, (batch, key[None])), state, {}
                )
            ))  # fmt: skip
            if self.key is None:
                raise ValueError("key: loss_fn draws with one, got None")

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


def _of_first(criterion: LossFn, params: Params, row: tuple) -> jax.Array:
    """Measure a batch that comes with keys."""
    return criterion(params, row[0])


@jax.jit
def _keys(key: jax.Array, stage: jax.Array) -> tuple[jax.Array, ...]:
    """Derive three keys of a stage, in one program."""
    found = jax.random.split(jax.random.fold_in(key, stage), 3)
    return found[0], found[1], found[2]
