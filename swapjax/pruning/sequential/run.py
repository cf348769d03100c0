"""The driver of pruning block by block."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.activations.segments import Program
from swapjax.activations.segments_blocks import Block, describe, find_blocks
from swapjax.activations.segments_moments import Moments
from swapjax.activations.segments_unroll import Ref
from swapjax.core import losses, trees
from swapjax.core.configuration import lenient
from swapjax.core.threads import one_blas_thread
from swapjax.core.types import Params, Status
from swapjax.io import resume
from swapjax.loops import streams
from swapjax.loops.examples import Source, take_to_host
from swapjax.pruning.history import Pruned, Stage
from swapjax.pruning.method import Problem, Solution
from swapjax.pruning.sequential.arguments import require_fits, require_key
from swapjax.pruning.sequential.carried import Carried
from swapjax.pruning.sequential.outcome import InFile, InMemory, Part
from swapjax.pruning.sequential.progress import Progress
from swapjax.pruning.sequential.share import Share, share_out
from swapjax.pruning.settings import Settings
from swapjax.pruning.solve import check_support, solve
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.planned import planned
from swapjax.sparsity.segments import count_layers


def prune_blocks(
    settings: Settings,
    params: Params,
    data: Any,
    *,
    sparsity: float | None,
    plan: Plan | None,
    blocks: str | None = None,
    checkpoint: str | Path | None = None,
    progress: Callable[[Progress], None] | bool = False,
) -> Pruned:
    """Prune block by block, in the order of the program.

    Args:
        settings: how to prune; one stage of a method that works layer by layer.
        params: arrays of NumPy or JAX.
        data: examples, as `prune` takes them.
        sparsity: of every layer.
        plan: instead of a sparsity.
        blocks: what a block is, as `find_blocks` takes it.
        checkpoint: a file to keep finished blocks in.
        progress: called after each block, unless it is False.

    Returns:
        As `prune`; a stage of the history is a block.

    Raises:
        ValueError: as `prune` does, for what goes with no single block, and for
            programs that cannot be cut into blocks.
    """
    require_fits(settings, data)
    assert settings.loss_fn is not None
    shapes = jax.tree.map(_shape, params)
    fits = streams.taken_by(settings.loss_fn, shapes)
    data = streams.take_data(data, fits, settings.batch)
    source = Source(data, settings.samples * settings.batch)
    require_key(settings, source)
    examples = take_to_host(source.draw(settings.keys(0)[0]))
    first = jax.tree.map(lambda x: x[: settings.batch], examples)
    target = planned(
        shapes, sparsity, plan, "uniform", loss_fn=settings.loss_fn, batch=first
    )
    program = Program(settings.loss_fn, shapes, first, target.paths)
    losses.require_scalar(program.shapes, differentiable=False)
    roles = dict(zip(target.paths, target.layout.roles, strict=True))
    found = find_blocks(program, roles, blocks)
    shares = share_out(target, program.paths, [b for b in found if b.refs])
    leaves = jax.tree.leaves(params)
    own = dict(zip(target.paths, target.layout.take(params), strict=True))
    outcome: InMemory | InFile = InMemory(own)
    if checkpoint is not None:
        resume.require_room(checkpoint)
        told = resume.fingerprint(
            params, settings.key, **settings.describe(),
            sparsity=float(target.sparsity), plan=target, data=source.digest(),
            blocks=describe(found),
        )  # fmt: skip
        names = target.layout.layers
        outcome = InFile(checkpoint, own, told, len(shares), names)
    told_to = progress if callable(progress) else None
    run = _Run(settings, program, target, leaves, outcome, told_to)
    history = run(found, shares, examples)
    ended = outcome.finish()
    masks: list[Any] = [jnp.array(True) for _ in leaves]
    for path, place in zip(target.paths, target.layout.positions, strict=True):
        leaves[place], masks[place] = ended[path]
    treedef = jax.tree.structure(params)
    pruned, masks = (jax.tree.unflatten(treedef, x) for x in (leaves, masks))
    return Pruned(pruned, masks, history)


@dataclasses.dataclass
class _Run:
    """A run on its way.

    Attributes:
        settings: how to prune.
        program: of the loss.
        target: of all params.
        leaves: all of params, as they were.
        outcome: what is pruned so far.
        progress: called after each block, or None.
    """

    settings: Settings
    program: Program
    target: Plan
    leaves: list[Any]
    outcome: InMemory | InFile
    progress: Callable[[Progress], None] | None

    def __call__(
        self, blocks: Sequence[Block], shares: Sequence[Share], examples: Any
    ) -> tuple[Stage, ...]:
        """Go through all blocks, those that are done first."""
        rows = self.settings.samples
        history = [Stage.from_dict(record) for record in self.outcome.records]
        if len(history) == len(shares):
            return tuple(history)
        before = (
            history[0].loss_before if history else self._dense_loss(blocks, examples)
        )
        carried = Carried(self.program, examples, rows)
        started, waiting, resumed = time.perf_counter(), list(shares), len(history)
        seconds, spent, done = 0.0, 0.0, 0
        for block in blocks:
            if not block.refs:
                carried.go(block.segment, self._load(block))
                continue
            share, number = waiting.pop(0), len(shares) - len(waiting)
            begun = time.perf_counter()
            if number <= resumed:
                self._pass(block, carried)
            else:
                # Nothing of the device outlives its block.
                solution = self._prune_on_host(block, share, carried)
                stage = self._stage(number, share, solution, before, history, begun)
                if not waiting:
                    stage = self._finish(stage, blocks, block, carried)
                self._write(block, solution, stage)
                history.append(stage)
                seconds, done = time.perf_counter() - begun, done + share.plan.total
                spent += seconds
            left = sum(share.plan.total for share in waiting)
            if self.progress is not None:
                elapsed = time.perf_counter() - started
                ahead = (spent * left / done if done else math.nan) if left else 0.0
                where = number, len(shares), block.name
                self.progress(Progress(*where, seconds, elapsed, ahead))
            if not waiting:
                break
        return tuple(history)

    def _dense_loss(self, blocks: Sequence[Block], examples: Any) -> float:
        """Tell the mean loss of the examples before anything is pruned."""
        carried = Carried(self.program, examples, self.settings.samples)
        for block in blocks:
            self._check_finite(block)
            carried.go(block.segment, self._load(block))
        return _mean(carried, "loss_fn", "look at the data, the labels and the loss")

    def _check_finite(self, block: Block) -> None:
        names = [self._named(ref) for ref in block.segment.reads]
        trees.require_finite(names, self._load(block), "params")

    def _pass(self, block: Block, carried: Carried) -> None:
        """Go through a block that is done."""
        pruned = [self.outcome.read(*self._place(ref)) for ref in block.refs]
        carried.go(block.segment, self._replaced(block, self._load(block), pruned))

    def _prune_on_host(self, block: Block, share: Share, carried: Carried) -> Solution:
        """Prune a block, go through it, and keep what was found on the host."""
        leaves = self._load(block)
        solution = self._prune(block, share, leaves, carried)
        leaves = self._replaced(block, leaves, solution.weights)
        carried.go(block.segment, leaves)
        host: Solution = jax.tree.map(np.asarray, solution)
        return host

    def _load(self, block: Block) -> tuple[jax.Array, ...]:
        """Put what a block reads on the device."""
        return tuple(map(jnp.asarray, block.segment.take(self.leaves)))

    def _replaced(
        self, block: Block, leaves: Sequence[jax.Array], pruned: Sequence[Any]
    ) -> tuple[jax.Array, ...]:
        """Put pruned leaves in the place of those that a block reads."""
        new = dict(zip(block.refs, pruned, strict=True))
        pairs = zip(block.segment.reads, leaves, strict=True)
        return tuple(jnp.asarray(new.get(ref, leaf)) for ref, leaf in pairs)

    def _prune(
        self,
        block: Block,
        share: Share,
        leaves: tuple[jax.Array, ...],
        carried: Carried,
    ) -> Solution:
        """Prune one block by what reaches it."""
        method, layout = self.settings.method, share.plan.layout
        places = [block.segment.reads.index(ref) for ref in block.refs]
        weights = tuple(leaves[place] for place in places)
        names = [self._named(ref) for ref in block.refs]
        layers = None
        if method.needs_layers:
            moments = Moments(
                block.segment, block.refs, batch=self.settings.batch, name=self._named
            )
            for values in carried.chunks:
                moments.add(leaves, values)
            seen = moments.layers(leaves, carried.chunks[0])
            parts = zip(seen, layout.shapes, layout.roles, strict=True)
            layers = tuple(x.split(shape, role.stack) for x, shape, role in parts)
            trees.require_finite(names, [x.moment for x in layers], "activations")
        problem = Problem(weights, weights, layers=layers, layout=layout)
        budget = share.plan.budget
        one_thread = one_blas_thread(weights) if layers else nullcontext()
        with lenient(), one_thread:
            solution = solve(method, problem, budget)
            jax.block_until_ready(solution)
            check_support(method, solution, budget)
        weights = trees.cast_like(solution.weights, weights)
        trees.require_finite(names, weights, "params")
        return solution._replace(weights=weights)

    def _stage(
        self,
        number: int,
        share: Share,
        solution: Solution,
        before: float,
        history: Sequence[Stage],
        begun: float,
    ) -> Stage:
        """Tell what was done in a block; layers that wait keep all that they have."""
        names, sizes = self.target.layout.layers, self.target.sizes
        layers = history[-1].layers if history else dict(zip(names, sizes, strict=True))
        counts = count_layers(solution.masks, share.plan.layout.stacking)
        kept = {names[n]: count for n, count in zip(share.layers, counts, strict=True)}
        layers = layers | kept
        left = sum(layers.values())
        values = (math.nan,) if solution.objective is None else solution.objective
        return Stage(
            stage=number,
            sparsity=1 - left / self.target.total,
            kept=left,
            layers=layers,
            objective=(float(values[0]), float(values[-1])),
            loss_before=math.nan if history else before,
            loss=math.nan,
            seconds=time.perf_counter() - begun,
            status=Status(int(solution.status)),
            iterations=int(solution.iterations),
            details={k: float(v) for k, v in solution.details.items()},
        )

    def _finish(
        self, stage: Stage, blocks: Sequence[Block], last: Block, carried: Carried
    ) -> Stage:
        """Tell the loss after the last block that was pruned."""
        for block in blocks[blocks.index(last) + 1 :]:
            carried.go(block.segment, self._load(block))
        method = f"method {self.settings.method.name}"
        loss = _mean(carried, method, "the loss must be finite for sparse weights too")
        return dataclasses.replace(stage, loss=loss)

    def _write(self, block: Block, solution: Solution, stage: Stage) -> None:
        trio = zip(block.refs, solution.weights, solution.masks, strict=True)
        parts = [
            Part(*self._place(ref), weights, masks) for ref, weights, masks in trio
        ]
        self.outcome.write(parts, stage.to_dict())
        if self.settings.callback is not None:
            self.settings.callback(stage)

    def _place(self, ref: Ref) -> tuple[str, int | None]:
        return self.program.paths[ref.leaf], ref.row

    def _named(self, ref: Ref) -> str:
        path, row = self._place(ref)
        return path if row is None else f"{path}[{row}]"


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    weak = getattr(x, "weak_type", False)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=weak)


def _mean(carried: Carried, culprit: str, remedy: str) -> float:
    """Average the losses of all rows.

    Raises:
        ValueError: where that is not finite.
    """
    each = carried.losses()
    mean = float(np.mean(each, dtype=np.float64))
    if not math.isfinite(mean):
        bad = int(np.sum(~np.isfinite(each)))
        raise ValueError(
            f"{culprit}: the loss became {mean} ({bad:,} of {each.size:,} rows); "
            f"{remedy}"
        )
    return mean
