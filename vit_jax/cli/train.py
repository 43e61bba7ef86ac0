"""`vit-jax train`: train a model, or go on with a run."""

from collections.abc import Sequence

from vit_jax.allocator import keep_freed_memory
from vit_jax.cli import jax_setup
from vit_jax.cli.errors import report
from vit_jax.cli.parsing import read_recipe
from vit_jax.config.overrides import help_text

# JAX's own names of them.
_PROCESS_OPTIONS = ("coordinator_address", "num_processes", "process_id")


def run(arguments: Sequence[str]) -> int:
    """`train --config RECIPE [--workdir DIR] [--config.FIELD=VALUE ...]`."""
    if {"-h", "-help", "--help"} & set(arguments):
        print(help_text("vit-jax train (or python train.py)"))
        return 0
    command = read_recipe(arguments, ("workdir", *_PROCESS_OPTIONS))
    jax_setup.set_up_jax()
    import jax

    from vit_jax.training.loop import train
    from vit_jax.training.processes import at_once_if_many, is_first, join

    join(*(command.options[name] for name in _PROCESS_OPTIONS))
    with at_once_if_many(report):
        if jax.default_backend() == "cpu":
            keep_freed_memory()
        workdir = command.options["workdir"] or f"runs/{command.recipe}"
        train(command.config, workdir)
        if is_first():
            _draw_curves(workdir)
    return 0


def _draw_curves(workdir: str) -> None:
    """Draws `plots/loss.png` and `plots/accuracy.png` of a finished run, once."""
    from vit_jax.plots.curves import plot_curves
    from vit_jax.storage import run_path
    from vit_jax.training.records import read_rows
    from vit_jax.training.workdir import METRICS_FILE

    path = run_path(workdir)
    if (path / "plots" / "accuracy.png").exists():
        return
    rows = read_rows(path / METRICS_FILE)
    try:
        plot_curves(rows, path / "plots")
    except OSError as error:
        raise ValueError(
            f"cannot write to {path}: {error.strerror}; make room and repeat the command: the run "
            "is finished, and its curves are drawn"
        ) from error
