"""A run's directory: one process at a time, and one config for good."""

import contextlib
import fcntl
import os
import pathlib
import time
import uuid
from collections.abc import Iterator, Mapping

import jax

from vit_jax.config import TrainConfig, check_resumable, load_config
from vit_jax.config.serialize import config_own, config_version, extends, to_json
from vit_jax.storage import is_remote, write_bytes
from vit_jax.training.processes import is_first, tell_all
from vit_jax.training.records import read_rows
from vit_jax.weights.run_folder import CHECKPOINTS, CONFIG_FILE

METRICS_FILE = "metrics.jsonl"
IMAGES = "images"  # in config.json, among what the run was given in Python
_LOCK_FILE = ".lock"
_SAME_PIXELS = 3  # the first version of config.json whose runs saw the pixels of today
_SHARED_WITHIN = 30.0  # seconds, which a network's file system may take


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the directory if need be and holds it for this process alone.

    The system lets go of the lock with the process, however that ends.

    Raises:
      ValueError: another process trains there, or the directory cannot be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(workdir / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ValueError(
            f"cannot use {workdir} as a work directory: {error.strerror}; wanted a directory that "
            "can be written, see --workdir"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder, *_ = os.read(descriptor, 32).decode().split() or ["unknown"]
            raise ValueError(
                f"another process (pid {holder}) is training in {workdir}: wait for it to end, or "
                "give another --workdir"
            ) from None
        os.ftruncate(descriptor, 0)
        with contextlib.suppress(OSError):  # a full disk; the pid is only told to a second process
            os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the directory as `locked` does, for all processes of a run: process 0 holds it.

    On object storage nobody can hold it: two runs there at a time are not noticed.

    Raises:
      ValueError: as `locked`; or a process does not see the directory that process 0 sees.
    """
    try:
        str(workdir).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"cannot use {str(workdir)!r} as a work directory: wanted a path in UTF-8, as Orbax "
            "does for checkpoints"
        ) from None
    with contextlib.ExitStack() as stack:
        token = uuid.uuid4().hex
        if is_first() and not is_remote(workdir):
            stack.enter_context(locked(workdir))
        if jax.process_count() > 1 or is_remote(workdir):
            if is_first():
                _write_token(workdir, token)
            _check_shared(workdir, tell_all(token))
        yield


def _write_token(workdir: pathlib.Path, token: str) -> None:
    try:
        (workdir / _LOCK_FILE).write_bytes(f"{os.getpid()} {token}".encode())
    except Exception as error:  # each kind of storage has its own errors
        raise ValueError(
            f"cannot use {workdir} as a work directory: {' '.join(str(error).split())[:300]}; "
            "wanted storage that can be written, see --workdir"
        ) from error


def _check_shared(workdir: pathlib.Path, token: str) -> None:
    end = time.monotonic() + _SHARED_WITHIN
    while True:
        with contextlib.suppress(OSError):
            if token in (workdir / _LOCK_FILE).read_bytes().decode():
                return
        if time.monotonic() > end:
            raise ValueError(
                f"process {jax.process_index()} of {jax.process_count()} does not see in {workdir} "
                "what process 0 wrote there: wanted a --workdir on storage that all hosts share"
            )
        time.sleep(0.5)


@contextlib.contextmanager
def writing(
    path: pathlib.Path, then: str = "the run goes on from its last checkpoint"
) -> Iterator[None]:
    """Raises a ValueError where `path` cannot be written; `then` is what the next call does."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"cannot write to {path}: {error.strerror}; make room and repeat the command: {then}"
        ) from error


def has_begun(workdir: pathlib.Path) -> bool:
    """Whether there is a run to go on with.

    One that failed before its first row or checkpoint has nothing to lose: it begins anew, and its
    config is replaced.
    """
    return _has_checkpoints(workdir) or bool(read_rows(workdir / METRICS_FILE))


def _has_checkpoints(workdir: pathlib.Path) -> bool:
    checkpoints = workdir / CHECKPOINTS
    return checkpoints.is_dir() and any(checkpoints.iterdir())


def check_config(
    config: TrainConfig, workdir: pathlib.Path, own: Mapping[str, str] | None = None
) -> bool:
    """Refuses a work directory of a run that this config would not repeat.

    Args:
      config: of the run.
      workdir: of the run.
      own: what it is given in Python, see `training.own`.

    Returns:
      Whether the config gives the run there more epochs.

    Raises:
      ValueError: naming the fields that differ; or there are checkpoints and no config.
    """
    path = workdir / CONFIG_FILE
    if path.exists():
        if has_begun(workdir):
            begun = load_config(path)
            on_gpu = jax.default_backend() == "gpu"  # what it means nothing on may differ
            may_differ = () if on_gpu else ("training.deterministic",)
            known = config_own(path)
            known.pop(IMAGES, None)  # see `check_images`
            check_resumable(begun, config, known, own, may_differ)
            return extends(begun, config)
    elif _has_checkpoints(workdir):
        raise ValueError(
            f"{workdir} holds checkpoints but no {CONFIG_FILE}, so that nobody can tell whose they "
            "are: put the file back, or give another --workdir"
        )
    return False


def check_pixels(
    config: TrainConfig, workdir: pathlib.Path, image_shape: tuple[int, ...] | None
) -> None:
    """Refuses a run of a version that made other pixels of its images.

    Args:
      config: of the run.
      workdir: of the run.
      image_shape: of its images; None where they vary in size.

    Raises:
      ValueError: the version that wrote the run cut, turned or resized its images otherwise.
    """
    path = workdir / CONFIG_FILE
    version = config_version(path) if path.exists() else _SAME_PIXELS
    if version >= _SAME_PIXELS:
        return
    if image_shape is None:
        changed = "resized images that vary in size otherwise"
    elif config.data.random_resized_crop:
        changed = "drew other random resized crops"
    else:
        return
    # Versions since 0.1.0 have no name but that of the file's form.
    wrote = "0.1.0" if version == 0 else f"after 0.1.0 (spec_version {version} of {CONFIG_FILE})"
    raise ValueError(
        f"{workdir} holds a run of vit_jax {wrote}, which {changed}: finish it with that version, "
        "or give another --workdir (--config.init_from takes its weights)"
    )


def check_images(workdir: pathlib.Path, images: str) -> None:
    """Refuses a run whose folder of images has changed since it began.

    Args:
      workdir: of the run; of an earlier version it does not say what its images were.
      images: of `Splits.identity`.

    Raises:
      ValueError: images were added, removed, renamed or labelled otherwise.
    """
    path = workdir / CONFIG_FILE
    begun = config_own(path).get(IMAGES) if path.exists() else None
    if begun is not None and begun != images:
        raise ValueError(
            f"the images of {workdir} or their labels are not those that its run began with (it "
            f"began with {begun}, now {images}): put them back (a damaged file under its own "
            "name), or give another --workdir (--config.init_from takes the run's weights)"
        )


def store_config(
    config: TrainConfig, workdir: pathlib.Path, own: Mapping[str, str] | None = None
) -> None:
    """Writes config.json, whole or not at all."""
    write_bytes(workdir / CONFIG_FILE, to_json(config, own).encode())
