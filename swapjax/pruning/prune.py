"""The driver: stages of fresh gradients, a sparser support, a re-fit, fine-tuning."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from swapjax.core import identity, sharding
from swapjax.core.static_leaves import take_arrays
from swapjax.core.types import Leaves, LossFn, Masks, Params
from swapjax.gradients.operator import Corruption, Storage
from swapjax.io import resume
from swapjax.loops.finetune import FineTune
from swapjax.pruning import history
from swapjax.pruning.history import Pruned, Saved, Stage
from swapjax.pruning.inputs import Inputs, place
from swapjax.pruning.method import Criterion, Method
from swapjax.pruning.methods.kfac_regression import kfac_regression
from swapjax.pruning.methods.layerwise_obs import layerwise_obs
from swapjax.pruning.sequential.arguments import require_alone
from swapjax.pruning.sequential.progress import Progress, show
from swapjax.pruning.sequential.run import prune_blocks
from swapjax.pruning.settings import Settings
from swapjax.pruning.stage import advance
from swapjax.sparsity import schedules
from swapjax.sparsity.plan import Plan


def prune(
    loss_fn: LossFn | None,
    params: Params,
    data: Any = None,
    *,
    sparsity: float | None = None,
    plan: Plan | None = None,
    method: Method | None = None,
    stages: int = 1,
    samples: int = 1000,
    batch: int = 1,
    schedule: schedules.Schedule | None = None,
    key: jax.Array | None = None,
    finetune: FineTune | None = None,
    recalibrate: Callable[[Params], Params] | None = None,
    within: Masks | None = None,
    validation: Any = None,
    criterion: LossFn | Criterion | None = None,
    checkpoint: str | Path | None = None,
    noise: Corruption | None = None,
    storage: Storage = "auto",
    dtype: Any = None,
    callback: Callable[[Stage], None] | None = None,
    sequential: bool = False,
    blocks: str | None = None,
    progress: Callable[[Progress], None] | bool = False,
) -> Pruned:
    """Prune a trained network.

    Every stage takes gradients of fresh examples at the current weights, lets the
    method choose a support of the stage's size and re-fit the weights on it, and then
    fine-tunes and recalibrates if asked to. A weight pruned at one stage may return at
    a later one.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch whose leaves have
            a leading axis of examples; a `swapjax.Loss` where it returns more or draws
            with a key. All that is known of the network; evaluate it in inference mode.
            Without data it may be None.
        params: the trained weights, any pytree of arrays. Functions and switches of a
            whole Equinox module stay as they are; every run then compiles anew.
        data: a pytree of arrays with a leading axis of examples, of which each stage
            draws ``samples * batch`` distinct ones, arrays of NumPy where they lie; or
            batches of any sizes, as data loaders give them: an iterator, an iterable, a
            list, or a function that makes one. Each stage takes as many as it needs,
            where the stage before stopped, and begins anew where they end. None for a
            method that looks at weights alone, as `magnitude`; with one, data only
            tells the loss, and may be fewer than samples.
        sparsity: the fraction of prunable entries to remove, in [0, 1); what the
            program of ``loss_fn`` multiplies data with is prunable, or without data
            what the names of leaves tell to be a matrix.
        plan: instead of a sparsity, made by `swapjax.plan` with rules of its own.
        method: `kfac_regression` by default, or `linear_regression`, or `magnitude`.
        stages: how many rounds.
        samples: gradient rows a stage.
        batch: examples averaged into one row. Rows of 16 examples see 16 times as
            much data in the same memory.
        schedule: the sparsities on the way; by default `schedules.exponential` from
            0.1.
        key: a JAX PRNG key; the same key gives the same result. None where nothing is
            drawn: without data, for a method that looks at weights alone, and for
            batches.
        finetune: optimizer steps after each stage.
        recalibrate: ``params -> params``, called last in each stage, to estimate batch
            statistics anew for instance. Its result is masked again.
        within: masks outside of which nothing may be kept, to prune a sparse network
            further. A group of a pattern n:m with fewer than n entries keeps what it
            has.
        validation: what judges, in the place of the examples that gradients are taken
            of: choices within methods, how far they follow the gradient, whether a
            re-fit is worse than none, and the losses in the history. A fraction in (0,
            1) holds out that share of each stage's rows, one at least; a pytree like
            data is a set of its own, clean where data may be wrong, of which each stage
            takes ``samples * batch`` distinct examples, or as many whole rows as there
            are.
        criterion: what judges measure, less is better: the ``"loss"``; the
            ``"harm"``, what single examples lose by pruning and no more than one each,
            so that those with wrong labels, of which a good network has the largest
            losses, do not decide, and fitting what is wrong counts for nothing
            (`swapjax.gradients.harm`); or ``criterion(params, batch)``, a mean over
            examples as loss_fn, the rate of errors, say, or `swapjax.harm_in_batches`
            of a network with batch norm. By default what the method asks for. Losses in
            the history stay those of loss_fn.
        checkpoint: a file to keep the state in after each stage. If it exists, the run
            goes on from there, and ends bit for bit as if it had never stopped. Batches
            are gone through up to where it stopped, and must come in the same order.
        noise: what corrupts the gradient rows, as `swapjax.GradientNoise`; methods
            that take no gradients do not see it.
        storage: ``"stored"`` keeps the rows in memory, samples times the prunable
            entries; ``"matrix-free"`` recomputes them in every product; ``"auto"``
            stores what is below 2 GiB.
        dtype: of stored rows; ``jnp.bfloat16`` halves their memory.
        callback: called with each finished stage.
        sequential: whether to go through the network once, block by block, with the
            statistics and weights of one block on the device at a time: for networks
            that do not fit. Methods that work layer by layer, `layerwise_obs` by
            default, see what reaches a block through those before it, which are pruned
            already. Params may be arrays of NumPy, also of a file, and stay such; a
            sparsity is that of every layer; a stage of the history is a block, and a
            finished block stays in the checkpoint, of which the results are mapped into
            memory.
        blocks: with sequential, what a block is: a regular expression that is searched
            in the paths of leaves, those in which it finds the same text being of one
            block, as of ``layers/[0-9]+``; or ``"layers"``, for each layer one. By
            default the largest unit that the network repeats, or a step of a scan over
            stacked layers, and layers that are in none.
        progress: with sequential, called after each block with a `Progress`; True shows
            a bar, or lines where there is no terminal.

    Params may be sharded over devices in any way, and data too: each device then takes
    the gradients of its own examples. Results keep the sharding of params. In a run of
    several processes each calls this with the same arguments.

    Returns:
        Params, masks and history.

    Raises:
        ValueError: for arguments out of range, data or a key that is missing, too few
            examples, batches that end early, a list that the loss takes both for one
            pytree and for batches, a validation of another structure or without data,
            entries that are not finite in params, data or gradients, masks that do not
            belong to params or are False in a leaf that is not prunable, params and
            data on different devices, and a checkpoint of another run, in no folder, or
            of a run of several processes; with sequential also for methods that look at
            gradients and what else needs the whole network, layers of two blocks that
            share a budget, programs that cannot be cut into blocks, and leaves that
            they do not reach.

    Example:
        >>> import jax, jax.numpy as jnp, swapjax
        >>> params = {"kernel": jax.random.normal(jax.random.key(0), (8, 3))}
        >>> x = jax.random.normal(jax.random.key(1), (50, 8))
        >>> y = x @ params["kernel"] + 0.1
        >>> def loss_fn(params, batch):
        ...     x, y = batch
        ...     return jnp.mean((x @ params["kernel"] - y) ** 2)
        >>> key = jax.random.key(2)
        >>> pruned = swapjax.prune(
        ...     loss_fn, params, (x, y), sparsity=0.5, samples=50, key=key)
        >>> int(jnp.sum(pruned.params["kernel"] != 0))
        12
    """
    brought, put_back = take_arrays(params, "params", on_device=not sequential)
    if method is None:
        method = layerwise_obs() if sequential else kfac_regression()
    settings = Settings(
        loss_fn=loss_fn,
        method=method,
        stages=stages,
        samples=samples,
        batch=batch,
        schedule=schedules.exponential(initial=0.1) if schedule is None else schedule,
        key=key,
        finetune=finetune,
        recalibrate=recalibrate,
        noise=noise,
        storage=storage,
        dtype=dtype,
        callback=callback,
        criterion=criterion,
    )
    if put_back is not None:
        settings = settings.of_whole(put_back)
    if sequential or blocks is not None or progress:
        require_alone(
            sequential, blocks=blocks, progress=progress, within=within,
            validation=validation,
        )  # fmt: skip
        ended = prune_blocks(
            settings, brought, data, sparsity=sparsity, plan=plan, blocks=blocks,
            checkpoint=checkpoint, progress=show() if progress is True else progress,
        )  # fmt: skip
        whole = ended.params if put_back is None else put_back(ended.params)
        return ended._replace(params=whole)
    inputs = place(
        settings, brought, data, sparsity=sparsity, plan=plan, within=within,
        validation=validation,
    )  # fmt: skip
    state = _stages(settings, inputs, checkpoint)
    # Masks take the sharding of their weights.
    pruned, masks = (
        sharding.put_like(tree, brought) for tree in (state.params, state.masks)
    )
    whole = pruned if put_back is None else put_back(pruned)
    return Pruned(whole, masks, state.history)


def _stages(settings: Settings, inputs: Inputs, checkpoint: str | Path | None) -> Saved:
    """Do all stages, those aside that a file has."""
    state = Saved(inputs.params, None, (), 0)
    if checkpoint is not None:
        resume.require_room(checkpoint)
        run = _fingerprint(settings, inputs)
        found = history.load(
            checkpoint, inputs.params, inputs.plan, run, stages=settings.stages,
            counts=inputs.source is not None and inputs.source.counts,
        )  # fmt: skip
        state = found or state
        state = state._replace(params=sharding.put_like(state.params, inputs.params))
        if inputs.source is not None:
            inputs.source.skip(state.batches)
    spare: Leaves = ()
    for number in range(len(state.history), settings.stages):
        state, spare = advance(settings, inputs, state, number, spare)
        if checkpoint is not None:
            history.save(checkpoint, state, run)
        if settings.callback is not None:
            settings.callback(state.history[-1])
    return state


def _fingerprint(settings: Settings, inputs: Inputs) -> dict[str, str]:
    """Tell the run apart from others, for its file."""
    target, source, within = inputs.plan, inputs.source, inputs.within
    judge, criterion = inputs.validation, settings.judged_by
    # Named where there is one: runs of before it could be given go on.
    more = {} if judge is None else {"validation": judge.describe()}
    if criterion != "loss":
        more["criterion"] = identity.describe(criterion)
    return resume.fingerprint(
        inputs.params,
        settings.key,
        **settings.describe(),
        sparsity=float(target.sparsity),
        plan=target,
        data=source and source.digest(),
        within=within and identity.digest(within),
        **more,
    )
