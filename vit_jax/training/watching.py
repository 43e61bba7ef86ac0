"""What a run says of itself before anything is compiled."""

import collections
import pathlib

from flax import nnx

from vit_jax.models.description import num_parameters
from vit_jax.training.run import Run


def starting_lines(run: Run, workdir: pathlib.Path) -> list[str]:
    """The model, its images, the devices and the directory of a run that starts, a line each.

    Args:
      run: of the data and the devices.
      workdir: of the run.
    """
    config, model = run.config, run.model
    height, width = model.input_size
    parts = {"train": run.data.train, "validation": run.data.validation, "test": run.data.test}
    images = ", ".join(f"{len(part):,} {name}" for name, part in parts.items() if part is not None)
    given = isinstance(run.own.model, nnx.Module)
    start = config.init_from or ("the arrays given" if given else "random weights")
    kinds = collections.Counter(device.device_kind for device in run.mesh.devices.flat)
    devices = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    epochs = f"{config.num_epochs:,} epoch{'s' * (config.num_epochs != 1)}"
    outputs = f"{model.num_classes:,} output{'s' * (model.num_classes != 1)}"
    return [
        f"model: {model.spec.name}, {num_parameters(model):,} parameters, from {start}",
        f"images: {images}; {width}x{height} pixels, {outputs}",
        f"devices: {devices}; {epochs} of {run.steps_per_epoch:,} updates, batches of "
        f"{config.data.batch_size:,}",
        f"directory: {workdir}",
    ]
