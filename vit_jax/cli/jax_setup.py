"""What a command does to the process that it runs in."""

import os
import warnings

from vit_jax.config.schema import DETERMINISTIC_OPS


def set_up_jax(*, exact: bool = False, deterministic: bool = False) -> None:
    """What the package does to the process, and only on behalf of a command.

    Compiled programs are kept under the user's cache directory; JAX's own variable
    JAX_COMPILATION_CACHE_DIR names another place, and set to nothing turns that off. Tracebacks
    keep JAX's frames, so that one can tell an error that this package raised from one inside JAX.
    On a CPU calls return when they are done: one that was dispatched gives its temporaries back
    only after that, the next one may not find them, and the process grows by as much, time after
    time.

    Args:
      exact: allow float64, and multiply float32 matrices in float32 on every device.
      deterministic: see `training.deterministic` of the config. XLA reads it as it starts.
    """
    if deterministic:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC_OPS}".strip()
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "vit_jax", "xla"))
    # A process that was killed may leave half an entry in the cache: it is compiled again.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if "JAX_TRACEBACK_FILTERING" not in os.environ:
        jax.config.update("jax_traceback_filtering", "off")
    if exact:
        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_default_matmul_precision", "highest")


def set_matmul_precision(asked: str | None) -> None:
    """Multiplies float32 matrices in the process at the precision of `--matmul-precision`.

    None leaves JAX as it is set: by JAX_DEFAULT_MATMUL_PRECISION, or to what suits the device.
    """
    import jax

    if asked is not None:
        jax.config.update("jax_default_matmul_precision", asked)
