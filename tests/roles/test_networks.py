"""What each leaf of many networks does, told by programs and names, and by hand."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from networks.table import NETWORKS

import swapjax
from swapjax.core import trees
from swapjax.roles.names import name_roles
from swapjax.roles.program import trace_roles
from swapjax.sparsity.stacking import Stacking

STACKED = [name for name, row in NETWORKS.items() if row.stacks]
LOOPED = [name for name, row in NETWORKS.items() if row.loop]


def by_path(params, roles):
    return dict(zip(trees.paths(params), roles, strict=True))


def pixels_of(roles):
    """What equality of roles leaves out: which inputs are pixels."""
    return {path: role.pixels for path, role in roles.items() if role.pixels}


def shapes_of(params):
    return tuple(tuple(leaf.shape) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_program_tells_roles(name):
    row = NETWORKS[name]
    params, loss_fn, data = row.make()
    found = by_path(params, trace_roles(loss_fn, params, data))
    assert found == {**row.roles, **row.shown}
    assert pixels_of(found) == pixels_of(row.roles)
    # Shapes are all that is looked at, of any number of examples.
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), data)
    assert by_path(params, trace_roles(loss_fn, like, one)) == found


@pytest.mark.parametrize("name", STACKED)
def test_the_program_tells_roles_of_leaves_that_are_stacked_first(name):
    row = NETWORKS[name]
    params, loss_fn, data = row.unstacked()
    found = by_path(params, trace_roles(loss_fn, params, data))
    assert found == row.separate_roles()
    assert pixels_of(found) == pixels_of(row.separate_roles())


@pytest.mark.parametrize("name", LOOPED)
def test_the_network_with_leaves_of_their_own_is_the_same(name):
    row = NETWORKS[name]
    params, loss_fn, data = row.make()
    separate = row.split(params)
    found = by_path(separate, trace_roles(row.loop, separate, data))
    assert found == row.separate_roles()
    if name in ("plain index", "plain fori_loop"):
        return  # whose loop is that of "plain scan"
    few = jax.tree.map(lambda x: x[:2], data)
    np.testing.assert_allclose(
        jax.jit(row.loop)(separate, few), jax.jit(loss_fn)(params, few), rtol=1e-5
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_names_tell_roles(name):
    row = NETWORKS[name]
    params = row.make().params
    found = by_path(params, name_roles(trees.paths(params), shapes_of(params)))
    for path, role in found.items():
        if row.named is None and role.kind == "unknown":
            continue
        # No name tells groups.
        wanted = (row.named or {}).get(path, row.roles[path])
        assert role.pixels == wanted.pixels, path
        assert (path, dataclasses.replace(role, groups=1)) == (
            path,
            dataclasses.replace(wanted, groups=1),
        )


@pytest.mark.parametrize("name", STACKED)
def test_layers_have_the_numbers_of_leaves_of_their_own(name):
    row = NETWORKS[name]
    params = row.make().params
    shapes = dict(zip(trees.paths(params), shapes_of(params), strict=True))
    paths = row.matrices
    sizes = [shapes[path] for path in paths]
    stacking = Stacking.of(paths, sizes, [row.roles[path] for path in paths])
    assert stacking.names(paths, sizes) == tuple(row.layers())


def test_a_leaf_with_two_roles_is_named_with_both():
    params, loss_fn, data = NETWORKS["gpt, tied"].make()
    left_out = dict(swapjax.plan(params, 0.5, loss_fn=loss_fn, batch=data).left_out)
    both = r"is looked up by gather, and multiplied with axes \(output, input\)"
    assert re.fullmatch(both, left_out["wte.weight"])

    params, loss_fn, data = NETWORKS["autoencoder, tied"].make()
    both = r"kernel, which .*axes \(input, output\), and .*axes \(output, input\)"
    with pytest.raises(ValueError, match=both):
        swapjax.plan(params, 0.5, loss_fn=loss_fn, batch=data)
