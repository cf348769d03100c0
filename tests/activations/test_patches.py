"""Moments of what long kernels read, beside a sum over every place in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swapjax.activations import patches
from swapjax.activations.trace import second_moments


def slow(x, taps, groups, stride, padding):
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), padding, (0, 0)))
    found = 0.0
    for start in range(0, padded.shape[1] - taps + 1, stride):
        read = padded[:, start : start + taps].reshape(len(x), taps, groups, -1)
        read = read.transpose(2, 0, 1, 3).reshape(groups, len(x), -1)
        found = found + np.einsum("gni,gnj->gij", read, read)
    return found / len(x)


@pytest.mark.parametrize(
    ("channels", "groups", "length", "taps", "stride", "padding"),
    [
        (6, 2, 23, 20, 1, (3, 5)),  # slides
        (2, 1, 9, 30, 1, (20, 19)),  # a kernel longer than what it reads
        (2, 1, 60, 20, 3, (2, 0)),  # by gathers, as it moves by more than one
    ],
)
def test_long_kernels(channels, groups, length, taps, stride, padding, monkeypatch):
    monkeypatch.setattr(patches, "_BYTES", 9000)  # several parts
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(5, length, channels)), jnp.float32)
    kernel = jnp.zeros((taps, channels // groups, 2 * groups))

    def loss(params, x):
        y = jax.lax.conv_general_dilated(
            x, params["kernel"], (stride,), [padding],
            dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=groups,
        )  # fmt: skip
        return jnp.sum(y)

    (layer,) = second_moments(loss, {"kernel": kernel}, x, ["kernel"], chunk=4)
    wanted = slow(x, taps, groups, stride, padding)
    np.testing.assert_allclose(layer.moment, wanted, atol=1e-5 * wanted.max())
