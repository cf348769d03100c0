"""One process of two that prune together; test_distributed.py starts both.

Arguments: the port of the coordinator, the number of this process, the file to write.
"""

import sys

import jax


def main(port, number, target):
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(number))

    # Only now: what they import may ask JAX for its devices.
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from network import loss_fn, to_shard

    import swapjax

    params, data = jax.tree.map(np.asarray, to_shard("float64"))
    mesh = jax.make_mesh((2, 2), ("data", "model"))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    placed = jax.device_put(params, everywhere)
    placed["fc1"]["kernel"] = jax.device_put(
        params["fc1"]["kernel"], NamedSharding(mesh, PartitionSpec(None, "model"))
    )
    method = swapjax.swap(damping=0.1, support="magnitude", first_order=False, rounds=2)
    pruned = swapjax.prune(
        loss_fn, placed, jax.device_put(data, spread), sparsity=0.7, method=method,
        samples=45, stages=2, key=jax.random.key(1),
    )  # fmt: skip
    whole = jax.device_put(pruned.params, everywhere)
    if number == "0":
        np.savez(target, fc1=whole["fc1"]["kernel"], fc2=whole["fc2"]["kernel"])


if __name__ == "__main__":
    main(*sys.argv[1:])
