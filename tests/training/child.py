"""What a training process of the tests does: see `runs.child` and `many.start`."""

import json
import os
import pathlib
import resource
import signal
import sys
from collections.abc import Iterator
from typing import Any

import jax

from tests import compilation


def main(order: dict) -> None:
    compilation.write_whole_entries()
    if "command" in order:
        sys.exit(command(order))
    from vit_jax.config import from_dict
    from vit_jax.training import train

    if "file_size_limit" in order:
        limit = order["file_size_limit"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        print(json.dumps(train(from_dict(order["config"]), order["workdir"])))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    finally:
        print("modules:", *(m for m in ("tensorflow", "torch", "sklearn") if m in sys.modules))


def command(order: dict) -> int:
    """The command itself, in one of several processes; the loader is watched, or made to fail.

    Args:
      order: `command`, its arguments; `indices`, a folder for what each process's loader made;
        `unreadable`, [process, batch] at which an image cannot be read; `terminated`, [loader,
        process, batch] at which it receives SIGTERM; `shared_within`, seconds in which a shared
        work directory shows what another process wrote.
    """
    from vit_jax import cli
    from vit_jax.training import workdir
    from vit_jax.training.run import Run

    workdir._SHARED_WITHIN = order.get("shared_within", workdir._SHARED_WITHIN)
    for name in ("train_batches", "eval_batches"):
        setattr(Run, name, _watched(name, getattr(Run, name), order))
    return cli.main(order["command"])


class _Watched:
    """Batches of a loader, told as they pass."""

    def __init__(self, name: str, batches: Any, order: dict) -> None:
        self.name, self.batches, self.order = name, batches, order

    def __enter__(self) -> Iterator[dict]:
        self.batches.__enter__()
        return self._pass()

    def __exit__(self, *error: Any) -> None:
        self.batches.__exit__(*error)

    def _pass(self) -> Iterator[dict]:
        here = jax.process_index()
        for number, batch in enumerate(self.batches):
            if self.name == "train_batches" and self.order.get("unreadable") == [here, number]:
                from vit_jax.data.decode import decode_image

                decode_image(b"not an image", 1, "image 7 of the test")
            if self.order.get("terminated") == [self.name, here, number]:
                os.kill(os.getpid(), signal.SIGTERM)
            if "indices" in self.order:
                path = pathlib.Path(self.order["indices"]) / f"{self.name}.{here}"
                with path.open("a") as file:
                    file.write(json.dumps(batch["index"].tolist()) + "\n")
            yield batch


def _watched(name: str, make: Any, order: dict) -> Any:
    return lambda *args, **kwargs: _Watched(name, make(*args, **kwargs), order)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
