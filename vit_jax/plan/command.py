"""`vit-jax plan`: its command line."""

import importlib.util
import os
from typing import Any

from vit_jax.config.overrides import CommandLine
from vit_jax.config.recipes import recipe_names
from vit_jax.plan.topology import CHIPS, Topology, parse_topology


def help_text() -> str:
    """What `vit-jax plan --help` prints."""
    examples = "\n".join(
        f"    {chip.name + ':':<8}{', '.join(chip.sizes)}" for chip in CHIPS.values()
    )
    return f"""\
usage: vit-jax plan --config RECIPE --topology GENERATION:SIZE [--search] [--json]
                    [--config.FIELD=VALUE ...]

Compile the train step of a run for a TPU slice, without a TPU, and print its memory, operations,
exchanges between chips, and a bound on its speed. Needs libtpu: pip install 'vit-jax[tpu]'.

  --config RECIPE     as of `vit-jax train`: a file, or a name such as {recipe_names()[0]}
  --topology NAME     the slice, chips along each axis; such as
{examples}
  --search            where the run does not fit, compile what would make it fit, until it does
  --json              print JSON in place of tables

Fields are those of `vit-jax train --help`. Exit status: 0, it fits; 1, it does not; 2, a mistake
in the command. A large model takes minutes; with --config.model.kwargs.scan_layers=true, fewer."""


def topology_of(command: CommandLine) -> Topology:
    """The slice that `--topology` names.

    Raises:
      ValueError: none is named, or an unknown one.
    """
    name = command.options["topology"]
    if not name:
        raise ValueError(
            "wanted --topology GENERATION:SIZE, such as "
            + ", ".join(f"{chip.name}:{chip.sizes[-1]}" for chip in CHIPS.values())
        )
    return parse_topology(name)


def require_libtpu() -> None:
    """Raises ValueError unless libtpu is installed."""
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise ValueError(
            "vit-jax plan needs libtpu, the compiler for TPUs (no TPU is needed): "
            "pip install 'vit-jax[tpu]'"
        )


def run(command: CommandLine, topology: Topology) -> int:
    """Plans a run and prints it.

    Returns:
      The exit status: 0, it fits, or what the search found does; 1, nothing does.
    """
    from rich.console import Console

    from vit_jax.config import TrainConfig
    from vit_jax.plan import report
    from vit_jax.plan.libtpu import devices_of
    from vit_jax.plan.plan import Plan, as_json, make_plan
    from vit_jax.plan.search import attempts
    from vit_jax.plan.search import search as compile_attempts

    json, search = (name in command.switches for name in ("json", "search"))
    console, progress = Console(highlight=False), Console(stderr=True)
    recipe = command.recipe
    devices = devices_of(topology)

    def make(config: TrainConfig) -> Plan:
        with progress.status(f"compiling {recipe} for {topology.name} ..."):
            return make_plan(config, topology, devices)

    plan = make(command.config)
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
