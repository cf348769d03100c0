"""Second moments in loops, branches and of leaves in parts, against plain loops."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from swapjax import plan
from swapjax.activations.trace import second_moments

N = 6


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def measure(loss_fn, params, x, batch=2, chunk=2, **rules):
    target = plan(params, 0.5, **rules)
    paths = target.layout.paths
    found = second_moments(loss_fn, params, x, paths, batch=batch, chunk=chunk)
    for layer, w in zip(found, target.layout.split(params), strict=True):
        # Every entry stands somewhere, once.
        index = np.asarray(layer.index)
        assert (np.sort(index[index >= 0]) == np.arange(w.size)).all()
        assert (layer.leaf(layer.matrix(w), w.shape) == w).all()
    return dict(zip(paths, found, strict=True))


def moment(a):
    """The mean over examples of the sum over positions, [examples, ..., inputs]."""
    a = np.asarray(a, np.float64)
    flat = a.reshape(-1, a.shape[-1])
    return flat.T @ flat / len(a)


def check(layer, expected, layers=1):
    assert layer.layers == layers
    np.testing.assert_allclose(layer.moment, expected, rtol=1e-9, atol=1e-9)


def states(cell, h, xs):
    """What a loop passes on: the state before each step, and the last."""
    found = [h]
    for x in xs:
        found.append(cell(found[-1], x))
    return found


def dense(h, w):
    return np.tanh(np.asarray(h) @ np.asarray(w))


pytestmark = pytest.mark.usefixtures("x64")


class TestScan:
    """Four layers, in every way to loop over them."""

    kernel = draw(0, 4, 5, 5)
    x = draw(1, N, 5)

    def over(self, w, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0]

    def backwards(self, w, x):
        flipped = jnp.flip(w, 0)
        step = jax.checkpoint(lambda h, w: (jax.jit(jnp.tanh)(h @ w), None))
        return jax.lax.scan(step, x, flipped, reverse=True, unroll=2)[0]

    def counted(self, w, x):
        return jax.lax.fori_loop(0, 4, lambda i, h: jnp.tanh(h @ w[i]), x)

    def until(self, w, x):
        step = lambda s: (s[0] + 1, jnp.tanh(s[1] @ w[s[0]]))  # noqa: E731
        return jax.lax.while_loop(lambda s: s[0] < 4, step, (0, x))[1]

    def unrolled(self, w, x):
        for i in range(4):
            x = jnp.tanh(x @ w[i])
        return x

    def restacked(self, w, x):
        return self.over(jnp.stack([w[i].T for i in range(4)]), x)

    def pairs(self, w, x):
        return self.over_pairs(w.reshape(2, 2, 5, 5), x)

    def over_pairs(self, w, x):
        return jax.lax.scan(lambda h, w: (self.over(w, h), None), x, w)[0]

    @pytest.mark.parametrize(
        "name",
        ["backwards", "counted", "until", "unrolled", "restacked", "pairs"],
    )
    def test_a_stack_of_layers(self, name):
        run = getattr(self, name)
        w, params = self.kernel, {"kernel": self.kernel}
        if name == "restacked":
            params = {"kernel": w.swapaxes(1, 2)}
        found = measure(lambda p, x: jnp.sum(run(p["kernel"], x)), params, self.x)
        read = states(dense, self.x, w)[:-1]
        check(found["kernel"], np.stack([moment(a) for a in read]), layers=4)
        expected = w
        assert (found["kernel"].matrix(params["kernel"]) == expected).all()

    @pytest.mark.parametrize("name", ["scan", "while"])
    def test_one_layer_at_every_step(self, name):
        def run(w, x):
            step = lambda h: jnp.tanh(h @ w)  # noqa: E731
            if name == "scan":
                return jax.lax.scan(lambda h, _: (step(h), None), x, None, length=3)[0]
            return jax.lax.while_loop(
                lambda s: s[0] < 3, lambda s: (s[0] + 1, step(s[1])), (0, x)
            )[1]

        w = self.kernel[0]
        found = measure(
            lambda p, x: jnp.sum(run(p["kernel"], x)), {"kernel": w}, self.x
        )
        read = states(dense, self.x, [w] * 3)[:-1]
        check(found["kernel"], sum(map(moment, read))[None])

    def test_no_steps(self):
        w = self.kernel[0]

        def loss(p, x):
            step = lambda h, w: (h @ w, None)  # noqa: E731
            none = jax.lax.scan(step, x, jnp.zeros((0, 5, 5)))[0]
            none = jax.lax.scan(lambda h, _: (h @ p["kernel"], None), none, None, 0)[0]
            return jnp.sum(none @ p["kernel"])

        check(measure(loss, {"kernel": w}, self.x)["kernel"], moment(self.x)[None])

    def test_time_within_layers(self):
        """A recurrent network of two layers, each a loop over time."""
        w, u = draw(2, 2, 3, 3), draw(3, 2, 3, 3)
        x = draw(4, N, 7, 3)

        def layer(xs, w):
            step = lambda h, x: (jnp.tanh(x @ w[0] + h @ w[1]),) * 2  # noqa: E731
            return jax.lax.scan(step, jnp.zeros(3), xs)[1], None

        def loss(p, x):
            stacks = (p["in"]["kernel"], p["rec"]["kernel"])
            return jnp.sum(jax.vmap(lambda xs: jax.lax.scan(layer, xs, stacks)[0])(x))

        params = {"in": {"kernel": w}, "rec": {"kernel": u}}
        found = measure(loss, params, x)
        read, hidden = [], []
        xs = np.asarray(x)
        for i in range(2):
            cell = lambda h, x: np.tanh(x @ w[i] + h @ u[i])  # noqa: B023, E731
            each = states(cell, np.zeros((N, 3)), xs.swapaxes(0, 1))
            read.append(moment(xs))
            hidden.append(moment(np.stack(each[:-1], axis=1)))
            xs = np.stack(each[1:], axis=1)
        check(found["in/kernel"], np.stack(read), layers=2)
        check(found["rec/kernel"], np.stack(hidden), layers=2)

    def test_branches_that_are_taken(self):
        w = draw(5, 2, 5, 5)

        def loss(p, x):
            first, second = p["a"]["kernel"], p["b"]["kernel"]
            branches = [lambda x: x @ first, lambda x: jnp.sin(x) @ second]
            one = jax.lax.switch((x[0, 0] > 0).astype(int), branches, x)
            return jnp.sum(jax.lax.cond(x[0, 1] > 0, lambda: one @ first, lambda: one))

        params = {"a": {"kernel": w[0]}, "b": {"kernel": w[1]}}
        x, first, second = np.asarray(self.x), np.zeros((5, 5)), np.zeros((5, 5))
        for row in x[:, None]:
            if row[0, 0] > 0:
                second += moment(np.sin(row)) / N
                one = np.sin(row) @ w[1]
            else:
                first += moment(row) / N
                one = row @ w[0]
            if row[0, 1] > 0:
                first += moment(one) / N
        assert first.any()
        assert second.any()
        found = measure(loss, params, x, batch=1, chunk=4)
        check(found["a/kernel"], first[None])
        check(found["b/kernel"], second[None])

    def test_loops_that_data_end(self):
        w = self.kernel[0]

        def loss(p, x):
            return jnp.sum(
                jax.lax.while_loop(
                    lambda s: s[0] < 1 + jnp.sum(x > 0),
                    lambda s: (s[0] + 1, jnp.tanh(s[1] @ p["kernel"])),
                    (0, x),
                )[1]
            )

        total = np.zeros((5, 5))
        for row in np.asarray(self.x)[:, None]:
            read = states(dense, row, [w] * int(1 + (row > 0).sum()))[:-1]
            total += sum(map(moment, read)) / N
        found = measure(loss, {"kernel": w}, self.x, batch=1, chunk=4)
        check(found["kernel"], total[None])


def test_rows_of_experts():
    """Sorted by expert and multiplied with a ragged product, in two layers."""
    up, down, x = draw(0, 2, 3, 4, 5), draw(1, 2, 3, 5, 4), draw(2, N, 3, 4)

    def block(h, w):
        chosen = jnp.argmax(h[:, :3], -1)
        order = jnp.argsort(chosen)
        sizes = jnp.bincount(chosen, length=3)
        hidden = jnp.tanh(jax.lax.ragged_dot(h[order], w[0], sizes))
        read = jax.lax.ragged_dot(hidden, w[1], sizes)
        return h + read[jnp.argsort(order)], None

    def loss(p, x):
        behind = jnp.swapaxes(p["down"], -1, -2)
        return jnp.mean(jax.lax.scan(block, x.reshape(-1, 4), (p["up"], behind))[0])

    params = {"up": up, "down": down.swapaxes(-1, -2)}
    axes = {"up": ("stack", "expert", "input", "output")}
    axes["down"] = ("stack", "expert", "output", "input")
    found = measure(loss, params, x, axes=axes)
    h, read = x.reshape(-1, 4), {"up": [], "down": []}
    for w, v in zip(up, down, strict=True):
        chosen = h[:, :3].argmax(-1)
        own = [chosen == e for e in range(3)]
        inside = [np.tanh(h[rows] @ w[e]) for e, rows in enumerate(own)]
        read["up"] += [h[rows].T @ h[rows] / N for rows in own]
        read["down"] += [a.T @ a / N for a in inside]
        h = h.copy()
        for e, rows in enumerate(own):
            h[rows] += inside[e] @ v[e]
    for path, expected in read.items():
        check(found[path], np.stack(expected), layers=6)


class TestCells:
    def test_gru_and_lstm(self):
        keys = jax.random.split(jax.random.key(0), 2)
        gru, lstm = (
            eqx.nn.GRUCell(3, 4, key=keys[0]),
            eqx.nn.LSTMCell(4, 2, key=keys[1]),
        )
        arrays, static = eqx.partition((gru, lstm), eqx.is_array)
        x = draw(1, 4, 3, 3)

        def loss(p, x):
            gru, lstm = eqx.combine(p, static)

            def run(xs):
                def step(state, x):
                    h = gru(x, state[0])
                    return (h, lstm(h, state[1])), None

                start = (jnp.zeros(4), (jnp.zeros(2), jnp.zeros(2)))
                return jax.lax.scan(step, start, xs)[0][1][0]

            return jnp.mean(jax.vmap(run)(x))

        found = measure(loss, arrays, x, include="weight_")
        reads = {name: [] for name in ("gru in", "gru", "lstm in", "lstm")}
        step_gru, step_lstm = eqx.filter_jit(gru), eqx.filter_jit(lstm)
        for xs in x:
            h, (c, cell) = jnp.zeros(4), (jnp.zeros(2), jnp.zeros(2))
            for row in xs:
                reads["gru in"].append(row)
                reads["gru"].append(h)
                h = step_gru(row, h)
                reads["lstm in"].append(h)
                reads["lstm"].append(c)
                c, cell = step_lstm(h, (c, cell))
        for layer, read in zip(found.values(), reads.values(), strict=True):
            read = np.stack(read).reshape(4, 3, -1)
            # The gates of a GRU are cut out of what is read, not of the weights.
            check(layer, moment(read)[None])


class TestParts:
    x = draw(1, N, 4)

    def test_a_fused_kernel_that_is_cut(self):
        """In three of two sizes, which read different things."""
        w = draw(0, 4, 7)

        def loss(p, x):
            q, k, v = jnp.split(p["kernel"], [2, 5], axis=1)
            return sum(map(jnp.sum, (x @ q, jnp.sin(x) @ k, x @ (0.5 * v))))

        layer = measure(loss, {"kernel": w}, self.x)["kernel"]
        full = moment(self.x)
        check(layer, np.stack([full, moment(np.sin(self.x)), full / 4]))
        matrix = np.zeros((3, 4, 3))
        for i, (a, b) in enumerate(((0, 2), (2, 5), (5, 7))):
            matrix[i, :, : b - a] = w[:, a:b]
        assert (layer.matrix(w) == matrix).all()

    def test_inputs_that_are_cut_have_no_moment_between(self):
        w = draw(0, 4, 3)

        def loss(p, x):
            w = p["kernel"]
            return jnp.sum(x[:, :1] @ w[:1] + jnp.sin(x[:, 1:]) @ w[1:])

        layer = measure(loss, {"kernel": w}, self.x)["kernel"]
        expected = np.zeros((4, 4))
        expected[:1, :1] = moment(self.x[:, :1])
        expected[1:, 1:] = moment(np.sin(self.x[:, 1:]))
        check(layer, expected[None])
        assert (layer.matrix(w) == w[None]).all()

    def test_several_leaves_in_one_product(self):
        a, b, c = draw(0, 4, 2), draw(2, 4, 3), draw(3, 5, 5)

        def loss(p, x):
            w = jnp.concatenate([p["a"]["kernel"], p["b"]["kernel"]], axis=1)
            w = jnp.concatenate([jnp.pad(w, ((1, 0), (0, 0)))[1:], jnp.ones((1, 5))])
            x = jnp.concatenate([x, x[:, :1]], axis=1)
            both = jnp.stack([w, p["c"]["kernel"]])
            return jnp.sum(jax.lax.scan(lambda h, w: (h @ w, None), x, both)[0])

        params = {k: {"kernel": w} for k, w in zip("abc", (a, b, c), strict=True)}
        found = measure(loss, params, self.x)
        x = np.asarray(self.x)
        for name, w in (("a", a), ("b", b)):
            check(found[f"{name}/kernel"], moment(x)[None])
            assert (found[f"{name}/kernel"].matrix(w) == w[None]).all()
        whole = np.concatenate([np.concatenate([a, b], axis=1), np.ones((1, 5))])
        hidden = np.concatenate([x, x[:, :1]], axis=1) @ whole
        check(found["c/kernel"], moment(hidden)[None])

    def test_what_no_product_reads_stands_there_too(self):
        w = draw(0, 2, 4, 3)
        layer = measure(
            lambda p, x: jnp.sum(x @ p["kernel"][1, :, :2]), {"kernel": w}, self.x
        )["kernel"]
        used = np.asarray(layer.moment).any(axis=(1, 2))
        assert used.sum() == 1
        np.testing.assert_allclose(np.asarray(layer.moment)[used][0], moment(self.x))

    def test_scales(self):
        w, side = draw(0, 3, 4, 4), jnp.arange(1.0, 5)

        def loss(p, x):
            w = jnp.swapaxes(side[:, None] * p["kernel"] / 2 + 1, 1, 2)
            return jnp.sum(jax.lax.scan(lambda h, w: (h @ (-w).T, None), x, w)[0])

        layer = measure(loss, {"kernel": w}, self.x)["kernel"]
        x, expected = np.asarray(self.x), []
        for i in range(3):
            expected.append(moment(x * side / 2))
            x = -x @ (side[:, None] * w[i] / 2 + 1)
        check(layer, np.stack(expected), layers=3)

    def test_constants_in_between(self):
        w, c = draw(0, 4, 3), draw(2, 4, 4)
        params = {"kernel": w}
        read = np.asarray(self.x)
        for run, expected in (
            (lambda w, x: x @ (c @ w), moment(read @ c)),
            (lambda w, x: (c @ w).T @ x.T, moment(read @ c)),
            (lambda w, x: x @ (w @ draw(3, 3, 2)), moment(read)),
            (lambda w, x: jnp.sum(x) * jnp.tanh(c @ w), np.asarray(c.T @ c)),
            (lambda w, x: x @ (2 * c @ (3 * w)), 36 * moment(read @ c)),
        ):
            found = measure(
                lambda p, x, f=run: jnp.sum(f(p["kernel"], x)), params, self.x
            )
            check(found["kernel"], expected[None])
            assert (found["kernel"].matrix(w) == w[None]).all()

    def test_latents_in_a_loop_read_their_constant(self):
        w, c = draw(0, 2, 4, 3), draw(2, 5, 4)

        def loss(p, x):
            keys = lambda h, w: (h + jnp.sum(jnp.tanh(c @ w)), None)  # noqa: E731
            return jnp.sum(jax.lax.scan(keys, jnp.sum(x), p["kernel"])[0])

        layer = measure(loss, {"kernel": w}, self.x)["kernel"]
        check(layer, np.stack([np.asarray(c.T @ c)] * 2), layers=2)


class TestKernels:
    def test_attention_kernels(self):
        """[inputs, heads, width] and [heads, width, outputs], in a loop and not."""
        x = draw(0, N, 5, 4)
        params = {
            "q": {"kernel": draw(1, 3, 4, 2, 2)},
            "o": {"kernel": draw(2, 3, 2, 2, 4)},
        }

        def block(h, kernels):
            q, o = kernels
            heads = jnp.tanh(jnp.einsum("bti,ihw->bthw", h, q))
            return jnp.einsum("bthw,hwo->bto", heads, o), heads

        def loss(p, x):
            kernels = (p["q"]["kernel"], p["o"]["kernel"])
            return jnp.sum(jax.lax.scan(block, x, kernels)[0])

        found = measure(loss, params, x)
        reads, h = {"q": [], "o": []}, x
        for i in range(3):
            reads["q"].append(moment(h))
            h, heads = block(h, (params["q"]["kernel"][i], params["o"]["kernel"][i]))
            reads["o"].append(moment(heads.reshape(N, 5, 4)))
        for name, shape in (("q", (3, 4, 4)), ("o", (3, 4, 4))):
            layer, w = found[f"{name}/kernel"], params[name]["kernel"]
            check(layer, np.stack(reads[name]), layers=3)
            assert (layer.matrix(w) == w.reshape(shape)).all()

    def test_experts_within_layers(self):
        """The stack of layers is not the first axis, nor that of experts the next."""
        w, x = draw(0, 3, 4, 2, 4), draw(1, N, 3, 4)  # [experts, in, layers, out]

        def block(h, w):
            return jnp.tanh(jnp.einsum("bei,eio->beo", h, w)), None

        def loss(p, x):
            return jnp.sum(jax.lax.scan(block, x, jnp.moveaxis(p["kernel"], 2, 0))[0])

        layer = measure(loss, {"kernel": w}, x)["kernel"]
        hidden = block(x, w[:, :, 0])[0]
        expected = [moment(h[:, e]) for e in range(3) for h in (x, hidden)]
        check(layer, np.stack(expected), layers=6)
        matrices = w.transpose(0, 2, 1, 3).reshape(6, 4, 4)
        assert (layer.matrix(w) == matrices).all()

    def test_every_expert_may_read_the_same(self):
        w, x = draw(0, 3, 4, 2), draw(1, N, 4)
        each = lambda p, x: jnp.einsum("bi,eio->beo", x, p["kernel"])  # noqa: E731
        layer = measure(lambda p, x: jnp.sum(each(p, x)), {"kernel": w}, x)["kernel"]
        check(layer, moment(x)[None])

    @pytest.mark.parametrize("groups", [1, 2])
    def test_convolutions_in_a_loop(self, groups):
        """Those of a loop are those of as many leaves, transposed ones too."""
        w, x = draw(0, 2, 3, 3, 4 // groups, 4), draw(1, N, 5, 5, 4)

        def convolve(h, w):
            dimensions = ("NHWC", "HWIO", "NHWC")
            if groups == 1:
                return jnp.tanh(
                    jax.lax.conv_transpose(h, w, (2, 2), "SAME",
                                           dimension_numbers=dimensions)
                )[:, ::2, ::2]  # fmt: skip
            return jnp.tanh(
                jax.lax.conv_general_dilated(
                    h, w, (1, 1), "SAME", feature_group_count=groups,
                    dimension_numbers=dimensions,
                )
            )  # fmt: skip

        def scanned(p, x):
            step = lambda h, w: (convolve(h, w), None)  # noqa: E731
            return jnp.sum(jax.lax.scan(step, x, p["kernel"])[0])

        def apart(p, x):
            return jnp.sum(convolve(convolve(x, p["a"]["kernel"]), p["b"]["kernel"]))

        one = measure(scanned, {"kernel": w}, x)["kernel"]
        params = {"a": {"kernel": w[0]}, "b": {"kernel": w[1]}}
        two = measure(apart, params, x)
        check(one, jnp.concatenate([two[f"{k}/kernel"].moment for k in "ab"]), layers=2)
        matrices = [two[f"{k}/kernel"].matrix(params[k]["kernel"]) for k in "ab"]
        assert (one.matrix(w) == jnp.concatenate(matrices)).all()


class Block(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        attention = linen.MultiHeadDotProductAttention(num_heads=2)
        x = x + attention(linen.LayerNorm()(x))
        return x + linen.Dense(4)(
            linen.gelu(linen.Dense(8)(linen.LayerNorm()(x)))
        ), None


class Scanned(linen.Module):
    @linen.compact
    def __call__(self, x):
        blocks = linen.scan(
            linen.remat(Block), length=2,
            variable_axes={"params": 0}, split_rngs={"params": True},
        )  # fmt: skip
        return blocks(name="blocks")(x, None)[0]


class Unrolled(linen.Module):
    @linen.compact
    def __call__(self, x):
        for i in range(2):
            x, _ = Block(name=f"block{i}")(x, None)
        return x


def test_a_scanned_transformer_is_the_unrolled_one():
    x = draw(0, N, 5, 4).astype(np.float32)
    params = Scanned().init(jax.random.key(1), x)["params"]
    apart = {
        f"block{i}": jax.tree.map(lambda w, i=i: w[i], params["blocks"])
        for i in range(2)
    }

    def loss(network):
        return lambda p, x: jnp.mean(network.apply({"params": p}, x) ** 2)

    rules = {"include": "kernel"}
    one = measure(loss(Scanned()), params, x, **rules)
    several = measure(loss(Unrolled()), apart, x, **rules)
    assert len(one) == 6
    for path, layer in one.items():
        assert layer.layers == 2
        each = [several[path.replace("blocks", f"block{i}")] for i in range(2)]
        np.testing.assert_allclose(
            layer.moment,
            jnp.concatenate([e.moment for e in each]),
            rtol=1e-6,
            atol=1e-6,
        )
