"""Architectures found without training: spaces of cells, and networks of them."""

from swapjax.search.darts_cells import darts
from swapjax.search.draw import Draw, he, pytorch
from swapjax.search.genotype import Genotype
from swapjax.search.layers import Run
from swapjax.search.mobilenet_blocks import mobilenet
from swapjax.search.nasbench201 import cell_space, nb201
from swapjax.search.network import Network
from swapjax.search.operations import Operation, relu_conv_bn
from swapjax.search.space import Space

__all__ = [
    "Draw",
    "Genotype",
    "Network",
    "Operation",
    "Run",
    "Space",
    "cell_space",
    "darts",
    "he",
    "mobilenet",
    "nb201",
    "pytorch",
    "relu_conv_bn",
]
