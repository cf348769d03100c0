"""Serve a stage of somebody else's code, for `peer_speed.py`.

Runs in a python with torch and what the code needs, of a clone that is left as it is:
where it does not run on a CPU and with libraries of today, it is mended in memory. One
stage from dense weights, rows of one example, no training.
"""

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from service import Calls, Seconds, clocked, serve

LAYERS = ("fc1", "fc2", "fc3")
# What the clones import, and nothing that is served here uses.
ABSENT = (
    *("torchvision", "torchvision.datasets", "torchvision.models"),
    *("torchvision.transforms", "torch.utils.tensorboard"),
)


class Task:
    """What to prune.

    Args:
        path: of an .npz with x, y, and the kernels fc1, fc2 and fc3.
        samples: rows of one example.
        sparsity: of the stage.
    """

    def __init__(self, path: Path, samples: int, sparsity: float) -> None:
        self.torch = importlib.import_module("torch")
        with np.load(path) as file:
            x, y = self.torch.from_numpy(file["x"]), self.torch.from_numpy(file["y"])
            kernels = [self.torch.from_numpy(file[name].T.copy()) for name in LAYERS]
        data = importlib.import_module("torch.utils.data")
        self.examples = data.TensorDataset(x, y.long())
        self.kernels, self.samples, self.sparsity = kernels, samples, sparsity

    def network(self) -> Any:
        """Make the clone's own network, with the weights."""
        net = importlib.import_module("models.mlpnet").MlpNet(None, "mnist")
        for name, kernel in zip(LAYERS, self.kernels, strict=True):
            getattr(net, name).weight.data.copy_(kernel)
        return net.eval()

    def draw(self) -> np.ndarray:
        """Choose examples, by their numbers."""
        count = len(self.examples)
        return np.random.default_rng(0).permutation(count)[: self.samples]


def chita(task: Task) -> Calls:
    """Serve CHITA (mazumder-lab/CHITA, 89c606d): a back-solve, and one in blocks."""
    torch = task.torch
    pruner = importlib.import_module("pruners.CHITA").CHITA
    loader = importlib.import_module("torch.utils.data").DataLoader

    def stage(algorithm: str, block: int) -> Seconds:
        examples = loader(task.examples, batch_size=1, shuffle=True, num_workers=0)
        names = [f"{name}.weight" for name in LAYERS]
        own = pruner(
            task.network(), names, examples, task.samples, 1,
            torch.nn.functional.nll_loss, block, 1e-3, 1, False, False, "cpu",
            algorithm,
        )  # fmt: skip
        used = clocked(lambda: own.prune(None, task.sparsity))
        gradients = used["total"] - own.results["prun_runtime"]
        return {"gradients": gradients, **used}

    return {
        "one back-solve": lambda: stage("Heuristic_LS", -1),
        "blocks": lambda: stage("Heuristic_LSBlock", 500),
    }


def swap(task: Task) -> Calls:
    """Serve SWAP (youlei202/Entropic-Wasserstein-Pruning, ce54d7d) and its regression.

    The last of 14 stages as its script for MLPNet sets them, which goes to the full
    sparsity; gradients are taken twice, as released.
    """
    module = importlib.import_module("policies.pruners")
    kind = module.OptimalTransportPruner
    # On a CPU `b.to("cpu")` is b itself, and `b *= mask` would write into the caller's.
    name = "_OptimalTransportPruner__find_minimizing_tau"
    original = getattr(kind, name)

    def find(self: Any, *args: Any, b: Any, **rest: Any) -> Any:
        return original(self, *args, b=b.clone(), **rest)

    setattr(kind, name, find)
    flags = ["--fisher-subsample-size", str(task.samples), "--fisher-mini-bsz", "1"]
    return {
        "swap": in_stage(task, kind, [*flags, "--ot"], "_compute_wgH"),
        "regression": in_stage(task, kind, flags, "_compute_wgH"),
    }


def woodfisher(task: Task) -> Calls:
    """Serve WoodFisher (IST-DASLab/WoodFisher, d4b1a96) in blocks of 1,000."""
    module = importlib.import_module("policies.pruners")
    flags = ["--fisher-subsample-size", str(task.samples), "--fisher-mini-bsz", "1"]
    flags += ["--fisher-damp", "1e-5", "--fisher-split-grads"]
    flags += ["--fittable-params", "1000", "--woodburry-joint-sparsify"]
    kind = module.BlockwiseWoodburryFisherPruner
    return {"woodfisher": in_stage(task, kind, flags, "_compute_all_grads")}


def in_stage(
    task: Task, kind: type, flags: list[str], gradients: str
) -> Callable[[], Seconds]:
    """Make a function that does the last stage of a pruner of this family.

    Args:
        task: what to prune.
        kind: of the pruner.
        flags: for its own parser of options.
        gradients: the method that takes them.
    """
    with mock.patch.object(sys, "argv", ["main.py", *flags]):
        options = importlib.import_module("options").get_parser()
    wrap = importlib.import_module("utils.masking_utils").get_wrapped_model
    net = wrap(task.network()).eval()
    pruner = kind(
        net, options, epochs=[0, 1, 14], modules=LAYERS, weight_only=True,
        initial_sparsity=0.0, target_sparsity=task.sparsity,
    )  # fmt: skip
    own, spent = getattr(pruner, gradients), []

    def timed(*args: Any, **rest: Any) -> Any:
        started = time.perf_counter()
        result = own(*args, **rest)
        spent.append(time.perf_counter() - started)
        return result

    setattr(pruner, gradients, timed)
    modules = [getattr(net, name) for name in LAYERS]
    pruner.on_epoch_begin(task.examples, task.draw(), "cpu", 0, 0)

    def work() -> Seconds:
        for module, kernel in zip(modules, task.kernels, strict=True):
            module.weight.data.copy_(kernel)
            module.weight_mask = task.torch.ones_like(kernel)
        spent.clear()
        used = clocked(
            lambda: pruner.on_epoch_begin(task.examples, task.draw(), "cpu", 0, 14)
        )
        kept = sum(int((module.weight_mask != 0).sum()) for module in modules)
        count = sum(kernel.numel() for kernel in task.kernels)
        if abs(kept / count - 1 + task.sparsity) > 0.01:
            raise ValueError(f"it kept {kept:,} of {count:,}")
        return {"gradients": sum(spent), **used}

    return work


def make(which: str, clone: str, path: str, samples: str, sparsity: str) -> Calls:
    """Import a clone and make what it serves."""
    for name in ABSENT:
        sys.modules[name] = mock.MagicMock()
    sys.path.insert(0, clone)
    # 'seaborn' has another name now.
    mock.patch.object(importlib.import_module("matplotlib.style"), "use").start()
    task = Task(Path(path), int(samples), float(sparsity))
    served: dict[str, Callable[[Task], Calls]] = {
        "CHITA": chita, "SWAP": swap, "WoodFisher": woodfisher,
    }  # fmt: skip
    return served[which](task)


if __name__ == "__main__":
    *arguments, threads = sys.argv[1:]
    importlib.import_module("torch").set_num_threads(int(threads))
    serve(lambda: make(*arguments))
