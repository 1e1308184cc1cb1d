"""The conditions all tests run under: strict promotion, warnings as errors, 8 virtual devices, quick compilation."""

import gc
import importlib.metadata
import importlib.util
import os

# Before jax starts: virtual devices for sharding tests, and a thread pool wide enough that their
# collectives cannot starve each other on a machine with few cores.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("NPROC", "16")
# On a machine that stands still, a collective may wait for its last device: after 40 s XLA would end the process.
if "collective_call_terminate" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_cpu_collective_call_terminate_timeout_seconds=600"
# All workers, and the processes that tests start, share one GPU: none may take most of its memory in advance.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# PyTorch's convolutions too: NVIDIA's libraries shall round no float32 factor to TF32; `whole_products` has XLA's own.
os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
os.environ.setdefault("MPLBACKEND", "Agg")
# Most of what the tests cost is compiling, and many compile the same programs: what one has compiled is kept for the
# others, for the other workers and for the next run.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.join(os.path.dirname(os.path.abspath(__file__)), ".jax-cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Their programs run once. With few optimizations, by the emitters that jaxlib 0.11 no longer has (an unknown flag would
# end the process) and without dividing a program for several threads, compiling one takes a third to a seventh of the
# processor's time. It changes what XLA does to a program, not which program the library writes.
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 has them as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# And no program says for each of its operations from which lines it came, which takes its time.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and "parallel_codegen" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
    if importlib.util.find_spec("jax_plugins"):  # a GPU: no kernel is timed against others before its only run
        os.environ["XLA_FLAGS"] += " --xla_gpu_autotune_level=0"

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Derandomized: a red run is red again. `--hypothesis-profile=explore` draws new cases.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=25, print_blob=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=500)
hypothesis.settings.load_profile("ci")


@pytest.fixture
def x64():
    """Runs a test with 64-bit types enabled."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def full_compilation():
    """For a file of what is said of programs as XLA optimizes them: their bits beside another's, their last digits."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each worker begins with one stretch of the tests, so that it alone makes their fixtures and programs."""
    if config.getvalue("dist") != "load":  # which is what -n alone means
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_collection_finish():
    """What was imported stays, so that a collection of garbage need not look through it: a tenth of the time.

    Nor through what a trace makes after every 700 objects of it: a twentieth.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skips a test that is marked ``devices(n)`` where there are fewer."""
    needed = max((mark.args[0] for mark in item.iter_markers("devices")), default=0)
    if needed and jax.device_count() < needed:
        pytest.skip(f"needs {needed} devices, there is {jax.device_count()}; JAX_PLATFORMS=cpu makes virtual ones")


@pytest.fixture(scope="session", autouse=True)
def whole_products():
    """On a GPU, float32 products are of float32: by default an NVIDIA GPU rounds their factors to TF32's 11 bits.

    The oracles are float64. A ``JAX_DEFAULT_MATMUL_PRECISION`` of the environment stays, and processes inherit it.
    """
    if jax.default_backend() == "gpu" and "JAX_DEFAULT_MATMUL_PRECISION" not in os.environ:
        os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
        jax.config.update("jax_default_matmul_precision", "highest")
