"""What every test runs under: 8 simulated devices, strict dtypes, checked shapes, fixed draws."""

import os
from importlib.metadata import version

# Before jax starts: it reads both once. Most programs run once, on a few numbers: nearly all of their time
# would go into optimising machine code. What XLA does to the program itself stays as it is for users.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        # The newest jaxlib does not know this one, and would stop.
        "--xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else "",
    ]
)

import hypothesis
import jax
import jaxtyping
import pytest

import tests.typechecker

jax.config.update("jax_numpy_dtype_promotion", "strict")

# Before the first `import jaxdeq`: its signatures are checked at every call, shapes too.
jaxtyping.install_import_hook("jaxdeq", f"{tests.typechecker.__name__}.typechecker")

hypothesis.settings.register_profile("house", database=None, deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("house")


@pytest.fixture
def unchecked():
    """Switches the checks of signatures off, so that the package's own refusals are heard."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
