"""Second moments of what each layer reads, against activations captured by hand."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from swapjax import plan
from swapjax.activations import patches as patches_module
from swapjax.activations.trace import second_moments

N, BATCH = 11, 2


def measure(loss_fn, params, x, batch=BATCH, chunk=4, **rules):
    target = plan(params, 0.5, **rules)
    found = second_moments(
        loss_fn, params, x, target.layout.paths, batch=batch, chunk=chunk
    )
    return dict(zip(target.layout.paths, found, strict=True)), target


def draw(seed, *shape, dtype=None):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def moment(a):
    """The mean over examples of the sum over positions, [examples, ..., inputs]."""
    a = np.asarray(a, np.float64)
    flat = a.reshape(-1, a.shape[-1])
    return flat.T @ flat / len(a)


def check(layer, expected, rtol=1e-9):
    np.testing.assert_allclose(layer.moment, expected, rtol=rtol, atol=rtol)


def patches(x, kernel, stride, pads, dilation=(1, 1)):
    """What an NHWC convolution reads: [n, positions, pixels * channels], by loops."""
    x = np.pad(np.asarray(x), ((0, 0), *pads, (0, 0)))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    result = []
    for i in range(0, x.shape[1] - reach[0] + 1, stride):
        for j in range(0, x.shape[2] - reach[1] + 1, stride):
            window = x[
                :, i : i + reach[0] : dilation[0], j : j + reach[1] : dilation[1]
            ]
            result.append(window.reshape(len(x), -1))
    return np.stack(result, axis=1)


@pytest.mark.usefixtures("x64")
class TestDots:
    def test_a_network_of_dense_layers(self):
        params = {
            "a": {"kernel": draw(0, 4, 5), "bias": draw(1, 5)},
            "b": {"kernel": draw(2, 5, 3)},
        }
        x = draw(3, N * BATCH, 4)

        def hidden(params, x):
            return jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"])

        def loss_fn(params, x):
            return jnp.mean((hidden(params, x) @ params["b"]["kernel"]) ** 2)

        found, _ = measure(loss_fn, params, x)
        check(found["a/kernel"], moment(x)[None])
        check(found["b/kernel"], moment(hidden(params, x))[None])
        kernel = params["a"]["kernel"]
        layer = found["a/kernel"]
        assert (layer.matrix(kernel) == kernel[None]).all()
        assert (layer.leaf(layer.matrix(kernel), kernel.shape) == kernel).all()

    @pytest.mark.parametrize(("n", "chunk"), [(7, 3), (6, 3), (5, 9), (13, 4)])
    def test_chunks_change_nothing(self, n, chunk):
        params, x = {"kernel": draw(0, 4, 3)}, draw(1, n * BATCH, 4)
        found, _ = measure(
            lambda p, x: jnp.mean(x @ p["kernel"]), params, x, chunk=chunk
        )
        check(found["kernel"], moment(x)[None])

    def test_a_transposed_kernel(self):
        params, x = {"weight": draw(0, 5, 4)}, draw(1, N * BATCH, 4)
        for read in (
            lambda w, x: x @ w.T,
            lambda w, x: w @ x.T,
            lambda w, x: jnp.einsum("oi,bi->bo", w, x),
        ):
            found, _ = measure(
                lambda p, x, f=read: jnp.sum(f(p["weight"], x)), params, x
            )
            check(found["weight"], moment(x)[None])
            matrix = found["weight"].matrix(params["weight"])
            assert (matrix == params["weight"].T[None]).all()

    def test_positions_are_summed(self):
        params, x = {"kernel": draw(0, 4, 2, 3)}, draw(1, N * BATCH, 6, 4)
        found, _ = measure(
            lambda p, x: jnp.sum(jnp.einsum("bti,iho->btho", x, p["kernel"])), params, x
        )
        check(found["kernel"], moment(x)[None])
        matrix = found["kernel"].matrix(params["kernel"])
        assert (matrix == params["kernel"].reshape(1, 4, 6)).all()

    def test_several_axes_contract(self):
        """As the output projection of attention, [heads, width, out]."""
        params, x = {"kernel": draw(0, 2, 3, 4)}, draw(1, N * BATCH, 5, 2, 3)
        found, _ = measure(
            lambda p, x: jnp.sum(jnp.einsum("bthw,hwo->bto", x, p["kernel"])), params, x
        )
        layer = found["kernel"]
        order = np.argsort(np.asarray(layer.index)[0, :, 0])
        check(
            dataclasses.replace(layer, moment=layer.moment[:, order][:, :, order]),
            moment(x.reshape(N * BATCH, 5, 6))[None],
        )

    def test_a_batched_product_is_several_layers(self):
        params, x = {"kernel": draw(0, 3, 4, 2)}, draw(1, N * BATCH, 3, 4)
        found, _ = measure(
            lambda p, x: jnp.sum(jnp.einsum("bgi,gio->bgo", x, p["kernel"])), params, x
        )
        check(found["kernel"], np.stack([moment(x[:, g]) for g in range(3)]))
        matrix = found["kernel"].matrix(params["kernel"])
        assert (matrix == params["kernel"]).all()

    def test_a_leaf_used_twice_adds_up(self):
        params, x = {"kernel": draw(0, 4, 4)}, draw(1, N * BATCH, 4)

        def loss_fn(p, x):
            return jnp.sum(jnp.tanh(x @ p["kernel"]) @ p["kernel"].T.T)

        found, _ = measure(loss_fn, params, x)
        hidden = np.tanh(np.asarray(x @ params["kernel"]))
        check(found["kernel"], (moment(x) + moment(hidden))[None])

    def test_rearrangements_and_calls_are_followed(self):
        params, x = {"kernel": draw(0, 4, 6)}, draw(1, N * BATCH, 4)

        @jax.custom_vjp
        def product(w, x):
            return x @ w

        product.defvjp(lambda w, x: (x @ w, (w, x)), lambda r, c: (r[0], r[1]))

        @jax.custom_jvp
        def same(w):
            return w

        same.defjvp(lambda primals, tangents: (same(*primals), tangents[0]))

        @jax.jit
        @jax.checkpoint
        def read(w, x):
            w = jnp.flip(same(w).reshape(2, 2, 6).astype(jnp.float32), 1)
            w = jnp.expand_dims(jax.lax.stop_gradient(w), 0).squeeze(0).copy()
            return product(w.reshape(4, 6), x.astype(jnp.float32))

        found, _ = measure(lambda p, x: jnp.sum(read(p["kernel"], x)), params, x)
        check(found["kernel"], moment(x)[None], rtol=1e-5)
        matrix = found["kernel"].matrix(params["kernel"])[0]
        expected = params["kernel"][np.array([1, 0, 3, 2])]
        assert (matrix == expected).all()
        # Float32 activations, but weights of float64: what is solved is as wide.
        assert found["kernel"].moment.dtype == jnp.float64


@pytest.mark.usefixtures("x64")
class TestConvolutions:
    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (0, 1))])
    @pytest.mark.parametrize("dilation", [1, 2])
    def test_patches_of_an_image(self, stride, padding, dilation, monkeypatch):
        monkeypatch.setattr(patches_module, "_BYTES", 3000)  # several parts
        x, kernel = draw(0, N, 7, 6, 3), draw(1, 3, 2, 3, 4)

        def convolve(kernel, x):
            return jax.lax.conv_general_dilated(
                x, kernel, (stride, stride), padding, rhs_dilation=(dilation, dilation),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )  # fmt: skip

        found, _ = measure(
            lambda p, x: jnp.sum(convolve(p["kernel"], x)), {"kernel": kernel}, x,
            batch=1,
        )  # fmt: skip
        pads = jax.lax.padtype_to_pads(
            x.shape[1:3], [2 * dilation + 1, dilation + 1], (stride, stride), padding
        ) if isinstance(padding, str) else padding  # fmt: skip
        read = patches(x, (3, 2), stride, pads, (dilation, dilation))
        layer = found["kernel"]
        check(layer, moment(read)[None])
        outputs = read @ np.asarray(layer.matrix(kernel))[0]
        np.testing.assert_allclose(
            outputs.reshape(-1), convolve(kernel, x).reshape(-1), atol=1e-9
        )

    @pytest.mark.parametrize("groups", [2, 4])
    @pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
    def test_groups_of_channels(self, groups, layout):
        x, kernel = draw(0, N, 5, 5, 4), draw(1, 3, 3, 4 // groups, 8)

        def convolve(kernel, x):
            if layout == "NCHW":
                x, kernel = x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1)
            out = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "VALID", feature_group_count=groups,
                dimension_numbers=(layout, "HWIO" if layout == "NHWC" else "OIHW",
                                   layout),
            )  # fmt: skip
            return out.transpose(0, 2, 3, 1) if layout == "NCHW" else out

        found, _ = measure(
            lambda p, x: jnp.sum(convolve(p["kernel"], x)), {"kernel": kernel}, x,
            batch=1,
        )  # fmt: skip
        layer = found["kernel"]
        parts = np.split(np.asarray(x), groups, axis=-1)
        reads = [patches(part, (3, 3), 1, ((0, 0), (0, 0))) for part in parts]
        check(layer, np.stack([moment(read) for read in reads]))
        matrix = np.asarray(layer.matrix(kernel))
        out = np.concatenate([r @ m for r, m in zip(reads, matrix, strict=True)], -1)
        np.testing.assert_allclose(
            out.reshape(-1), convolve(kernel, x).reshape(-1), atol=1e-9
        )

    def test_a_transposed_convolution(self):
        x, kernel = draw(0, N, 5, 3), draw(1, 3, 3, 2)

        def convolve(kernel, x):
            return jax.lax.conv_transpose(x, kernel, (2,), "SAME")

        found, _ = measure(
            lambda p, x: jnp.sum(convolve(p["kernel"], x)), {"kernel": kernel}, x,
            batch=1,
        )  # fmt: skip
        layer = found["kernel"]
        # The output's square is quadratic in the kernel with just this moment.
        matrix = np.asarray(layer.matrix(kernel))[0]
        energy = np.einsum("io,ij,jo->", matrix, layer.moment[0], matrix)
        np.testing.assert_allclose(energy, np.sum(convolve(kernel, x) ** 2) / N)


class TestLibraries:
    """The same three layers in Flax and Equinox."""

    def expected(self, x, kernel, bias):
        hidden = jax.nn.relu(
            jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ) + bias
        )  # fmt: skip
        return np.asarray(hidden).reshape(len(x), -1)

    def test_linen(self):
        class Network(linen.Module):
            @linen.compact
            def __call__(self, x):
                x = linen.relu(linen.Conv(2, (3, 3))(x))
                return linen.Dense(3)(x.reshape(x.shape[0], -1))

        x = draw(0, N * BATCH, 4, 4, 3)
        params = Network().init(jax.random.key(1), x)
        found, _ = measure(lambda p, x: jnp.mean(Network().apply(p, x) ** 2), params, x)
        conv = params["params"]["Conv_0"]
        hidden = self.expected(x, conv["kernel"], conv["bias"])
        check(found["params/Dense_0/kernel"], moment(hidden)[None], rtol=1e-4)
        pads = ((1, 1), (1, 1))
        read = patches(x, (3, 3), 1, pads)
        check(found["params/Conv_0/kernel"], moment(read)[None], rtol=1e-4)

    def test_nnx(self):
        class Network(nnx.Module):
            def __init__(self, rngs):
                self.conv = nnx.Conv(3, 2, (3, 3), rngs=rngs)
                self.dense = nnx.Linear(32, 3, rngs=rngs)

            def __call__(self, x):
                x = nnx.relu(self.conv(x))
                return self.dense(x.reshape(x.shape[0], -1))

        x = draw(0, N * BATCH, 4, 4, 3)
        graph, params = nnx.split(Network(nnx.Rngs(0)))
        found, _ = measure(
            lambda p, x: jnp.mean(nnx.merge(graph, p)(x) ** 2), params, x
        )
        conv = nnx.to_pure_dict(params)["conv"]
        hidden = self.expected(x, conv["kernel"], conv["bias"])
        check(found["dense/kernel"], moment(hidden)[None], rtol=1e-4)

    def test_equinox(self):
        keys = jax.random.split(jax.random.key(0), 2)
        network = eqx.nn.Sequential(
            [
                eqx.nn.Conv2d(3, 2, 3, padding=1, key=keys[0]),
                eqx.nn.Lambda(jax.nn.relu),
                eqx.nn.Lambda(jnp.ravel),
                eqx.nn.Linear(32, 3, key=keys[1]),
            ]
        )
        params, static = eqx.partition(network, eqx.is_array)
        x = draw(0, N * BATCH, 3, 4, 4)

        def loss_fn(params, x):
            return jnp.mean(jax.vmap(eqx.combine(params, static))(x) ** 2)

        found, target = measure(loss_fn, params, x)
        first = jax.vmap(eqx.combine(params, static).layers[0])(x)
        hidden = jax.nn.relu(first).reshape(len(x), -1)
        conv, dense = (found[path] for path in target.layout.paths)
        check(dense, moment(hidden)[None], rtol=1e-4)
        read = patches(x.transpose(0, 2, 3, 1), (3, 3), 1, ((1, 1), (1, 1)))
        check(conv, moment(read)[None], rtol=1e-4)

    def test_bfloat16_is_summed_in_float32(self):
        params = {"kernel": draw(0, 4, 3, dtype=jnp.bfloat16)}
        x = draw(1, 4000, 4, dtype=jnp.bfloat16)
        found, _ = measure(lambda p, x: jnp.sum(x @ p["kernel"]), params, x)
        assert found["kernel"].moment.dtype == jnp.float32
        check(found["kernel"], moment(x)[None], rtol=1e-4)


def as_an_image(w, x):
    return jax.lax.conv(w[None, None], x[:2, :2][None, None], (1, 1), "SAME")


def carried(w, x):
    step = lambda state, _: ((jnp.tanh(state[0] @ state[1]), -state[1]), None)  # noqa: E731
    return jax.lax.scan(step, (x, w), None, length=2)[0][0]


def on_devices(w, x):
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    product = jax.shard_map(
        lambda w, x: x @ w, mesh=mesh, in_specs=(jax.P(), jax.P("d")),
        out_specs=jax.P("d"),
    )  # fmt: skip
    return product(w, x)


def told_by_data(w, x):
    start = jnp.argmax(jnp.sum(x, axis=0))
    return x[:, :2] @ jax.lax.dynamic_slice(w, (start, 0), (2, 4))


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda w, x: x @ jnp.tanh(w), "enters the loss through tanh"),
        (lambda w, x: x @ w + jnp.sum(w**2), "through integer_pow|through square"),
        (lambda w, x: w[0] * x, "through mul"),
        (lambda w, x: x @ (w * jnp.arange(4.0)), "scaled by output"),
        (lambda w, x: x @ jnp.ravel(w.T * jnp.arange(4.0)).reshape(4, 4), "enters re"),
        (lambda w, x: x @ (w + w.T), "through add"),
        (lambda w, x: jnp.sum(x) + w, "through add"),
        (lambda w, x: jnp.tanh(x @ w) @ w.T, "as several matrices"),
        (lambda w, x: jnp.tanh(x @ w)[:, :2] @ w[:2, :2], "as several matrices"),
        (lambda w, x: x @ jnp.ones((4, 4)), "in no product"),
        (lambda w, x: x @ (w @ w), "with a leaf that may be pruned"),
        (lambda w, x: w[jnp.argsort(x[0])] @ x.T, "looked up by gather"),
        (carried, "carried through scan and changes"),
        (told_by_data, "gather|cut where a number"),
        (as_an_image, "as an image"),
        (on_devices, "within shard_map"),
    ],
)
def test_what_is_no_layer_is_named(read, words):
    params, x = {"fc": {"kernel": draw(0, 4, 4)}}, draw(1, 8, 4)
    with pytest.raises(ValueError, match=words) as error:
        measure(lambda p, x: jnp.sum(read(p["fc"]["kernel"], x)), params, x)
    assert "fc/kernel" in str(error.value)
    assert "exclude" in str(error.value)


def test_groups_of_examples_are_refused():
    kernel = draw(0, 2, 3, 4)

    def loss_fn(params, x):
        return jnp.sum(
            jax.lax.conv_general_dilated(
                x, params["kernel"], (1,), "SAME", batch_group_count=2,
                dimension_numbers=("NWC", "WIO", "NWC"),
            )
        )  # fmt: skip

    with pytest.raises(ValueError, match=r"kernel .* groups of examples"):
        measure(loss_fn, {"kernel": kernel}, draw(1, 8, 5, 3), batch=4)


def test_a_bias_is_no_layer():
    params = {"kernel": draw(0, 4, 3), "bias": draw(1, 3)}
    with pytest.raises(ValueError, match="bias enters the loss through"):
        measure(
            lambda p, x: jnp.sum(x @ p["kernel"] + p["bias"]), params, draw(2, 8, 4),
            include=".",
        )  # fmt: skip


def test_activations_that_are_not_finite_name_the_leaf():
    params = {"a": {"kernel": draw(0, 4, 3)}, "b": {"kernel": draw(1, 3, 2)}}

    def loss_fn(p, x):
        hidden = jnp.log(x @ p["a"]["kernel"])
        return jnp.sum(hidden @ p["b"]["kernel"])

    with pytest.raises(ValueError, match=r"activations: .* b/kernel"):
        measure(loss_fn, params, draw(2, 8, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"paths": ("bias",)}, "paths: 'bias' is no leaf of params"),
        ({"batch": 2}, "examples: 3 of them do not make whole batches of batch=2"),
        ({"batch": 0}, "batch must be 1 or more, got 0"),
        ({"chunk": 1.5}, "chunk must be a whole number, got 1.5"),
    ],
)
def test_bad_arguments_are_named(options, message):
    given = {"paths": ("kernel",), **options}
    with pytest.raises(ValueError, match=message):
        second_moments(
            lambda p, x: jnp.mean(x @ p["kernel"]),
            {"kernel": jnp.ones((2, 2))}, jnp.ones((3, 2)), **given,
        )  # fmt: skip
