"""The operator G: one loss gradient per row, stored or recomputed."""

from swapjax.gradients.build import per_example_gradients
from swapjax.gradients.matrix_free import MatrixFreeRows
from swapjax.gradients.noise import GradientNoise
from swapjax.gradients.operator import GradientOperator
from swapjax.gradients.stored import StoredRows

__all__ = [
    "GradientNoise",
    "GradientOperator",
    "MatrixFreeRows",
    "StoredRows",
    "per_example_gradients",
]
