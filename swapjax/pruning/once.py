"""A look at a network as `prune` has it at its first stage, outside of a run."""

import dataclasses
from typing import Any, NamedTuple

import jax

from swapjax.core.configuration import lenient
from swapjax.core.static_leaves import take_arrays
from swapjax.core.types import Leaves, LossFn, Params
from swapjax.gradients.unit import form_in_unit
from swapjax.pruning.inputs import Inputs, budgets_for, place
from swapjax.pruning.look import Seen, look
from swapjax.pruning.method import Method, Problem
from swapjax.pruning.settings import Settings
from swapjax.pruning.solve import solve
from swapjax.pruning.vector import cut, pack
from swapjax.sparsity import schedules
from swapjax.sparsity.plan import Plan


class Sight(NamedTuple):
    """What there is to see.

    Attributes:
        settings: with the method.
        inputs: the network, and its plan.
        seen: examples, rows, layers.
    """

    settings: Settings
    inputs: Inputs
    seen: Seen

    @property
    def plan(self) -> Plan:
        """What may be pruned."""
        return self.inputs.plan

    def solve(self, target: Plan) -> Leaves:
        """Prune by a plan of the same leaves, and return these.

        Args:
            target: other counts.
        """
        method, layout = self.settings.method, self.inputs.layout
        rows, functions = None, ()
        if self.seen.rows is not None:
            functions = self.seen.rows.functions
            if method.needs_rows:
                own = dataclasses.replace(self.seen.rows, layout=layout)
                rows = form_in_unit(own, self.plan, self.settings.storage)
        params = self.inputs.params
        problem = Problem(
            weights=pack(params, layout)[0],
            initial=self.inputs.initial,
            rows=rows,
            layers=self.seen.layers,
            params=params if method.needs_params else None,
            layout=layout,
        )
        (budget,) = budgets_for([target], None, layout)
        with lenient():
            solution = solve(method, problem, budget, functions)
        return cut(solution.weights, layout)


def sight(
    loss_fn: LossFn,
    params: Params,
    data: Any,
    *,
    method: Method,
    plan: Plan | None,
    samples: int,
    batch: int,
    key: jax.Array | None,
    validation: Any = None,
) -> Sight:
    """Check arguments, draw examples, and look at them.

    Args:
        loss_fn: as `swapjax.prune` takes it, like all that follow.
        params: the network.
        data: examples.
        method: what it needs is looked at.
        plan: of whatever counts; None for all prunable leaves.
        samples: rows of examples.
        batch: examples a row.
        key: seeds the draw.
        validation: other examples to tell losses of.

    Raises:
        ValueError: as `swapjax.prune` does.
    """
    brought, put_back = take_arrays(params, "params")
    settings = Settings(
        loss_fn=loss_fn, method=method, stages=1, samples=samples, batch=batch,
        schedule=schedules.one_shot(), key=key, finetune=None, recalibrate=None,
        noise=None, storage="auto", dtype=None, callback=None,
    )  # fmt: skip
    if put_back is not None:
        settings = settings.of_whole(put_back)
    if data is None:
        raise ValueError("data: losses are told of examples, got None")
    sparsity = None if plan is not None else 0.5  # some, for the leaves there are
    inputs = place(
        settings, brought, data, sparsity=sparsity, plan=plan, within=None,
        validation=validation,
    )  # fmt: skip
    draw_key, noise_key, _ = settings.keys(0)
    return Sight(
        settings, inputs, look(settings, inputs, inputs.params, draw_key, noise_key)
    )
