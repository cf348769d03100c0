"""Networks of genotypes, as the laboratory takes them."""

import jax
import jax.numpy as jnp
import pytest

import swapjax
from swapjax.experiments import models

CELL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|skip_connect~0|none~1|none~2|"
NAME = f"nb201(2,1):{CELL}"


@pytest.fixture(scope="module")
def model():
    return models.create(NAME, (8, 8), 10)


def test_a_network_is_made_by_the_name_of_its_genotype(model):
    assert model.name == NAME
    assert set(model.params["stage1"]["cell0"]) == {"0-1"}
    assert model.params["stem"]["kernel"].shape == (3, 3, 1, 2)
    batch = jnp.ones((4, 8, 8)), jnp.zeros(4, int)
    for loss in model.loss_fn, model.training_loss:
        assert jax.eval_shape(loss, model.params, batch).shape == ()
    assert jax.eval_shape(model.apply, model.params, batch[0]).shape == (4, 10)
    found = jax.eval_shape(model.statistics, model.params, batch[0])
    assert jax.tree.structure(found) == jax.tree.structure(model.params)
    chain = "+".join(f"|identity~{i}|" for i in range(8))
    other = models.create(f"mobilenet(2):{chain}", (8, 8, 3), 5)
    assert other.params["fc"]["kernel"].shape == (128, 5)


def test_kernels_are_pruned_and_batch_norm_is_not(model):
    plan = swapjax.plan(model.params, sparsity=0.5)
    paths = set(plan.layout.paths)
    assert "stage1/cell0/0-1/nor_conv_3x3/kernel" in paths
    assert all(path.endswith("/kernel") for path in paths)


@pytest.mark.parametrize(
    ("name", "shape", "match"),
    [
        ("nb201:|conv~0|", (8, 8), "model: genotype: operations of nb201"),
        ("nb201:cnn", (8, 8), "model: genotype must read"),
        (f"nb201:{CELL}", (9, 9), "model: shape must be"),
        (f"nb201:{CELL}", (64,), "model: images must be of"),
        (f"nb201(0,1):{CELL}", (8, 8), "model: channels must be 1 or more"),
        ("mobilenet(2,2):", (8, 8), "a mobilenet has channels alone"),
        (f"nb102:{CELL}", (8, 8), "model must be one of .*, a space and a genotype"),
    ],
)
def test_what_is_no_network_is_told(name, shape, match):
    with pytest.raises(ValueError, match=match):
        models.create(name, shape, 10)


def test_there_is_no_head_of_cosines():
    with pytest.raises(ValueError, match="head must be 'linear' for nb201"):
        models.create(NAME, (8, 8), 10, head="cosines")
