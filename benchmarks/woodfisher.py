"""One stage of WoodFisher in blocks on as many weights as a ResNet-20 has.

LeNet-300-100 has 266,200. Predicted for n = 1,000 rows and blocks of c = 500: forming
the blocks takes 2 n c p = 266 GFLOP, for every damping once for the score and once for
the update; factoring and inverting them about 2 c^2 p = 133 GFLOP. G takes 1.06 GB and
everything else must fit in as much.

Exits with 1 beyond 20 seconds or 2 GB. Weights and images are random: neither time nor
memory depends on them. One damping; the default tries two.
"""

import dataclasses
import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from shared import console

import swapjax
from swapjax.experiments import models


@dataclasses.dataclass(frozen=True)
class Options:
    """Time a stage, and tell the peak memory of this process."""

    samples: int = 1000
    """Rows, of one example each."""
    block: int = 500
    """Entries of a block."""
    storage: str = "stored"
    """stored or matrix-free."""
    sparsity: float = 0.9
    """Of the stage."""


def main(options: Options) -> None:
    """Run the stage twice: the first compiles."""
    random = np.random.default_rng(0)
    x = random.normal(size=(options.samples, 28, 28)).astype(np.float32)
    y = random.integers(0, 10, options.samples)
    graph, state = nnx.split(models.MLP((784, 300, 100, 10), rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)

    def loss_fn(params: dict, batch: tuple) -> jax.Array:
        logits = nnx.merge(graph, params)(batch[0])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return jnp.mean(losses)

    for what in ("first, with compilation", "after compilation"):
        started = time.perf_counter()
        pruned = swapjax.prune(
            loss_fn,
            params,
            (x, y),
            sparsity=options.sparsity,
            method=swapjax.woodfisher(block=options.block, damping=1e-6),
            samples=options.samples,
            key=jax.random.key(0),
            storage=options.storage,  # type: ignore[arg-type]
        )
        seconds = time.perf_counter() - started
        console.print(f"{what}: {seconds:.1f} s, {pruned.history[-1].status.sentence}")
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    console.print(f"peak of the process: {peak / 1e6:,.0f} MB")
    sys.exit(seconds > 20 or peak > 2e9)


if __name__ == "__main__":
    main(tyro.cli(Options))
