"""A training run on made-up images in a process of its own, which may be told to end early.

    python -m benchmarks.synthetic_run ORDER

ORDER is JSON: `config` and `workdir` of the run, `images`, arguments of `pictures`, and maybe
`end_at`, a step with a row of figures at which the process ends, and `how`: "SIGKILL", "SIGTERM" or
"error". A finished run prints a line with a hash of its parameters.
"""

import hashlib
import json
import os
import signal
import sys
from typing import Any

import numpy as np

from vit_jax.cli.jax_setup import set_up_jax
from vit_jax.config import from_dict
from vit_jax.data.sources import ArraySource, ImageSource, Subset

PARAMETERS = "parameters: "


def pictures(number: int, side: int, classes: int) -> ArraySource:
    """Square images of colours and noise, of whose classes 7 in 10 can be learnt."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, number)
    means = rng.integers(64, 192, (classes, 1, 1, 3), np.uint8)
    images = means[labels] + rng.integers(0, 64, (number, side, side, 3), np.uint8)
    labels = np.where(rng.random(number) < 0.3, rng.integers(0, classes, number), labels)
    names = list(map(str, range(classes)))
    return ArraySource(images, labels, class_names=names, name="pictures")


def digest(model: Any) -> str:
    """A hash of every bit of a model's parameters."""
    import vit_jax

    found = hashlib.sha256()
    for name, array in sorted(vit_jax.state_dict(model).items()):
        found.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def main(order: dict[str, Any]) -> None:
    config = from_dict(order["config"])
    set_up_jax(deterministic=config.training.deterministic)
    from vit_jax.training import train
    from vit_jax.training.own import Report

    def end(report: Report) -> None:
        if report.kind == "end":
            print(f"\n{PARAMETERS}{digest(report.model())}", flush=True)
        elif report.step == order.get("end_at"):
            if order["how"] == "error":
                raise RuntimeError("raised as ordered")
            os.kill(os.getpid(), getattr(signal, order["how"]))

    data: dict[str, ImageSource] = {"train": pictures(**order["images"])}
    data["test"] = Subset(data["train"], np.arange(64), name="test")
    train(config, order["workdir"], data=data, callbacks=[end])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
