"""The algorithms of sparse training by their names on the command line."""

import math

import jax
import optax

from swapjax import robust, training
from swapjax.cli import train_backward, train_robust
from swapjax.cli.train_options import (
    BEFORE,
    DRAWN,
    GRADUAL,
    Train,
    optimizer_name,
    regularized,
)
from swapjax.core.objective import Objective
from swapjax.core.types import LossFn, Masks, Params
from swapjax.experiments import runner
from swapjax.experiments.models import Model
from swapjax.experiments.runner import Setting
from swapjax.pruning import prune
from swapjax.sparsity import schedules
from swapjax.sparsity.allocation import Allocation
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.planning import plan
from swapjax.training.admm_step import PULL
from swapjax.training.rules import RULES

_SAMPLES = 1000  # examples that snip takes its gradient of
_STAGES = 100  # of synflow, as its authors have
_FADED = 1e-3  # what gsm leaves of a weight that it never chooses
_CLIP = 5.0  # norm of gradients under sparse regularisation


def allocation(options: Train) -> Allocation:
    """Say how the weights to keep are spread over layers."""
    rule = RULES.get(options.algorithm)
    return options.allocation or ("global" if rule is None else rule.allocation)


def make_plan(options: Train, setting: Setting) -> Plan:
    """Say what to prune of a network, whose program tells what each leaf does.

    Raises:
        ValueError: as `swapjax.plan` does.
    """
    sparsity = 0.0 if options.algorithm == "dense" else options.sparsity
    return plan(
        setting.model.params,
        sparsity,
        allocation=allocation(options),
        loss_fn=setting.model.loss_fn,
        batch=tuple(part[:2] for part in setting.data.train),
    )


