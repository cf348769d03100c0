"""Serve stages of this library, for `peer_speed.py`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from service import Calls, Seconds, clocked, serve

import swapjax
from swapjax.experiments import models
from swapjax.gradients.build import per_example_gradients


def make(path: Path, samples: int, sparsity: float, few: int) -> Calls:
    """Make the stages, each a whole call of `swapjax.prune`.

    Args:
        path: of an .npz with x, y, and the kernels fc1, fc2 and fc3.
        samples: rows of one example on MLPNet.
        sparsity: of MLPNet.
        few: rows of WoodFisher's stages.
    """
    model, params, data = mlpnet(path)
    stages = {
        "chita, one back-solve": swapjax.chita(search="magnitude", damping=1e-3),
        "chita, blocks": swapjax.chita(block=500, sweeps=1, damping=1e-3),
        "chita": swapjax.chita(),
        "swap": swapjax.swap(),
        "regression": swapjax.linear_regression(first_order=False),
    }
    calls = {
        name: stage(model.loss_fn, params, data, sparsity, samples, method)
        for name, method in stages.items()
    }
    independent = swapjax.woodfisher(update="independent", damping=1e-5)
    calls["woodfisher, independent"] = stage(
        model.loss_fn, params, data, sparsity, few, independent
    )
    calls["woodfisher, transformer"] = stage(
        *transformer(few), 0.8, few, swapjax.woodfisher()
    )
    return calls


def stage(
    loss_fn: Callable,
    params: Any,
    data: Any,
    sparsity: float,
    samples: int,
    method: swapjax.Method,
) -> Callable[[], Seconds]:
    """Make a function that times a stage, and its gradients once more alone."""
    some = jax.tree.map(lambda x: x[:samples], data)
    plan = swapjax.plan(params, sparsity, loss_fn=loss_fn, batch=some)

    def work() -> Seconds:
        rows = clocked(lambda: jax.block_until_ready(gradients()))
        return {"gradients": rows["total"], **clocked(prune)}

    def gradients() -> Any:
        return per_example_gradients(loss_fn, params, some, plan, storage="stored")

    def prune() -> None:
        pruned = swapjax.prune(
            loss_fn, params, data, sparsity=sparsity, samples=samples, method=method,
            key=jax.random.key(0),
        )  # fmt: skip
        jax.block_until_ready(pruned.params)

    return work


def mlpnet(path: Path) -> tuple[models.Model, Any, Any]:
    """Load the network and all examples."""
    with np.load(path) as file:
        x, y = (jnp.asarray(file[name]) for name in ("x", "y"))
        kernels = [jnp.asarray(file[name]) for name in ("fc1", "fc2", "fc3")]
    model = models.create("mlpnet", x.shape[1:], 10)
    leaves, tree = jax.tree.flatten(model.params)
    assert [leaf.shape for leaf in leaves] == [k.shape for k in kernels]
    return model, jax.tree.unflatten(tree, kernels), (x, y)


def transformer(count: int) -> tuple[Callable, Any, Any]:
    """Make two blocks of width 64: 12 kernels of 98,304 weights, and sequences.

    Weights and tokens are random: the time of a stage does not depend on them.
    """
    width, vocabulary, blocks = 64, 50, 2
    keys = iter(jax.random.split(jax.random.key(0), 20))
    shapes = {
        **dict.fromkeys(("query", "key", "value", "out"), (width, width)),
        "up": (width, 4 * width),
        "down": (4 * width, width),
    }
    params = {
        f"block{i}": {
            name: {"kernel": jax.random.normal(next(keys), shape) / shape[0] ** 0.5}
            for name, shape in shapes.items()
        }
        for i in range(blocks)
    }
    words = jax.random.normal(next(keys), (vocabulary, width))
    tokens = jax.random.randint(next(keys), (count, 17), 0, vocabulary)

    def norm(h: jax.Array) -> jax.Array:
        return h / jnp.sqrt(jnp.mean(h**2, axis=-1, keepdims=True) + 1e-6)

    def loss_fn(params: Any, tokens: jax.Array) -> jax.Array:
        h = words[tokens[:, :-1]]
        for block in params.values():
            kernel = {name: leaf["kernel"] for name, leaf in block.items()}
            x = norm(h)
            heads = (*x.shape[:2], 4, width // 4)
            read = (x @ kernel[name] for name in ("query", "key", "value"))
            q, k, v = (part.reshape(heads) for part in read)
            mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
            h = h + mixed.reshape(x.shape) @ kernel["out"]
            h = h + jax.nn.gelu(norm(h) @ kernel["up"]) @ kernel["down"]
        chances = jax.nn.log_softmax(norm(h) @ words.T)
        return -jnp.mean(jnp.take_along_axis(chances, tokens[:, 1:, None], axis=2))

    return loss_fn, params, tokens


if __name__ == "__main__":
    _, where, rows, level, small = sys.argv
    serve(lambda: make(Path(where), int(rows), float(level), int(small)))
