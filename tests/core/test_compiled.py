"""Compiled programs are shared by equal functions and gone with them."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import optax
import pytest

import swapjax
from swapjax.core.compiled import Compiled, Reference
from swapjax.gradients.build import per_example_gradients
from swapjax.pruning import by_score

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (24, 6))


class Model:
    """Something with a method for a loss, and something large."""

    def __init__(self):
        self.large = jnp.arange(7.0)

    def loss(self, params, x):
        return jnp.mean(jnp.square(x @ params["kernel"] - self.large[1]))

    __call__ = loss


def params():
    return {"kernel": jax.random.normal(KEY, (6, 3))}


def prune(loss_fn, **options):
    options = {"method": swapjax.magnitude(), **options}
    return swapjax.prune(
        loss_fn, params(), X, sparsity=0.5, samples=12, key=KEY, **options
    )


def compiled(work):
    """How many programs a function compiles."""
    found = []
    listen = lambda event, seconds, **_: found.append(event)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    work()
    jax.monitoring.clear_event_listeners()
    return found.count("/jax/core/compile/backend_compile_duration")


def test_references_tell_functions_by_identity_and_values_by_value():
    first, second = Model(), Model()
    assert Reference(first.loss) == Reference(first.loss)
    assert Reference(first.loss) != Reference(second.loss)
    assert Reference(first.loss) != Reference(first.__init__)
    assert Reference(swapjax.GradientNoise(1, 0.5)) == Reference(
        swapjax.GradientNoise(1, 0.5)
    )
    assert Reference(None) == Reference(None)
    assert Reference(1) != Reference(2)
    assert Reference(first.loss)() == first.loss
    gone = Reference(lambda: 0)
    gc.collect()
    assert gone() is None
    assert gone not in (Reference(None), Reference(lambda: 0))


def test_the_programs_used_last_are_kept():
    traced = []

    @Compiled
    def double(factor, x):
        traced.append(factor)
        return factor * x

    for factor in [*range(33), 32, 0]:
        assert double((factor,), jnp.ones(())) == factor
    assert traced == [*range(33), 0]


def test_few_programs_that_differ_in_values_alone_are_kept():
    traced, functions = [], [lambda: 1, lambda: 2]

    @Compiled
    def double(name, function, factor, x):
        traced.append(factor)
        return factor * x

    def call(name, function, factors):
        traced.clear()
        for factor in factors:
            double((name, function, factor), jnp.ones(()))
        return list(traced)

    assert call("mine", functions[0], range(5)) == [*range(5)]
    assert call("mine", functions[1], range(4)) == [*range(4)]
    assert call("other", functions[1], range(4)) == [*range(4)]
    assert call("mine", functions[0], (4, 3, 2, 1, 0)) == [0]
    assert call("mine", functions[1], range(4)) == []


def _closure(model):
    return lambda p, x: model.loss(p, x)


@pytest.mark.parametrize(
    "make",
    [
        _closure,
        lambda model: model.loss,
        lambda model: model,
        lambda model: jax.jit(lambda p, x: model.loss(p, x)),
        lambda model: functools.partial(lambda p, x, m: m.loss(p, x), m=model),
    ],
    ids=["closure", "method", "object", "jitted", "partial"],
)
def test_a_run_keeps_nothing_of_its_loss_alive(make):
    def once():
        model = Model()
        prune(make(model), method=swapjax.obd(), storage="matrix-free")
        return weakref.ref(model)

    model = once()
    gc.collect()
    assert model() is None


def test_a_run_keeps_no_function_of_a_user_alive():
    def once():
        scored, tuned, noisy, again = (Model() for _ in range(4))
        adam = optax.adam(1e-3)
        scale = lambda g, state, p=None: (  # noqa: E731
            jax.tree.map(lambda x: x * tuned.large[1], g), state,
        )  # fmt: skip
        optimizer = optax.chain(
            adam, optax.GradientTransformation(lambda p: optax.EmptyState(), scale)
        )

        def score(problem):
            return [
                abs(w) * scored.large[1] * jnp.sqrt(f)
                for w, f in zip(
                    problem.weights, problem.rows.mean_squares(), strict=True
                )
            ]

        def noise(key, shared, index, n, row):
            return jax.tree.map(lambda r: r * noisy.large[1], row)

        prune(
            lambda p, x: again.loss(p, x), method=by_score("mine", score), noise=noise,
            finetune=swapjax.FineTune(optimizer, 2, batch=8),
        )  # fmt: skip
        return [weakref.ref(m) for m in (scored, tuned, noisy, again)]

    models = once()
    gc.collect()
    assert [model() for model in models] == [None] * 4


def test_runs_of_the_same_functions_compile_once():
    model = Model()
    settings = swapjax.FineTune(optax.adam(1e-3), 2, batch=8)
    # The method, its settings and the bound method are made anew.
    run = lambda: prune(  # noqa: E731
        model.loss, method=swapjax.woodfisher(damping=1e-3), finetune=settings
    )
    run()
    assert compiled(run) == 0
    assert compiled(lambda: prune(Model().loss)) > 0


def test_rows_outlive_their_makers():
    target = swapjax.plan(params(), 0.5)
    rows = per_example_gradients(
        _closure(Model()), params(), X, target, storage="matrix-free"
    )
    gc.collect()
    ones = tuple(jnp.ones(shape) for shape in target.layout.shapes)
    assert jnp.isfinite(jax.jit(lambda r, v: r.project(v))(rows, ones)).all()
    assert jax.tree.structure(rows) == jax.tree.structure(
        jax.tree.map(lambda x: x, rows)
    )