def mask_steps(options: Train, steps: int) -> tuple[int, int]:
    """Return the updates between two changes of masks, and the update of the last."""
    changes = GRADUAL[options.algorithm].changes
    stop = 0.75 if options.stop is None else options.stop
    end = max(1, round(stop * steps))
    return min(options.every or max(1, steps // changes), end), end


def rate(options: Train) -> float:
    """Return the fraction of the weights left that goes after each level of lottery."""
    return 0.2 if options.rate is None else options.rate


def inner(options: Train, steps: int) -> optax.GradientTransformation:
    """Make the optimizer, its learning rate falling to 0 along a cosine.

    Args:
        options: of the command.
        steps: in all.
    """
    learning_rate, momentum, decay = settings(options, steps)
    falling = optax.cosine_decay_schedule(learning_rate, steps)
    if optimizer_name(options) == "adamw":
        return optax.adamw(falling, weight_decay=decay, mask=_kernels)
    sgd = optimizer_name(options) == "sgd"
    last = optax.adam(falling)
    if sgd:
        # Authors of sparse regularisation have none of Nesterov's.
        last = optax.sgd(falling, momentum, nesterov=not regularized(options))
    if not decay:
        return last
    return optax.chain(optax.add_decayed_weights(decay, mask=_kernels), last)


def settings(options: Train, steps: int) -> tuple[float, float, float]:
    """Return learning rate, momentum and weight decay, by default those that suit."""
    gsm, sgd = options.algorithm == "gsm", optimizer_name(options) == "sgd"
    fade = -math.log(_FADED) * 2 / steps  # a step, while rates fall from 1 to 0
    momentum = options.momentum
    if momentum is None:
        # With more of it, weights swing through zero instead of fading: rate * decay
        # must stay below (1 - momentum)^2 / 4, which short runs cannot have at 0.99.
        momentum = max(0.0, min(0.99, 1 - 4 * fade)) if gsm else 0.9
    usual = 0.05 if sgd else 3e-3
    if gsm:  # many steps add up by momentum: it makes 0.01 of 0.99
        usual = 1 - momentum
    elif sgd and regularized(options):
        usual = 0.01  # of its authors; its large weights make more of it run away
    rate = options.learning_rate or usual
    decay = options.weight_decay
    if decay is None and gsm:
        # They shrink by exp(-sum of rates * decay / (1 - momentum)).
        decay = fade * (1 - momentum) / rate
    elif decay is None:
        decay = 1e-2 if options.optimizer == "adamw" else 1e-4 if sgd else 0.0
    return rate, momentum, decay


def drawing(options: Train, steps: int) -> tuple[float, int]:
    """Return the penalty of ADMM, and the updates from one projection to the next."""
    penalty = options.penalty
    if penalty is None:
        penalty = PULL / steps
        if optimizer_name(options) == "sgd":
            # What it makes of a weight depends on the sum of rates / (1 - momentum).
            rate, momentum, _ = settings(options, steps)
            penalty *= (1 - momentum) / rate
    return penalty, min(options.every or 32, steps)


def objective(options: Train, setting: Setting, steps: int) -> LossFn | Objective:
    """Return what is minimised.

    Args:
        options: of the command.
        setting: network and data.
        steps: in all.
    """
    loss = train_robust.objective(options.against, setting, steps)
    loss = train_backward.pruned(options, loss, steps)
    if options.algorithm == "safe":
        return training.sharpness_aware(loss, radius(options))
    return loss


def radius(options: Train) -> float:
    """Return how far from params safe takes its gradients."""
    return 0.1 if options.radius is None else options.radius


def told(options: Train, steps: int) -> dict[str, float]:
    """Return what the report tells of a run beside the options, which leave much open.

    Args:
        options: of the command.
        steps: in all.
    """
    learning_rate, momentum, decay = settings(options, steps)
    values = {"steps": steps, "learning_rate": learning_rate, "weight_decay": decay}
    if optimizer_name(options) == "sgd":
        values["momentum"] = momentum
    if options.algorithm in GRADUAL:
        values["every"], values["last_mask_step"] = mask_steps(options, steps)
    if options.algorithm in DRAWN:
        values["penalty"], values["every"] = drawing(options, steps)
    if options.algorithm == "safe":
        values["radius"] = radius(options)
    if options.algorithm == "lottery":
        values["rate"] = rate(options)
    return values


def keep_on_sphere(
    optimizer: optax.GradientTransformation, model: Model
) -> optax.GradientTransformation:
    """Keep the columns that a network of cosines has in its last layer at norm 1.

    Around an algorithm, which would look for the tree of params within otherwise.
    """
    if model.cosines is None:
        return optimizer
    return optax.chain(optimizer, robust.on_sphere(model.cosines))


def whole(
    options: Train, setting: Setting, target: Plan, steps: int, key: jax.Array
) -> optax.GradientTransformation:
    """Make the optimizer with the algorithm around it; lottery has none of its own.

    Args:
        options: of the command.
        setting: network and data.
        target: what to prune.
        steps: in all.
        key: for what is drawn at random.

    Raises:
        ValueError: as `swapjax.sparse` does.
    """
    made = _unclipped(options, setting, target, steps, key)
    if not regularized(options):
        return made
    # Its penalty outgrows the loss. As its authors do before weight decay, and before
    # ADMM, whose pull would be cut down along with it.
    return optax.chain(optax.clip_by_global_norm(_CLIP), made)


def _unclipped(
    options: Train, setting: Setting, target: Plan, steps: int, key: jax.Array
) -> optax.GradientTransformation:
    optimizer = inner(options, steps)
    if options.algorithm == "dense":
        return optimizer
    if options.algorithm == "gsm":
        return optax.chain(training.gsm(plan=target), optimizer)
    if options.algorithm in DRAWN:
        wrap = training.elsa if options.algorithm == "elsa" else training.admm
        penalty, every = drawing(options, steps)
        return wrap(optimizer, plan=target, steps=steps, penalty=penalty, every=every)
    rule, schedule = RULES.get(options.algorithm), None
    if rule is None:
        masks = before_training(options, setting, target, key)
        return training.sparse(optimizer, training.static(masks), plan=target, key=key)
    if rule.schedule is not None:
        every, end = mask_steps(options, steps)
        schedule = rule.schedule(end, every)
    return training.sparse(
        optimizer,
        rule.factory(),
        plan=target,
        schedule=schedule,
        steps=steps,
        key=key,
    )


def before_training(
    options: Train, setting: Setting, target: Plan, key: jax.Array
) -> Masks:
    """Make masks of the initial weights by a method for networks yet to be trained."""
    model, data, row = setting.model, setting.data, BEFORE[options.algorithm]
    stages, schedule, samples = 1, None, min(_SAMPLES, len(data.y_train))
    params = model.params
    if row.needs == "network":  # and no data, so that many stages cost little
        stages, schedule, samples = _STAGES, schedules.geometric(), 1
        method = row.factory(model.apply, data.shape)
    else:
        method = row.factory()
        params = runner.settled(setting, params)
    return prune(
        model.loss_fn,
        params,
        data.train,
        plan=target,
        method=method,
        stages=stages,
        schedule=schedule,
        samples=samples,
        key=key,
    ).masks


def _kernels(params: Params) -> Params:
    return jax.tree.map(lambda x: x.ndim > 1, params)
