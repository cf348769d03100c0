"""Weights of PyTorch networks for ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swapjax.core.types import Params
from swapjax.experiments.models.model import Model
from swapjax.io import checkpoint, torch_weights


def from_torch(source: str | Path | Mapping[str, Any], model: Model) -> Params:
    """Take the weights of a PyTorch network for one of `swapjax.experiments.models`.

    Args:
        source: a state dict, of tensors or of arrays; or a file that holds one:
            ``.safetensors``, ``.npz``, or ``.pt`` and ``.pth`` where PyTorch is
            installed.
        model: from `swapjax.experiments.models.create`. ResNets and VGG take the names
            of torchvision, MobileNetV1 those of one sequence, ``model.0.0.weight``.

    Returns:
        Params as `model.params`, running statistics of batch norm included.

    Raises:
        ValueError: for a file that cannot be read or holds other objects than weights,
            and weights that are missing, too many, misshapen or not finite; every one
            is named.
        ImportError: for a ``.pt`` file without PyTorch.
    """
    if isinstance(source, Mapping):
        name, arrays = "state dict", torch_weights.to_arrays(source)
    else:
        name, path = str(source), Path(source)
        torch_file = path.suffix in (".pt", ".pth")
        arrays = torch_weights.read(path) if torch_file else checkpoint.read(path)[0]
    # None of our networks has a transposed convolution.
    return checkpoint.fit(name, arrays, model.params, model.flattened, transposed=())
