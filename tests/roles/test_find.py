"""Roles from a program, from names and by hand, as plans and prune find them."""

import jax
import jax.numpy as jnp
import pytest

import swapjax
from swapjax.roles.find import find_roles
from swapjax.roles.role import matrix

KEY = jax.random.key(0)
PARAMS = {"mixer": {"kernel": jax.random.normal(KEY, (4, 8, 16))}}
X = jax.random.normal(KEY, (20, 4, 8))
TIED = {"table": jnp.ones((8, 4)), "proj": jnp.ones((4, 4))}
TOKENS = jnp.ones((3, 5), int)
WRONG = ("stack", "input", "output")


def loss(params, x):
    return jnp.mean(jnp.einsum("bij,ijk->bk", x, params["mixer"]["kernel"]) ** 2)


def tied(params, tokens):
    hidden = params["table"][tokens] @ params["proj"]
    return jnp.mean(jax.nn.log_softmax(hidden @ params["table"].T)[..., 0])


def test_the_program_is_believed_before_names():
    (named,) = find_roles(PARAMS)
    (traced,) = find_roles(PARAMS, loss, X)
    assert named == matrix("stack", "input", "output")
    assert traced == matrix("input", "input", "output")


def test_axes_are_believed_before_names():
    words = ("input", "output", "output")
    assert find_roles(PARAMS, axes={"mixer": words}) == (matrix(*words),)


def test_axes_may_tell_what_the_program_leaves_open():
    roles = find_roles(TIED, tied, TOKENS, axes={"table": ("output", "input")})
    assert roles == (matrix("input", "output"), matrix("output", "input"))


def test_a_loss_in_which_nothing_meets_data_leaves_it_to_names():
    def penalty(params, x):
        return jnp.sum(params["mixer"]["kernel"] ** 2) + jnp.sum(x)

    assert find_roles(PARAMS, penalty, X) == find_roles(PARAMS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axes": {"mixer": ("in", "input", "output")}}, "of mixer/kernel: .* 'in'"),
        ({"axes": {"mixer": ("input", "output")}}, "axes: mixer/kernel has 3 axes"),
        ({"axes": {"mixer": "input"}}, "axes: mixer/kernel has 3 axes"),
        ({"axes": {"fc": ("input", "output")}}, "axes: 'fc' matches no leaf"),
        ({"axes": {"(": ("input",)}}, r"axes: '\(' is not a regular expression"),
        ({"axes": {"mix": ("input",) * 3, "k": ("input",) * 3}}, "axes: two of the r"),
        ({"loss_fn": loss}, "batch: loss_fn needs it"),
        ({"batch": X}, "loss_fn: batch needs it"),
        (
            {"loss_fn": lambda p, x: float(x.sum()) * p["mixer"]["kernel"].sum(),
             "batch": X},
            "loss_fn: must be traceable",
        ),
        (
            {"loss_fn": loss, "batch": X, "axes": {"mixer": WRONG}},
            r"axes: mixer/kernel has the axes \('input', 'input', 'output'\) in",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_an_error_that_names_it(options, message):
    with pytest.raises(ValueError, match=message):
        swapjax.plan(PARAMS, 0.5, **options)


def test_a_leaf_with_two_roles_is_left_out_or_asked_about():
    options = {"loss_fn": tied, "batch": TOKENS}
    target = swapjax.plan(TIED, 0.5, **options)
    assert target.paths == ("proj",)
    both = "is looked up by gather, and multiplied with axes (output, input)"
    assert target.left_out == (("table", both),)
    with pytest.raises(ValueError, match=r"include: table is looked up .* axes="):
        swapjax.plan(TIED, 0.5, include=".", **options)


class TestPrune:
    def prune(self, **options):
        return swapjax.prune(
            loss, PARAMS, X, samples=10, key=KEY, method=swapjax.magnitude(), **options
        )

    def test_it_finds_roles_by_itself(self):
        assert self.prune(sparsity=0.5).history[0].layers == {"mixer/kernel": 256}
        batches = iter([X[:15], X[15:]])
        pruned = swapjax.prune(
            loss, PARAMS, batches, sparsity=0.5, samples=20, key=KEY,
            method=swapjax.snip(),
        )  # fmt: skip
        assert pruned.history[0].layers == {"mixer/kernel": 256}

    def test_a_plan_that_names_misled_is_refused(self):
        with pytest.raises(ValueError, match=r"plan: takes the axes of mixer/kernel"):
            self.prune(plan=swapjax.plan(PARAMS, 0.5))
        by_hand = {"mixer": ("input", "input", "output")}
        pruned = self.prune(plan=swapjax.plan(PARAMS, 0.5, axes=by_hand))
        assert pruned.history[0].kept == 256

    def test_a_pattern_along_misnamed_inputs_is_refused(self):
        params = {"proj": {"weight": jax.random.normal(KEY, (8, 8))}}  # as PyTorch's

        def loss(params, x):
            return jnp.mean((x @ params["proj"]["weight"]) ** 2)

        options = {"samples": 10, "key": KEY, "method": swapjax.magnitude()}
        x = X[:, 0]
        wrong = swapjax.plan(params, pattern=swapjax.NM(2, 4))
        with pytest.raises(ValueError, match="make the plan with loss_fn="):
            swapjax.prune(loss, params, x, plan=wrong, **options)
        target = swapjax.plan(params, pattern=swapjax.NM(2, 4), loss_fn=loss, batch=x)
        masks = swapjax.prune(loss, params, x, plan=target, **options).masks
        groups = masks["proj"]["weight"].reshape(2, 4, 8).sum(axis=1)
        assert (groups == 2).all()
        # Without a pattern it does not matter which are inputs.
        free = swapjax.plan(params, 0.5)
        assert (
            swapjax.prune(loss, params, x, plan=free, **options).history[0].kept == 32
        )
