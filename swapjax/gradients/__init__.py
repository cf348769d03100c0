"""The operator G: one loss gradient per row, stored or recomputed."""

from swapjax.gradients.build import per_example_gradients
from swapjax.gradients.matrix_free import MatrixFreeRows
from swapjax.gradients.noise import GradientNoise
from swapjax.gradients.noise_level import NoiseLevel, noise_level
from swapjax.gradients.operator import GradientOperator
from swapjax.gradients.stored import StoredRows

__all__ = [
    "GradientNoise",
    "GradientOperator",
    "MatrixFreeRows",
    "NoiseLevel",
    "StoredRows",
    "noise_level",
    "per_example_gradients",
]
