"""The limit on the threads of BLAS: in force inside and lifted after."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg  # noqa: F401, the BLAS that is looked at
from threadpoolctl import ThreadpoolController, threadpool_limits

import swapjax
from swapjax.core import threads
from swapjax.core.threads import one_blas_thread
from swapjax.pruning.method import Method

BLAS = ThreadpoolController().select(user_api="blas")


def counts():
    return {library["num_threads"] for library in BLAS.info()}


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    with threadpool_limits(2, user_api="blas"):
        if counts() != {2}:
            pytest.skip("a BLAS without threads")
        yield


def test_limits_and_restores():
    with one_blas_thread():
        assert counts() == {1}
        with one_blas_thread(jnp.ones(2)):
            assert counts() == {1}
        assert counts() == {1}
    assert counts() == {2}


def test_an_error_lifts_it():
    with pytest.raises(ZeroDivisionError), one_blas_thread():
        raise ZeroDivisionError
    assert counts() == {2}


def test_limits_that_overlap_in_threads_leave_what_was():
    entered, leave = threading.Event(), threading.Event()

    def work():
        with one_blas_thread():
            entered.set()
            leave.wait(60)

    other = threading.Thread(target=work)
    with one_blas_thread():
        other.start()
        assert entered.wait(60)
    leave.set()
    other.join()
    assert counts() == {2}
    with one_blas_thread():
        assert counts() == {1}


def test_leaves_what_the_user_chose(monkeypatch):
    monkeypatch.setenv(threads.VARIABLE, "2")
    with one_blas_thread():
        assert counts() == {2}


def test_leaves_other_devices_alone(monkeypatch):
    class Elsewhere:
        platform = "gpu"

    here = jnp.ones(2)
    monkeypatch.setattr(type(here), "devices", lambda self: {Elsewhere()})
    with one_blas_thread({"w": here}):
        assert counts() == {2}


def look(fail=False):
    """A method that tells the threads of BLAS while it runs."""

    def told():
        if fail:
            raise ZeroDivisionError
        return np.float32(max(counts()))

    def solve(problem, budget):
        solution = swapjax.magnitude().solve(problem, budget)
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        found = jax.pure_callback(told, shape)
        return solution._replace(details={"damping": found})

    return Method(name="look", settings=(("fail", fail),), solve=solve)


def prune(method):
    return swapjax.prune(
        lambda w, x: jnp.mean((x @ w) ** 2), jnp.ones((4, 3)), jnp.ones((5, 4)),
        sparsity=0.5, method=method, samples=5, key=jax.random.key(0),
    )  # fmt: skip


def test_a_stage_has_one_thread():
    assert prune(look()).history[-1].details["damping"] == 1
    assert counts() == {2}


def test_a_stage_that_fails_lifts_it():
    with pytest.raises(jax.errors.JaxRuntimeError, match="ZeroDivision"):
        prune(look(fail=True))
    assert counts() == {2}
