"""Architectures found without training: spaces, networks, and what they are worth."""

from swapjax.search.chance import Chance, random_search
from swapjax.search.controls import Place, add_scores, place, rank
from swapjax.search.darts_cells import darts
from swapjax.search.draw import Draw, he, pytorch
from swapjax.search.freeflow import freeflow
from swapjax.search.genotype import Genotype
from swapjax.search.judgement import Agreement, Estimate, evaluate
from swapjax.search.layers import Run, convolve
from swapjax.search.mobilenet_blocks import mobilenet
from swapjax.search.nasbench201 import cell_space, nb201
from swapjax.search.network import Network
from swapjax.search.operation_scores import grasp_ops, snip_ops, synflow_ops
from swapjax.search.operations import Operation, avg_pool, identity, relu_conv_bn
from swapjax.search.perturbation import perturb
from swapjax.search.proxies import PROXIES, Proxy, score_architectures
from swapjax.search.removal import Found, remove
from swapjax.search.seeds import Repeats, repeats
from swapjax.search.separable import separable_conv
from swapjax.search.sizes import count_sizes, with_sizes
from swapjax.search.space import Space
from swapjax.search.table_files import load_tables
from swapjax.search.tables import Table, Tables

__all__ = [
    "PROXIES",
    "Agreement",
    "Chance",
    "Draw",
    "Estimate",
    "Found",
    "Genotype",
    "Network",
    "Operation",
    "Place",
    "Proxy",
    "Repeats",
    "Run",
    "Space",
    "Table",
    "Tables",
    "add_scores",
    "avg_pool",
    "cell_space",
    "convolve",
    "count_sizes",
    "darts",
    "evaluate",
    "freeflow",
    "grasp_ops",
    "he",
    "identity",
    "load_tables",
    "mobilenet",
    "nb201",
    "perturb",
    "place",
    "pytorch",
    "random_search",
    "rank",
    "relu_conv_bn",
    "remove",
    "repeats",
    "score_architectures",
    "separable_conv",
    "snip_ops",
    "synflow_ops",
    "with_sizes",
]
