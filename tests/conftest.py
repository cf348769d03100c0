"""What tests share: real data, a trained network, float64, a compilation cache."""

import gc
import os
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Before JAX is imported anywhere; the commands that tests start inherit it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
# Threads of OpenBLAS spin where cores are shared, and their number changes roundings.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Most programs are small and many tests compile the same: workers, commands and modules
# find them there.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Programs over simulated devices wait for ever where XLA has fewer threads than there
# are collectives at once; it has as many as cores, and starts what is ready at once.
os.environ.setdefault("NPROC", "64")
# Compiling is nearly all that tests do: without LLVM's passes, a program in one piece
# and with the elder of XLA's emitters, it takes a fifth of the time. XLA ends at once
# at a flag it does not know, and has only the other emitters since jaxlib 0.11.
flags = [
    "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if metadata.version("jaxlib").split(".")[:2] == ["0", "10"]:
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(flags))

import hypothesis
import jax
import pytest

from swapjax.experiments import datasets, models, runner

# Devices to shard over; what is not sharded stays on the first.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_cpu_enable_async_dispatch", False)

hypothesis.settings.register_profile(
    "swapjax", deadline=None, derandomize=True, max_examples=40
)
hypothesis.settings.load_profile("swapjax")

SHARED = ROOT.parent / "shared"


def pytest_collection_finish():
    """Look for garbage seldom."""
    gc.set_threshold(20_000, 50, 50)


@pytest.fixture(autouse=True, scope="module")
def programs():
    """Let go of compiled programs when there are many.

    Each takes several memory maps, of which a process may have 65,530: past that a
    worker crashes while it compiles.
    """
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > 35_000:
        jax.clear_caches()


@pytest.fixture
def x64():
    """Float64 throughout a test, as its oracles have it."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def digits():
    """Real scanned digits and a network trained on them for a moment."""
    data = datasets.load("digits")
    model = models.create("mlpnet", data.shape, data.classes)
    return runner.set_up(data, model, epochs=15)


@pytest.fixture(scope="session")
def mnist():
    """MNIST and the published MLPNet."""
    images = SHARED / "data" / "mnist.npz"
    weights = SHARED / "checkpoints" / "mlpnet_mnist.npz"
    for path in (images, weights):
        if not path.exists():
            pytest.skip(f"{path.name} is not in {path.parent}: get MNIST to run this")
    data = datasets.load(images)
    model = models.create("mlpnet", data.shape, data.classes)
    return runner.set_up(data, model, weights=weights)


@pytest.fixture(scope="session")
def gpu():
    """A GPU, or a skipped test."""
    try:
        return jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("needs a GPU")
