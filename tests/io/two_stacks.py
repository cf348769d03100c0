"""Begin runs in a folder, or go on with those that are there.

What the oldest packages began the newest must go on with: see .ci/test-stacks.
"""

import functools
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import swapjax
from swapjax.pruning import by_score
from swapjax.training import Trainer, fit

DRAW = np.random.default_rng(0)
X, Y = (jnp.asarray(DRAW.normal(size=(20, n)), jnp.float32) for n in (4, 2))
PARAMS = {"kernel": jnp.asarray(DRAW.normal(size=(4, 2)), jnp.float32)}
KEY = jax.random.key(0)
RATE = optax.cosine_decay_schedule(0.1, 100)


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((x @ params["kernel"] - y) ** 2)


def halve(scale, key, shared, index, n, row):
    return jax.tree.map(lambda leaf: scale * leaf, row)


def scores(problem):
    return [jnp.abs(w) * s for w, s in zip(problem.weights, (0.5,), strict=True)]


def runs(folder):
    """By name, what goes on with a run that keeps its state in a folder."""
    prune = functools.partial(
        swapjax.prune, loss_fn, PARAMS, (X, Y), sparsity=0.5, stages=2, samples=10,
        key=KEY,
    )  # fmt: skip
    train = Trainer(loss_fn, (X, Y), swapjax.FineTune(optax.adam(RATE), 2, batch=10))
    sparse = swapjax.sparse(
        optax.adam(RATE), swapjax.granet(), sparsity=0.5, key=KEY,
        schedule=swapjax.cubic(0, 2, every=1),
    )  # fmt: skip
    each = {
        "prune": functools.partial(
            prune, method=swapjax.linear_regression(),
            noise=functools.partial(halve, 0.5),
            finetune=swapjax.FineTune(optax.adam(RATE), 2, batch=10),
        ),
        "own": functools.partial(prune, method=by_score("own", scores)),
        "fit": functools.partial(
            fit, loss_fn, PARAMS, sparse, (X, Y), epochs=2, batch=10, key=KEY
        ),
        "lottery": functools.partial(
            swapjax.lottery, train, PARAMS, sparsity=0.5, rate=0.5, key=KEY
        ),
    }  # fmt: skip
    return {
        name: functools.partial(run, checkpoint=folder / f"{name}.safetensors")
        for name, run in each.items()
    }


def stop(_):
    raise KeyboardInterrupt


def main(folder):
    for name, run in runs(folder).items():
        if not (folder / f"{name}.safetensors").exists():
            try:
                run(callback=stop)
            except KeyboardInterrupt:
                print(f"{name}: begun with JAX {jax.__version__}")  # noqa: T201
            continue
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            done = run()
        said = [str(w.message) for w in heard if "was written with" in str(w.message)]
        assert len(said) == 1, said
        assert len(done.history) == 2
        print(f"{name}: done with JAX {jax.__version__}")  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
