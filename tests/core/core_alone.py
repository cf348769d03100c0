"""All that swapjax does with its own dependencies alone.

Run it in an environment with nothing but ``pip install swapjax``; or with
``--block NAME ...``, which makes imports of these packages fail.
"""

import argparse
import sys
import tempfile
from pathlib import Path


class Refuse:
    """A finder of modules that has none of some packages."""

    def __init__(self, names):
        self.names = set(names)

    def find_spec(self, name, *_):
        """Raise for a module of these packages."""
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def main() -> None:
    """Prune by every method, train by every rule, save and load."""
    import jax
    import jax.numpy as jnp
    import optax

    import swapjax
    from swapjax.io import checkpoint
    from swapjax.pruning.methods import METHODS
    from swapjax.training.rules import RULES

    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (60, 8))
    y = jax.random.randint(keys[1], (60,), 0, 8)
    # Layers of one size share most programs, whose compilation is what takes time.
    params = {
        "a": {"kernel": jax.random.normal(keys[2], (8, 8)) / 3},
        "b": {"kernel": jax.random.normal(keys[3], (8, 8)) / 3},
    }

    def apply(params, x):
        return jax.nn.relu(x @ params["a"]["kernel"]) @ params["b"]["kernel"]

    def loss_fn(params, batch):
        x, y = batch
        logits = apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def check(name, masks):
        left = swapjax.sparsity.masks.count(masks)[0]
        assert left == 32, (name, left)
        sys.stdout.write(f"{name}\n")

    key = jax.random.key(0)
    for name, row in METHODS.items():
        # Of the two that do not do without: a key, and the network.
        words = {"random": (key,), "synflow": (apply, (8,))}.get(name, ())
        pruned = swapjax.prune(
            loss_fn, params, (x, y), sparsity=0.75, method=row.factory(*words),
            stages=2, samples=20, key=key,
        )  # fmt: skip
        check(name, pruned.masks)

    slopes_of = jax.jit(jax.grad(loss_fn))
    for name, rule in RULES.items():
        when = None if rule.schedule is None else rule.schedule(4, 1)
        tx = swapjax.sparse(
            optax.adam(1e-2), rule.factory(), sparsity=0.75, schedule=when, steps=6,
            key=key,
        )  # fmt: skip
        trained, state = params, tx.init(params)
        for _ in range(6):
            slopes = slopes_of(trained, (x, y))
            updates, state = tx.update(slopes, state, trained)
            trained = optax.apply_updates(trained, updates)
        check(name, swapjax.masks_of(state))

    with tempfile.TemporaryDirectory() as folder:
        one, other = Path(folder) / "params.safetensors", Path(folder) / "masks"
        checkpoint.save_params(one, pruned.params)
        checkpoint.save_masks(other, pruned.masks)
        again = checkpoint.load_params(one, params)
        masks = checkpoint.load_masks(other, params)
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), again, pruned.params)
    assert jax.tree.all(same)
    assert swapjax.churn(masks, pruned.masks) == 0
    sys.stdout.write("saved and loaded\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--block", nargs="*", default=[])
    sys.meta_path.insert(0, Refuse(parser.parse_args().block))
    main()
