"""`vit-jax plan`: what it does."""

import importlib.util
import os
from typing import Any

from vit_jax.config import TrainConfig
from vit_jax.plan.gpu import require_plugin
from vit_jax.plan.topology import Topology


def require_compiler(topology: Topology) -> None:
    """Raises ValueError unless the compiler for a slice is installed."""
    if topology.chip.is_gpu:
        require_plugin()
    elif importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise ValueError(
            "vit-jax plan needs libtpu, the compiler for TPUs (no TPU is needed): "
            "pip install 'vit-jax[tpu]'"
        )


def run(config: TrainConfig, recipe: str, topology: Topology, *, search: bool, json: bool) -> int:
    """Plans a run and prints it.

    Args:
      config: the run; recipe: its name.
      topology: the slice.
      search: whether what would make it fit is compiled, where it does not.
      json: in place of tables.

    Returns:
      The exit status: 0, it fits, or what the search found does; 1, nothing does.
    """
    from rich.console import Console

    from vit_jax.plan import gpu, libtpu, report
    from vit_jax.plan.plan import Plan, as_json, make_plan
    from vit_jax.plan.search import attempts
    from vit_jax.plan.search import search as compile_attempts

    console, progress = Console(highlight=False), Console(stderr=True)
    devices = (gpu if topology.chip.is_gpu else libtpu).devices_of(topology)

    def make(config: TrainConfig) -> Plan:
        with progress.status(f"compiling {recipe} for {topology.name} ..."):
            return make_plan(config, topology, devices)

    plan = make(config)
    found: dict[str, Any] = as_json(plan, recipe)
    if not json:
        report.show(plan, recipe, console)
    if not plan.fits and search:
        found["search"] = []
        for attempt, tried in compile_attempts(plan, make):
            found["search"].append({"flags": attempt.flags, **as_json(tried, recipe)})
            if not json:
                report.show_attempt(attempt, tried, console)
            plan = tried
        if plan.fits and not json:
            console.print()
            report.show(plan, recipe, console)
    elif not plan.fits and not json:
        report.show_untried(attempts(plan.config, plan.compiled.devices), console)
    if json:
        console.print_json(data=found)
    return 0 if plan.fits else 1
