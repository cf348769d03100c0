"""Which output heads a plan leaves out."""

import warnings

import jax
import jax.numpy as jnp
import pytest

import swapjax

WORDS, WIDTH = 16, 4


def _params(classes=WORDS):
    return {
        "embed": {"embedding": jnp.ones((WORDS, WIDTH))},
        "dense": {"kernel": jnp.ones((WIDTH, WIDTH))},
        "head": {"kernel": jnp.ones((WIDTH, classes))},
    }


def _loss(params, tokens):
    x = jnp.tanh(params["embed"]["embedding"][tokens] @ params["dense"]["kernel"])
    return -jnp.mean(jax.nn.log_softmax(x @ params["head"]["kernel"])[..., 0])


TOLD = {"loss_fn": _loss, "batch": jax.ShapeDtypeStruct((2, 3), "int32")}
BOTH = pytest.mark.parametrize("told", [TOLD, {}], ids=["program", "names"])


@BOTH
def test_the_head_of_a_language_model_is_left_out(told):
    plan = swapjax.plan(_params(), 0.5, **told)
    assert plan.paths == ("dense/kernel",)
    why = dict(plan.left_out)["head/kernel"]
    assert why.startswith("is an output head over the rows of embed/embedding; outp")
    assert "left out, an output head over the rows of embed/embedding;" in str(plan)


@BOTH
def test_that_of_a_classifier_is_pruned(told):
    assert swapjax.plan(_params(3), 0.5, **told).paths == (
        *("dense/kernel", "head/kernel"),
    )
    plan = swapjax.plan(_params(3), 0.5, output_heads=False, **told)
    assert plan.paths == ("dense/kernel",)
    assert dict(plan.left_out)["head/kernel"] == "is an output head"


@BOTH
def test_it_is_pruned_where_someone_says_so(told):
    both = ("dense/kernel", "head/kernel")
    assert swapjax.plan(_params(), 0.5, output_heads=True, **told).paths == both
    assert swapjax.plan(_params(), 0.5, overrides={"head": 0.6}, **told).paths == both
    shares = {"dense/kernel": 0.5, "head/kernel": 0.5}
    assert swapjax.plan(_params(), 0.5, allocation=shares, **told).paths == both
    assert swapjax.plan(_params(), 0.5, include="kernel", **told).paths == both
    with pytest.raises(ValueError, match="output_heads: include names the leaves"):
        swapjax.plan(_params(), 0.5, include="kernel", output_heads=False, **told)


@BOTH
def test_nothing_else_to_prune(told):
    plan = swapjax.plan(_params(), 0.5, exclude="dense", **told)
    assert plan.paths == ("head/kernel",)
    with pytest.raises(ValueError, match="output_heads: False leaves nothing to prune"):
        swapjax.plan(_params(), 0.5, exclude="dense", output_heads=False, **told)


def test_pruning_does_not_warn_of_it():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks = swapjax.magnitude_masks(_params(), 0.5)
    assert masks["head"]["kernel"].all()
    with pytest.raises(ValueError, match=r"overrides: '\[' is not a regular"):
        swapjax.plan(_params(), 0.5, overrides={"[": 0.5})
