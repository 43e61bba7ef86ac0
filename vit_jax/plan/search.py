"""What would make a run fit that does not: settings to try, in order, each on top of the last."""

import copy
import dataclasses
from collections.abc import Callable, Iterator

from vit_jax.config import TrainConfig
from vit_jax.models.registry import model_fields
from vit_jax.plan.plan import Plan

# Parts that a batch is computed in: more than this makes steps of many small matmuls.
_MOST_PARTS = 16


@dataclasses.dataclass(frozen=True)
class Attempt:
    """Settings to try.

    Attributes:
      flags: of the command line, on top of the recipe's and the user's.
      added: those of them that the attempt before did not have, or had otherwise.
      why: what it does.
      config: the run with them.
    """

    flags: tuple[str, ...]
    added: tuple[str, ...]
    why: str
    config: TrainConfig


def attempts(config: TrainConfig, devices: int) -> Iterator[Attempt]:
    """Settings that need less memory than `config`, each on top of those before.

    First what leaves the update as it is: parameters and moments divided between the devices
    (fsdp), activations computed again (remat), the batch in parts (accumulation_steps); then
    smaller batches.
    """
    config = copy.deepcopy(config)
    flags: dict[str, object] = {}

    def attempt(why: str, **added: object) -> Attempt:
        flags.update(added)
        told = {name: f"--config.{name.replace('__', '.')}={flags[name]}" for name in flags}
        new = tuple(told[name] for name in added)
        return Attempt(tuple(told.values()), new, why, copy.deepcopy(config))

    if config.parallel == "pmap":
        config.parallel = flags["parallel"] = "jit"
    if config.mesh.fsdp == 1 and devices > 1:
        config.mesh.data, config.mesh.fsdp = 1, -1
        why = "parameters and moments divided between all devices"
        yield attempt(why, mesh__data=1, mesh__fsdp=-1)
    fields = model_fields(config.model.name)
    if {**fields, **config.model.kwargs}.get("remat") == "none":
        config.model.kwargs["remat"] = "blocks"
        why = "activations of a block computed again in the backward pass"
        yield attempt(why, model__kwargs__remat="blocks")
    parts = config.accumulation_steps
    while parts < _MOST_PARTS and config.data.batch_size % (2 * parts * devices) == 0:
        parts = config.accumulation_steps = 2 * parts
        yield attempt(f"the batch in {parts} parts, one after another", accumulation_steps=parts)
    size = config.data.batch_size
    while size % (2 * parts * devices) == 0:
        size = config.data.batch_size = size // 2
        why = "a smaller batch: another run, the learning rate of which has to follow"
        yield attempt(why, data__batch_size=size)


def search(first: Plan, make: Callable[[TrainConfig], Plan]) -> Iterator[tuple[Attempt, Plan]]:
    """Compiles one attempt after another until one fits.

    Args:
      first: the plan that does not fit.
      make: compiles a run for the same slice.
    """
    for attempt in attempts(first.config, first.compiled.devices):
        plan = make(attempt.config)
        yield attempt, plan
        if plan.fits:
            return
