"""Sites found in a program are those that one would put there by hand."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from networks.table import NETWORKS

from swapjax import backward
from swapjax.backward import placement
from swapjax.backward.address import equation_at, trace
from swapjax.backward.placement import find_sites
from swapjax.core import trees
from swapjax.experiments.models import CNN, MLP, VGG16, LeNet5, MobileNetV1
from swapjax.experiments.models.resnet import resnet20

IMAGE = (32, 32, 3)
RESNET = [
    f"layer{group}/{block}/{conv}/kernel"
    for group in (1, 2, 3)
    for block in range(3)
    for conv in ("conv1", "conv2", "downsample/0")
    if conv != "downsample/0" or (group > 1 and block == 0)
]
BY_HAND = {
    "mlp": (functools.partial(MLP, (3072, 8, 8, 10)), ["fc2/kernel:input"]),
    "cnn": (
        functools.partial(CNN, IMAGE, 10),
        ["conv2/kernel:input", "fc1/kernel:input"],
    ),
    "lenet5": (
        functools.partial(LeNet5, IMAGE, 10),
        ["conv2/kernel:input", "fc1/kernel:input", "fc2/kernel:input"],
    ),
    "vgg16": (
        functools.partial(VGG16, 3, 10),
        [
            *(f"features/{i}/kernel:input" for i in (2, 5, 7, 10, 12, 14, 17, 19, 21)),
            *(f"features/{i}/kernel:input" for i in (24, 26, 28)),
            "classifier/0/kernel:input",
            "classifier/3/kernel:input",
        ],
    ),
    "resnet20": (functools.partial(resnet20, 3, 10), ["conv1/kernel", *RESNET]),
    "mobilenet": (
        functools.partial(MobileNetV1, 3, 10),
        [
            "conv1/kernel",
            *(f"blocks/{i}/conv{j}/kernel" for i in range(13) for j in (1, 2)),
        ],
    ),
}
# Inside a block nothing is left out; what the sum on the skip path reads is at outputs.
FLAX = [*(f"attention/{name}/kernel" for name in ("query", "key", "value", "out"))]
FLAX += ["down/kernel:input", "down/kernel"]
PLAIN = ["qkv", "out", "down:input", "down"]


def sites_of(loss_fn, params, batch):
    """Sites, each of which lies at a product of its shape."""
    program = trace(loss_fn, params, batch)
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    sites = placement.sites_of(program, trees.paths(params), shapes)
    for site in sites:
        equation = equation_at(program.jaxpr, site.address)
        assert equation.primitive.name in ("dot_general", "conv_general_dilated")
        at_input = site.kind == "input"
        places = equation.invars if at_input else equation.outvars
        aval = places[site.operand if at_input else 0].aval
        assert (site.shape, site.dtype) == (aval.shape, aval.dtype)
        assert site.name.endswith(":input") == at_input
    return sites


def for_images(make, *, training):
    """Loss and params of a network, and a batch of images, as shapes."""
    network = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    graph, state = nnx.split(network)

    def loss_fn(params, batch):
        network = nnx.merge(graph, params)
        network.set_attributes(
            nnx.BatchNorm, use_running_average=not training, raise_if_not_found=False
        )
        images, labels = batch
        logits = network(images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    shape = jax.ShapeDtypeStruct
    batch = shape((2, *IMAGE), jnp.float32), shape((2,), jnp.int32)
    return loss_fn, nnx.to_pure_dict(state), batch


@pytest.mark.parametrize("name", BY_HAND)
def test_networks_for_images(name):
    make, expected = BY_HAND[name]
    sites = sites_of(*for_images(make, training=True))
    assert [site.name for site in sites] == expected


def test_running_statistics_are_no_norm():
    make, _ = BY_HAND["resnet20"]
    sites = sites_of(*for_images(make, training=False))
    # What ReLU hands on directly; the others read sums of the skip path.
    blocks = [f"layer{group}/{i}" for group in (1, 2, 3) for i in range(3)]
    expected = [f"{block}/conv2/kernel:input" for block in blocks]
    assert [site.name for site in sites] == ["layer1/0/conv1/kernel:input", *expected]


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("nnx list", FLAX),
        ("linen list", FLAX),
        ("plain list", PLAIN),
        ("nnx scan", FLAX),
        ("linen scan, axis 1", FLAX),
        ("plain scan", PLAIN),  # within `jax.checkpoint`
    ],
)
def test_transformers(name, block):
    params, loss_fn, data = NETWORKS[name].make()
    sites = sites_of(loss_fn, params, data)
    if "scan" in name:
        assert [site.name for site in sites] == [f"blocks/{path}" for path in block]
        assert {site.levels for site in sites} == {(2,)}
    else:
        lead = "block" if name == "linen list" else "blocks/"
        expected = [f"{lead}{i}/{path}" for i in (0, 1) for path in block]
        assert [site.name for site in sites] == expected


def norm(x, axes=0, scale=1.0):
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return scale * (x - mean) / jnp.sqrt(var + 1e-6)


def rms(x):
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True))


def dropout(x):
    kept = jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
    return jnp.where(kept, 2 * x, 0)


def halved(x):
    return x.reshape(x.shape[0], -1, 2).mean(-1).repeat(2, axis=1)


@jax.custom_vjp
def own(x, kernel):
    return x @ kernel


own.defvjp(lambda x, k: (x @ k, (x, k)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))
relu, gelu, silu = jax.nn.relu, jax.nn.gelu, jax.nn.silu
# Losses of kernels a, b, c [4, 4], a vector v [4] and x [2, 4], and what is found.
SMALL = {
    "activations": (lambda p, x: silu(gelu(x @ p.a) @ p.b) @ p.c, "b:input"),
    "where": (lambda p, x: (h := x @ p.a, jnp.where(h > 0, h, 0))[1] @ p.b @ p.c,
              "b:input b"),
    "cumulative": (lambda p, x: jnp.cumsum(x @ p.a, axis=1) @ p.b @ p.c, "a b"),
    "biases": (lambda p, x: relu(p.v * (x @ p.a) + p.v) @ p.b @ p.c, "b:input b"),
    "pooling": (lambda p, x: halved(relu(x @ p.a)) @ p.b @ p.c, "b:input b"),
    "constants": (lambda p, x: relu(x @ p.a) @ jnp.ones((4, 4)) @ p.b @ p.c,
                  "b:input b"),
    "dropout": (lambda p, x: dropout(relu(x @ p.a)) @ p.b @ p.c, "b:input b"),
    "a gate": (lambda p, x: (silu(x @ p.a) * (x @ p.b)) @ p.c @ p.a, "c:input c"),
    "batch norm": (lambda p, x: relu(norm(x @ p.a)) @ p.b @ p.c, "a b"),
    "layer norm": (lambda p, x: relu(norm(x @ p.a, 1, p.v)) @ p.b @ p.c, "a b"),
    "rms norm": (lambda p, x: rms(x @ p.a) @ p.b, "a"),
    "norm after": (lambda p, x: norm(relu(x @ p.a)) @ p.b @ p.c, "b"),
    "skip before": (lambda p, x: relu((h := relu(x @ p.a)) + h @ p.b) @ p.c,
                    "b:input"),
    "skip after": (lambda p, x: ((h := relu(x @ p.a)) + relu(h @ p.b)) @ p.c,
                   "b:input"),
    "skip within": (lambda p, x: ((h := relu(x @ p.a)) + relu(h @ p.b)) @ p.c @ p.a,
                    "b:input c"),
    "branches summed": (lambda p, x: relu(x @ p.a + p.v + x @ p.b) @ p.c @ p.a,
                        "c:input c"),
    "recurrent": (lambda p, x: jax.lax.scan(
                      lambda h, x: (h := jnp.tanh(x @ p.a + h @ p.b), h), x[0], x
                  )[1] @ p.c, "b:input"),
    "mixture": (lambda p, x: jnp.einsum("be,bf->ef", x, relu(x @ p.a)) @ p.b, "a"),
    "norm and skip": (lambda p, x: ((h := relu(x @ p.a)) + norm(h @ p.b)) @ p.c,
                      "b:input b"),
    "beside": (lambda p, x: relu(jnp.concatenate([x @ p.a, x @ p.b])) @ p.c @ p.a,
               "c:input c"),
    "read twice": (lambda p, x: ((h := relu(x @ p.a)) @ p.b * (h @ p.c)) @ p.c,
                   "b:input c:input"),
    "stopped": (lambda p, x: jax.lax.stop_gradient(norm(h := x @ p.a)) + relu(h) @ p.b,
                ""),
    "a penalty": (lambda p, x: relu(h := x @ p.a) @ p.b @ p.c + jnp.sum(h),
                  "a b"),
    "own derivative": (lambda p, x: own(norm(x @ p.a), p.b) @ p.c, "a"),
    "low rank": (lambda p, x: x @ (p.a @ p.b) @ p.c, "a"),
    "remat": (lambda p, x: jax.checkpoint(relu)(x @ p.a) @ p.b @ p.c, "b:input b"),
    "called twice": (lambda p, x: (f := jax.jit(lambda x: relu(x @ p.a)), f(f(x)))[1]
                     @ p.b, "a#2:input"),
    "branches": (lambda p, x: jax.lax.cond(x[0, 0] > 0, lambda: norm(x @ p.a),
                 lambda: relu(x @ p.b)) @ p.c, "a"),
    "one product": (lambda p, x: norm(x @ p.a), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_parts_of_networks(name):
    network, expected = SMALL[name]
    shape = jax.ShapeDtypeStruct
    params = {k: shape((4, 4) if k != "v" else (4,), jnp.float32) for k in "abcv"}

    def loss_fn(params, x):
        named = type("", (), params)
        return jnp.mean(network(named, x))

    sites = sites_of(loss_fn, params, shape((2, 4), jnp.float32))
    assert " ".join(site.name for site in sites) == expected


def test_a_loss_without_a_product():
    params = {"scale": jnp.zeros(3), "table": jnp.zeros((3, 2))}
    for loss_fn in (
        lambda p, x: jnp.sum(p["scale"] * x),
        lambda p, x: jnp.sum(p["scale"] @ p["table"]) + jnp.sum(x),
        lambda p, x: jnp.sum(own(x, p["table"])),
    ):
        with pytest.raises(ValueError, match="a loss without such a product"):
            find_sites(loss_fn, params, jnp.zeros((2, 3)))


def test_data_that_the_loss_brings_itself():
    x = jnp.ones((2, 4))
    params = {"a": jnp.zeros((4, 4)), "b": jnp.zeros((4, 4))}
    loss_fn = lambda p, _: jnp.mean(norm(x @ p["a"]) @ p["b"])  # noqa: E731
    assert [site.name for site in find_sites(loss_fn, params, ())] == ["a"]


def with_norm(params, x, mark):
    h = jax.nn.relu(norm(mark(x @ params["a"], "first")))
    return norm(mark(h @ params["b"], "second"), 1) @ params["c"]


def with_relu(params, x, mark):
    h = mark(jax.nn.relu(x @ params["a"]), "first")
    h = mark(jax.nn.relu(h @ params["b"]), "second")
    return mark(h @ params["c"], "third") @ params["a"]


@pytest.mark.parametrize("network", [with_norm, with_relu])
def test_marked_by_hand_gradients_are_the_same(network):
    keys = jax.random.split(jax.random.key(0), 5)
    params = {k: jax.random.normal(keys[i], (8, 8)) for i, k in enumerate("abc")}
    x = jax.random.normal(keys[3], (16, 8))
    found = []
    for sites, mark in (("auto", lambda x, name: x), ("marked", backward.site)):
        loss = lambda p, x, mark=mark: jnp.mean(network(p, x, mark) ** 2)  # noqa: E731
        pruned = backward.prune_backward(loss, threshold="exact", sites=sites)
        state = pruned.init(params, x)
        found.append(jax.jit(pruned.value_and_grad)(params, state, x, keys[4]))
    (auto, *_), (marked, *_) = found
    exact = jax.grad(lambda p: jnp.mean(network(p, x, lambda x, _: x) ** 2))(params)
    for name in params:
        assert jnp.array_equal(auto[name], marked[name])
    assert not jnp.allclose(auto["a"], exact["a"])
