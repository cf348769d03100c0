"""One process of two that prune together; test_distributed.py starts both.

Arguments: the port of the coordinator, the number of this process, the file to write.
"""

import sys

import jax

port, number, target = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_enable_x64", True)
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(number))

import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from test_sharding import loss_fn, network

import swapjax

params, data = jax.tree.map(np.asarray, network(np.float64))
mesh = jax.make_mesh((2, 2), ("data", "model"))
spread = NamedSharding(mesh, PartitionSpec("data"))
placed = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
placed["a"]["kernel"] = jax.device_put(
    params["a"]["kernel"], NamedSharding(mesh, PartitionSpec(None, "model"))
)
pruned = swapjax.prune(
    loss_fn,
    placed,
    jax.device_put(data, spread),
    sparsity=0.7,
    method=swapjax.swap(damping=0.1, support="magnitude", first_order=False, rounds=2),
    samples=45,
    stages=2,
    key=jax.random.key(1),
)
whole = jax.device_put(pruned.params, NamedSharding(mesh, PartitionSpec()))
if number == "0":
    np.savez(target, a=whole["a"]["kernel"], b=whole["b"]["kernel"])
