"""Serve NumPy's version of the least that a stage has to do, for `peer_speed.py`.

MLPNet alone: gradients in closed form, into memory that is kept; BLAS and LAPACK called
with what they can overwrite. No losses, no checks, no choice among candidates.
"""

import sys
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np
from scipy.linalg import blas, lapack
from service import Calls, Seconds, clocked, serve


class Network:
    """MLPNet, its examples, and memory for its gradient rows.

    Args:
        path: of an .npz with x, y, and the kernels fc1, fc2 and fc3.
        samples: rows of one example.
        sparsity: of a stage.
    """

    def __init__(self, path: Path, samples: int, sparsity: float) -> None:
        with np.load(path) as file:
            self.x = file["x"].reshape(len(file["x"]), -1)
            self.y = file["y"]
            self.kernels = [file[name] for name in ("fc1", "fc2", "fc3")]
        self.weights = np.concatenate([k.ravel() for k in self.kernels])
        self.rows = np.zeros((samples, self.weights.size), np.float32)
        self.kept = int(self.weights.size * (1 - sparsity))
        self.columns = np.zeros((samples, self.kept), np.float32)

    def differentiate(self) -> None:
        """Fill rows with the gradients of examples drawn at random."""
        count = len(self.rows)
        chosen = np.random.default_rng(0).choice(len(self.x), count, replace=False)
        x, y = self.x[chosen], self.y[chosen]
        one, two, three = self.kernels
        first = np.maximum(x @ one, 0)
        second = np.maximum(first @ two, 0)
        logits = second @ three
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        slope = chances / chances.sum(axis=1, keepdims=True)
        slope[np.arange(count), y] -= 1
        behind = (slope @ three.T) * (second > 0)
        last = (behind @ two.T) * (first > 0)
        start = 0
        for read, left in ((x, last), (first, behind), (second, slope)):
            shape = (count, read.shape[1], left.shape[1])
            part = self.rows[:, start : start + shape[1] * shape[2]]
            start += part.shape[1]
            for row, a, b in zip(part, read, left, strict=True):
                np.multiply(a[:, None], b, out=row.reshape(shape[1:]))

    def systems(self, supports: int, dampings: int) -> Iterator[tuple]:
        """Give systems of the rows on a support, and their right-hand sides.

        On the largest weights, then on the largest of w^2 times the mean square of
        their gradients.
        """
        target = self.rows @ self.weights
        for number in range(supports):
            score = np.abs(self.weights)
            if number:
                squares = np.einsum("np,np->p", self.rows, self.rows)
                score = self.weights**2 * squares
            place = np.argpartition(score, score.size - self.kept)[-self.kept :]
            place.sort()
            np.take(self.rows, place, axis=1, out=self.columns, mode="clip")
            gram = blas.ssyrk(1.0, self.columns.T, trans=1)
            rest = target - self.columns @ self.weights[place]
            for damping in 10.0 ** -np.arange(3, 3 + dampings):
                system = gram.copy(order="F")
                system.flat[:: len(system) + 1] += damping * len(system)
                yield place, system, rest

    def back_solve(self, supports: int, dampings: int, invert: bool) -> None:
        """Re-fit on each support with each damping."""
        for place, system, rest in self.systems(supports, dampings):
            factor, failed = lapack.spotrf(system, overwrite_a=1, clean=0)
            assert not failed
            c, _ = lapack.spotrs(factor, rest)
            _ = self.weights[place] + self.columns.T @ c
            if invert:
                lapack.spotri(factor, overwrite_c=1)


def make(path: Path, samples: int, sparsity: float) -> Calls:
    """Make the stages, and two loads that tell how fast the machine is now."""
    net = Network(path, samples, sparsity)
    square = np.random.default_rng(0).normal(size=(1000, 1000)).astype(np.float32)
    target = np.zeros_like(net.rows)

    def stage(*settings: int) -> Callable[[], Seconds]:
        supports, dampings, invert = settings

        def work() -> Seconds:
            first = clocked(net.differentiate)
            second = clocked(lambda: net.back_solve(supports, dampings, bool(invert)))
            both = {name: first[name] + second[name] for name in first}
            return {"gradients": first["total"], **both}

        return work

    def fastest(load: Callable[[], object]) -> Callable[[], Seconds]:
        return lambda: min((clocked(load) for _ in range(5)), key=itemgetter("total"))

    return {
        "one back-solve": stage(1, 1, 0),
        "swap": stage(2, 3, 1),
        "regression": stage(2, 3, 0),
        "multiply": fastest(lambda: square @ square),
        "copy": fastest(lambda: np.copyto(target, net.rows)),
    }


if __name__ == "__main__":
    _, where, rows, level = sys.argv
    serve(lambda: make(Path(where), int(rows), float(level)))
