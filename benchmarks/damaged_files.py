"""Sound files of each kind that swapjax reads, small enough to damage many times."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from damage import Arrays, Kind
from PIL import Image
from rebuild import rebuild_json, rebuild_npz, rebuild_safetensors

import swapjax
from swapjax.core import trees
from swapjax.experiments import datasets, report
from swapjax.experiments.row import Row
from swapjax.io import checkpoint
from swapjax.training import fit, lottery


def kinds(folder: Path) -> list[Kind]:
    """Write a sound file of each kind to a folder, and tell how it is read."""
    return [
        *_data(), *_weights(folder), _masks(folder), *_states(folder), _rows(folder)
    ]  # fmt: skip


def _data() -> list[Kind]:
    chance = np.random.default_rng(0)
    images = {part: chance.integers(0, 256, (n, 8, 8), np.uint8) for part, n in _SIZES}
    labels = {f"y_{part}": np.arange(n) % 3 for part, n in _SIZES}
    plain = {**labels, **{f"x_{part}": x for part, x in images.items()}}
    coded: dict[str, np.ndarray] = dict(labels)
    for part, some in images.items():
        form = "JPEG" if part == "train" else "PNG"
        files = [_encode(image, form) for image in some]
        coded[f"jpeg_{part}"] = np.frombuffer(b"".join(files), np.uint8)
        coded[f"offset_{part}"] = np.cumsum([0, *map(len, files)])
    return [
        Kind("data", _npz(plain), ".npz", _read_data, rebuild_npz),
        Kind("data, deflated", _npz(plain, True), ".npz", _read_data, rebuild_npz),
        Kind("data of images", _npz(coded), ".npz", _read_data, rebuild_npz),
    ]


_SIZES = (("train", 6), ("test", 4))


def _encode(image: np.ndarray, form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, form)
    return file.getvalue()


def _npz(arrays: Mapping[str, np.ndarray], compressed: bool = False) -> bytes:
    file = io.BytesIO()
    save: Any = np.savez_compressed if compressed else np.savez
    save(file, **arrays)
    return file.getvalue()


def _read_data(path: Path) -> Arrays:
    data = datasets.load(path)
    return {
        "x_train": data.x_train, "y_train": data.y_train, "x_test": data.x_test,
        "y_test": data.y_test, "classes": np.asarray(data.classes),
    }  # fmt: skip


def _network() -> dict[str, Any]:
    chance = np.random.default_rng(1)
    return {
        "conv": {"kernel": jnp.asarray(chance.normal(size=(3, 3, 2, 4)), jnp.float32)},
        "fc": {
            "kernel": jnp.asarray(chance.normal(size=(4, 5)), jnp.float32),
            "bias": jnp.asarray(chance.normal(size=5), jnp.bfloat16),
        },
    }


def _weights(folder: Path) -> list[Kind]:
    params = _network()
    by_path = {
        path: np.asarray(leaf, np.float32)
        for path, leaf in zip(trees.paths(params), jax.tree.leaves(params), strict=True)
    }
    mask = (by_path["fc/kernel"].T > 0).astype(np.float32)
    theirs = {
        "module.conv.weight": by_path["conv/kernel"].transpose(3, 2, 0, 1),
        "module.fc.weight_orig": by_path["fc/kernel"].T,
        "module.fc.weight_mask": mask,
        "module.fc.bias": by_path["fc/bias"],
    }
    theirs = {name: np.ascontiguousarray(array) for name, array in theirs.items()}
    ours = folder / "ours.safetensors"
    checkpoint.save_params(ours, params, {"made": "here"})

    def read(path: Path) -> Arrays:
        return _by_path(checkpoint.load_params(path, params))

    others = safetensors.numpy.save(by_path)
    of_torch = safetensors.numpy.save(theirs)
    return [
        Kind("weights, .npz", _npz(by_path), ".npz", read, rebuild_npz),
        Kind("weights of PyTorch, .npz", _npz(theirs), ".npz", read, rebuild_npz),
        Kind("weights", ours.read_bytes(), ".safetensors", read, rebuild_safetensors,
             sealed_rebuilt=True),
        Kind("weights of others", others, ".safetensors", read, rebuild_safetensors,
             sealed=False),
        Kind("weights of PyTorch", of_torch, ".safetensors", read,
             rebuild_safetensors, sealed=False),
    ]  # fmt: skip


def _masks(folder: Path) -> Kind:
    params = _network()
    tree = jax.tree.map(lambda x: x > 0 if x.ndim > 1 else jnp.asarray(True), params)
    path = folder / "masks.safetensors"
    checkpoint.save_masks(path, tree)

    def read(path: Path) -> Arrays:
        return _by_path(checkpoint.load_masks(path, params))

    return Kind("masks", path.read_bytes(), ".safetensors", read, rebuild_safetensors,
                sealed_rebuilt=True)  # fmt: skip


def _states(folder: Path) -> list[Kind]:
    params = {
        "fc": {"kernel": jnp.asarray(np.random.default_rng(2).normal(size=(6, 4)))}
    }
    x = jnp.asarray(np.random.default_rng(3).normal(size=(16, 6)), jnp.float32)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    # One object each: what a run is told by is its code and settings.
    optimizer = swapjax.sparse(
        optax.adam(0.1), swapjax.set_(), sparsity=0.5,
        schedule=swapjax.constant(0, 4, every=2), key=jax.random.key(0),
    )  # fmt: skip

    def stages(path: Path) -> Any:
        return swapjax.prune(
            None, params, sparsity=0.8, method=swapjax.magnitude(), stages=3,
            checkpoint=path,
        )  # fmt: skip

    def epochs(path: Path) -> Any:
        return fit(
            _loss, params, optimizer, x, epochs=2, batch=4, key=jax.random.key(1),
            checkpoint=path,
        )  # fmt: skip

    def levels(path: Path) -> Any:
        return lottery(
            lambda params, masks, key: params, params, sparsity=0.75, rate=0.5,
            key=jax.random.key(2), checkpoint=path,
        )  # fmt: skip

    found = []
    for run in (stages, epochs, levels):
        path = folder / f"{run.__name__}.safetensors"
        run(path)  # what a finished run has left is read back at once
        found.append(
            Kind(f"state of {run.__name__}", path.read_bytes(), ".safetensors",
                 _read_state(run), rebuild_safetensors, sealed_rebuilt=True)
        )  # fmt: skip
    return found


def _loss(params: Any, x: jax.Array) -> jax.Array:
    return jnp.mean((x @ params["fc"]["kernel"] - 2 * x[:, :4]) ** 2)


def _read_state(run: Callable[[Path], Any]) -> Callable[[Path], Arrays]:
    def read(path: Path) -> Arrays:
        found = run(path)._asdict()
        history = repr(found.pop("history")).encode()
        return {**_by_path(found), "history": np.frombuffer(history, np.uint8)}

    return read


def _rows(folder: Path) -> Kind:
    path = folder / "rows.json"
    rows = [
        Row(method=method, sparsity=0.9, seed=seed, noise="gaussian:1,0.25",
            accuracy=91.5, loss=0.3 * seed, seconds=1.25, nonzeros=3236, total=32360,
            status="converged", settings=f"{method}()", setup="samples=100")
        for method in ("magnitude", "swap") for seed in (0, 1)
    ]  # fmt: skip
    report.write_rows(path, rows)

    def read(path: Path) -> Arrays:
        return {
            f"{row.method} {row.seed}": np.frombuffer(repr(row).encode(), np.uint8)
            for row in report.read_rows(path)
        }

    return Kind("rows of compare", path.read_bytes(), ".json", read, rebuild_json,
                sealed_rebuilt=True, parts=True)  # fmt: skip


def _by_path(tree: Any) -> Arrays:
    leaves = map(np.asarray, jax.tree.leaves(tree))
    return dict(zip(trees.paths(tree), leaves, strict=True))
