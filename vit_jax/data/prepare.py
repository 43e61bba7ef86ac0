"""`vit-jax prepare`: puts a data set on disk, once, in the form that training reads."""

import contextlib
import difflib
import hashlib
import http.client
import os
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from vit_jax.data import cifar_archive, imagenette_archive
from vit_jax.data.cifar_archive import CIFAR_FORMATS, CifarFormat, prepare_cifar_archive
from vit_jax.data.idx_archive import IDX_FORMATS, prepare_idx_archive
from vit_jax.data.imagenette_archive import (
    IMAGENETTE_FORMATS,
    ImagenetteFormat,
    prepare_imagenette_archive,
)
from vit_jax.data.tfds_source import LOCAL_ARCHIVES, default_data_dir, name_parts

_REACH_TIMEOUT_S = 6.0
_READ_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 20


def prepare(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    archive: str | os.PathLike[str] | None = None,
) -> Path:
    """Makes the set `name` ready for training below `data_dir`.

    cifar10 and cifar100 are prepared from their official binary archive, imagenette128 and
    imagenette224 from fast.ai's, local or downloaded; fashion_mnist from a directory of its
    official IDX files; any other set by TFDS, which downloads it and writes ArrayRecord, as it does
    fashion_mnist without a directory. A host that does not answer is an error within seconds.
    Nothing that exists is overwritten.

    Args:
        name: a set that TFDS knows, `NAME`, `NAME/CONFIG` or either with `:VERSION`.
        data_dir: where prepared sets are; None: $TFDS_DATA_DIR or ~/tensorflow_datasets.
        archive: a local copy of the official archive; for fashion_mnist the directory of its files.

    Returns:
        The prepared directory.

    Raises:
        ValueError: an unknown set, no network, a bad archive, a directory that exists; each says
            the ways out.
    """
    base, _, version = name_parts(name)
    root = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
    if archive is not None and base not in LOCAL_ARCHIVES:
        raise ValueError(
            f"--archive is for {', '.join(LOCAL_ARCHIVES)}; {name} is downloaded and prepared by "
            "TFDS, which keeps what it downloads in DATA_DIR/downloads"
        )
    layout = CIFAR_FORMATS.get(base) or IMAGENETTE_FORMATS.get(base)
    if layout is None and archive is None:
        return _prepare_by_tfds(name, root)
    written, read = _reader(base)
    if version not in (None, written):
        raise ValueError(f"{base} is prepared in version {written}, {version} was asked for")
    final = root / base / written
    if final.exists():
        raise ValueError(f"{final} exists already; remove it first to prepare {base} again")
    if archive is not None:
        return read(base, root, archive)
    assert layout is not None, "TFDS has the others"
    _check_reachable(layout.url, base)
    with tempfile.TemporaryDirectory(prefix="vit-jax-prepare-") as directory:
        path = Path(directory) / LOCAL_ARCHIVES[base]
        _download(layout, base, path)
        return read(base, root, path)


def _reader(name: str) -> tuple[str, Callable[..., Path]]:
    """The version in which a set of `LOCAL_ARCHIVES` is written, and what reads its archive."""
    if name in IDX_FORMATS:
        return IDX_FORMATS[name].version, prepare_idx_archive
    if name in IMAGENETTE_FORMATS:
        return imagenette_archive.VERSION, prepare_imagenette_archive
    return cifar_archive.VERSION, prepare_cifar_archive


def _prepare_by_tfds(name: str, root: Path) -> Path:
    import tensorflow_datasets as tfds

    try:
        builder_class = tfds.builder_cls(name_parts(name)[0])
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(name, [*tfds.list_builders(with_community_datasets=False)])
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else "its catalogue lists those that it knows."
        )
        raise ValueError(f"TFDS knows no data set {name!r}; {hint}") from error
    # Looking a builder up by name can make TFDS ask its own bucket first, for minutes: so the
    # network is tried before.
    # A set whose archives are fetched by hand needs none.
    if not getattr(builder_class, "MANUAL_DOWNLOAD_INSTRUCTIONS", None):
        url = next(iter(builder_class.url_infos or ()), "https://storage.googleapis.com")
        _check_reachable(url, name)
    try:
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
        if Path(builder.data_dir).exists():
            raise ValueError(
                f"{builder.data_dir} exists already; remove it first to prepare {name} again"
            )
        builder.download_and_prepare()
    except ImportError as error:
        raise ValueError(
            f"TFDS's own code for {name} needs a package that is not installed ({error}). Training "
            "does not: prepare the set wherever that package is, with `tfds build "
            f"{name} --file_format=array_record`, and point --config.data.data_dir= at it"
        ) from error
    except (AssertionError, OSError, tfds.download.DownloadError) as error:
        # TFDS asserts that archives which must be fetched by hand are in place.
        reason = " ".join(str(error).split())
        raise ValueError(f"TFDS could not prepare {name}: {reason} {_ways_out(name)}") from error
    return Path(builder.data_dir)


def _check_reachable(url: str, name: str) -> None:
    """ValueError unless the host of `url` answers within seconds, whatever the answer.

    In a thread, because looking up a name can take far longer than any timeout that Python offers.
    """
    parts = urlsplit(url)
    problems: list[str] = []
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(f"{parts.scheme}://{parts.netloc}/", method="HEAD")
        try:
            with contextlib.suppress(urllib.error.HTTPError):  # an answer all the same
                urllib.request.urlopen(request, timeout=_REACH_TIMEOUT_S).close()
        except OSError as error:
            problems.append(str(error))
        answered.set()

    threading.Thread(target=ask, daemon=True).start()
    if not answered.wait(_REACH_TIMEOUT_S):
        problems.append(f"no answer in {_REACH_TIMEOUT_S:.0f} seconds")
    if problems:
        raise ValueError(
            f"{name} cannot be downloaded: {parts.netloc} is not reachable ({problems[0]}). "
            f"{_ways_out(name)}"
        )


def _ways_out(name: str) -> str:
    base = name_parts(name)[0]
    places = {key: layout.url for key, layout in (CIFAR_FORMATS | IDX_FORMATS).items()}
    for key, layout in IMAGENETTE_FORMATS.items():
        places[key] = f"{LOCAL_ARCHIVES[key]} from {layout.page}"
    by_archive = (
        f"fetch {places[base]} elsewhere and run `vit-jax prepare {base} --archive "
        f"{LOCAL_ARCHIVES[base]}`; "
        if base in places
        else ""
    )
    return (
        f"Ways out: {by_archive}copy a prepared {base} directory from another machine and name its "
        "parent with --config.data.data_dir=DIR; or train on the bundled digits with "
        "--config configs/digits_vit.py"
    )


def _download(layout: CifarFormat | ImagenetteFormat, name: str, path: Path) -> None:
    digest = hashlib.sha256()
    try:
        with (
            urllib.request.urlopen(layout.url, timeout=_READ_TIMEOUT_S) as response,
            path.open("wb") as file,
        ):
            while chunk := response.read(_CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"downloading {layout.url} failed: {error}. {_ways_out(name)}") from error
    if digest.hexdigest() != layout.sha256:
        raise ValueError(
            f"{layout.url} came with checksum {digest.hexdigest()}, wanted {layout.sha256}: "
            f"cut off or changed on the way. {_ways_out(name)}"
        )
