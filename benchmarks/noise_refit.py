"""Pruning by regression on few entries, with places where ideas against noise fit in.

Dense algebra in NumPy on the entries that are left, in place of the library's, which
serves all entries of any network: a run takes a few seconds of a CPU.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy import linalg

import swapjax
from swapjax.core.types import Params
from swapjax.experiments import runner
from swapjax.gradients.operator import Corruption
from swapjax.gradients.stored import StoredRows

EXAMPLES = 16_000  # a stage
DAMPINGS, DAMPING = (1e-4, 1e-3, 1e-2), 1e-3  # of mean squared norms of rows
KAPPAS = (0.5, 4.0, 32.0)
Mix = Callable[[np.ndarray, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Idea:
    """What is done otherwise.

    Attributes:
        title: for the table.
        data: makes examples of examples, the labels that the dense network would draw,
            and those that it thinks most likely.
        batch: examples a row, once fewer than 3,000 entries are kept; all see the same.
        mix: of the Gram matrix of the rows and the number of entries, the factor C, [n]
            or [n, n], that residuals are multiplied with before they are squared.
        targets: whether C only moves the targets.
        robust: whether rows lose weight as their residuals grow.
        pool: stages whose rows are used again.
        floor: of the Fisher's diagonal, what counts as noise: its quantile; None for
            a fit to what layers read and a constant.
    """

    title: str
    data: Callable[..., tuple[np.ndarray, np.ndarray]] | None = None
    batch: int = 16
    mix: Mix | None = None
    targets: bool = False
    robust: bool = False
    pool: int = 0
    floor: float | None = 0.02


class Pruning:
    """A network on its way; entries of all layers in one vector, outputs last."""

    def __init__(
        self,
        setting: runner.Setting,
        idea: Idea,
        *,
        ridge: bool,
        noise: Corruption | None,
        seed: int,
    ) -> None:
        self.idea, self.layers_know, self.noise, self.seed = idea, ridge, noise, seed
        self.loss_fn = setting.model.loss_fn
        leaves, self.tree = jax.tree.flatten(setting.params)
        self.shapes = [leaf.shape for leaf in leaves]
        self.w = np.concatenate([np.ravel(leaf) for leaf in leaves])
        self.plan = swapjax.plan(setting.params, 0.5)
        # Of each entry its layer, what it reads, and its output among all outputs.
        places = [np.indices(s).reshape(2, -1) for s in self.shapes]
        outputs = np.cumsum([0] + [shape[1] for shape in self.shapes])
        self.layer = np.repeat(np.arange(len(leaves)), [p.shape[1] for p in places])
        self.reads = np.concatenate([p[0] for p in places])
        self.output = np.concatenate([p[1] for p in places]) + outputs[self.layer]
        self.earlier: list[tuple[np.ndarray, np.ndarray]] = []

    def params(self, w: np.ndarray | None = None) -> Params:
        """Make the network's params of a vector."""
        ends = np.cumsum([np.prod(shape) for shape in self.shapes])
        parts = np.split(self.w if w is None else w, ends[:-1])
        leaves = [
            jnp.asarray(p.reshape(s)) for p, s in zip(parts, self.shapes, strict=True)
        ]
        return jax.tree.unflatten(self.tree, leaves)

    def advance(self, stage: int, level: float, x: np.ndarray, y: np.ndarray) -> None:
        """Prune to a level on fresh examples, as their loss chooses."""
        drawn = np.random.default_rng([self.seed, stage]).permutation(len(y))
        x, y = (a[drawn[:EXAMPLES]] for a in (x, y))
        inside = np.flatnonzero(self.w)
        keep = round((1 - level) * len(self.w))
        batch = self.idea.batch if keep < 3000 else 16
        rows = self.rows(stage, x, y, inside, batch)
        fisher = np.zeros_like(self.w)
        fisher[inside] = np.mean(np.square(rows[: EXAMPLES // batch]), axis=0)
        ridge = Ridge(self, x, fisher, inside) if self.layers_know else None
        factor = None
        if self.idea.mix is not None:
            factor = self.idea.mix((rows @ rows.T).astype(float), len(inside))
        energy = float(np.mean(np.sum(np.square(rows), axis=1)))
        best, least = self.w, np.inf
        scores = {"magnitude": np.abs(self.w), "obd": self.w**2 * fisher}
        for name in ("magnitude",) if ridge else scores:
            kept = np.sort(np.argsort(-scores[name])[:keep])
            off = np.setdiff1d(inside, kept)
            columns = rows[:, np.searchsorted(inside, kept)]
            lost = rows[:, np.searchsorted(inside, off)] @ self.w[off]
            if self.idea.targets:
                projections = lost + columns @ self.w[kept]
                lost = lost + factor @ projections - projections
            for value in KAPPAS if ridge else DAMPINGS:
                damping = energy * (DAMPING if ridge else value)
                if ridge is None:
                    start, half, back = identity(columns, damping)
                else:
                    start, half, back = ridge.halve(columns, kept, off, value, damping)
                left = lost - columns @ start
                c = self.fit(half, left, None if self.idea.targets else factor)
                w = np.zeros_like(self.w)
                w[kept] = self.w[kept] + start + back(half @ c)
                loss = float(_loss(self.loss_fn, self.params(w), (x[:8000], y[:8000])))
                if loss < least:
                    best, least = w, loss
        self.w = best

    def rows(
        self, stage: int, x: np.ndarray, y: np.ndarray, inside: np.ndarray, batch: int
    ) -> np.ndarray:
        """Take rows at the weights as they are, and keep them for later stages."""
        rows = swapjax.per_example_gradients(
            self.loss_fn, self.params(), (jnp.asarray(x), jnp.asarray(y)), self.plan,
            batch=batch, storage="stored", corruption=self.noise,
            key=jax.random.fold_in(jax.random.key(self.seed), stage),
        )  # fmt: skip
        assert isinstance(rows, StoredRows)
        parts = [np.asarray(m).reshape(rows.n, -1) for m in rows.matrices]
        new = np.concatenate(parts, axis=1)[:, inside]
        old = [r[:, np.searchsorted(at, inside)] for r, at in self.earlier]
        self.earlier = [(new, inside), *((r, inside) for r in old)][: self.idea.pool]
        return np.concatenate([new, *old])

    def fit(
        self, half: np.ndarray, left: np.ndarray, factor: np.ndarray | None
    ) -> np.ndarray:
        """Solve ``(Z^T Z + 1) c = left`` with Z the half, C and the weights of rows."""
        entries, n = half.shape
        if entries < n and factor is None and not self.idea.robust:
            kernel = (half @ half.T).astype(float) + np.eye(entries)
            pulled = (half @ left).astype(float)
            return left - half.T @ linalg.solve(kernel, pulled, assume_a="pos").astype(
                np.float32
            )
        kernel, one = (half.T @ half).astype(float), np.eye(n)
        if factor is None:
            c = linalg.solve(kernel + one, left, assume_a="pos")
            for _ in range(4 if self.idea.robust else 0):
                # What is left of a residual is c, where its weight is 1.
                rest = np.abs(left - kernel @ c)
                size = 1.345 * np.median(rest) / 0.6745
                root = np.sqrt(np.minimum(1, size / np.maximum(rest, 1e-30)))
                inner = root[:, None] * kernel * root + one
                c = root * linalg.solve(inner, root * left, assume_a="pos")
            return c.astype(np.float32)
        c = np.diag(factor) if factor.ndim == 1 else factor
        inner = c @ kernel @ c.T + one
        return (c.T @ linalg.solve(inner, c @ left, assume_a="pos")).astype(np.float32)


def identity(columns: np.ndarray, damping: float) -> tuple:
    """Do as `Ridge.halve` for a multiple of the identity."""
    root = np.float32(np.sqrt(len(columns) * damping))
    return np.zeros(columns.shape[1], np.float32), columns.T / root, lambda v: v / root


class Ridge:
    """What layers read, with one number for each output: T of the library's K-FAC."""

    def __init__(
        self, pruning: Pruning, x: np.ndarray, fisher: np.ndarray, inside: np.ndarray
    ) -> None:
        self.pruning, self.moments = pruning, []
        h = x.reshape(len(x), -1)
        for matrix in jax.tree.leaves(pruning.params()):
            self.moments.append((h.T @ h / len(h)).astype(float))
            h = np.maximum(h @ np.asarray(matrix), 0)
        layer, output = pruning.layer[inside], pruning.output[inside]
        read = np.empty(len(inside))
        for at, moment in enumerate(self.moments):
            mine = layer == at
            read[mine] = np.diag(moment)[pruning.reads[inside[mine]]]
        f, count = fisher[inside], pruning.output[-1] + 1

        def total(values: np.ndarray) -> np.ndarray:
            return np.bincount(output, values, count)

        if pruning.idea.floor is not None:
            above = np.maximum(f - np.quantile(f, pruning.idea.floor), 0)
            gamma = total(above) / np.maximum(total(read), 1e-30)
        else:
            floor = 0.0
            for _ in range(50):
                gamma = total((f - floor) * read) / np.maximum(total(read**2), 1e-30)
                gamma = np.maximum(gamma, 0)
                floor = max(float(np.mean(f - gamma[output] * read)), 0)
        self.gamma = np.maximum(gamma, 1e-6 * gamma.max())

    def halve(
        self,
        columns: np.ndarray,
        kept: np.ndarray,
        off: np.ndarray,
        kappa: float,
        damping: float,
    ) -> tuple:
        """Take R = n kappa T + n damping on a support apart, R = L L^T.

        Returns:
            The change that R alone asks for, ``L^-1 G^T``, and ``v -> L^-T v``.
        """
        p, n = self.pruning, len(columns)
        start, half = (
            np.zeros(len(kept), np.float32),
            np.empty(columns.T.shape, np.float32),
        )
        factors = []
        for o in np.unique(p.output[kept]):
            mine, others = np.flatnonzero(p.output[kept] == o), off[p.output[off] == o]
            here, there = p.reads[kept[mine]], p.reads[others]
            moment = n * kappa * self.gamma[o] * self.moments[p.layer[kept[mine[0]]]]
            block = moment[np.ix_(here, here)] + n * damping * np.eye(len(here))
            lower = np.linalg.cholesky(block)
            pull = moment[np.ix_(here, there)] @ p.w[others]
            start[mine] = linalg.cho_solve((lower, True), pull)
            factors.append((mine, lower.astype(np.float32)))
            half[mine] = linalg.solve_triangular(
                factors[-1][1], columns[:, mine].T, lower=True
            )

        def back(v: np.ndarray) -> np.ndarray:
            out = np.empty_like(v)
            for mine, lower in factors:
                out[mine] = linalg.solve_triangular(lower, v[mine], lower=True, trans=1)
            return out

        return start, half, back


_loss = jax.jit(lambda loss_fn, params, batch: loss_fn(params, batch), static_argnums=0)
