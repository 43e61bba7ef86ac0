"""The cases of the fuzzer: each a command line on a folder that was damaged for it."""

import dataclasses
import pathlib
import random
import shutil
from collections.abc import Callable

from tests.fuzz import corpus, values
from vit_jax.config.validate import fields_of, plain_kind


class Out(str):
    """A word of a command line that names what the command writes."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A command line.

    Attributes:
      arguments: of `vit-jax`; `Out` are the outputs.
      notes: what was damaged, for people.
      continues: the run that a resume has to end as, unless it says what was damaged.
    """

    arguments: list[str]
    notes: tuple[str, ...] = ()
    continues: str | None = None

    @property
    def outputs(self) -> list[str]:
        return [word for word in self.arguments if isinstance(word, Out)]


IMAGE = "images/val/a/12.png"
_TRAIN = ["train", "--config", corpus.RECIPE, "--workdir", Out("new")]
_FOLDER_TRAIN = ["train", "--config", corpus.FOLDER_RECIPE, "--workdir", Out("new")]
_FINETUNE = ["finetune", "images", "--from", "folder_run", "--workdir", Out("new")]
_FINETUNE += ["--config.num_epochs=1", "--config.optimizer.warmup_epochs=0"]
_SAFE = "weights.safetensors"
_OF_FOLDER = ["--source", "folder", "--data-dir", "images"]
_PARITY = ["parity", "vit_tiny_patch16_224", "--reference", "golden.json", "--precision", "float32"]
_PARITY += ["--field=img_size=32", "--field=patch_size=8", "--field=embed_dim=48"]
_PARITY += ["--field=depth=2", "--field=num_heads=4", "--field=norm_eps=1e-5"]
_PREPARE = ["prepare", "cifar10", "--archive", "cifar-10-binary.tar.gz"]
_PREPARE += ["--data-dir", Out("new_sets")]
VALID: tuple[list[str], ...] = (
    ["predict", "folder_run", IMAGE, "--json"],
    ["predict", "weights.pth", "images/val", "--top", "2", "--batch-size", "4"],
    ["predict", _SAFE, "formats", IMAGE, "--model", "vit_tiny_patch16_224"],
    ["evaluate", "run", "--json"],
    ["evaluate", "folder_run", "--plot", Out("out.png"), "--batch-size", "4"],
    ["evaluate", "weights.pth", *_OF_FOLDER, "--split", "validation", "--json"],
    ["evaluate", "run", "--config", corpus.RECIPE, "--config.data.batch_size=16"],
    ["data", "check", "images"],
    ["embed", "folder_run", "images/val", "--out", Out("out.npz")],
    ["embed", "weights.pth", "images", "formats", "--pairs", "3", "--json"],
    [
        "embed",
        "folder_run",
        "images",
        "--rows",
        "2",
        "--columns",
        "2",
        "--neighbours",
        Out("out.png"),
    ],
    _FINETUNE,
    ["probe", "folder_run", "--k", "3", "--json"],
    ["probe", "folder_run", "--method", "linear", "--l2", "0.1", "--test-split", "validation"],
    ["convert", "folder_run", Out("out.pth"), "--no-ema"],
    ["convert", "weights.pth", Out("out.safetensors"), "--head", "0,1"],
    ["convert", _SAFE, Out("out.safetensors"), "--head", "drop", "--field", "num_classes=5"],
    ["convert", "hf", Out("out.npz"), "--to", "google"],
    ["convert", "google.npz", Out("out_folder"), "--to", "hf"],
    ["convert", "weights.pth", Out("out_folder"), "--to", "orbax"],
    ["convert", "orbax", Out("out.pth"), "--resize", "source", "--field", "img_size=16", "--list"],
    ["export", "folder_run", Out("out_folder"), "--platforms", "cpu"],
    ["export", "weights.pth", Out("out_folder"), "--platforms", "cpu", "--input", "uint8"],
    [*_PARITY, "--json"],
    [*_PARITY, "--html", Out("out.html")],
    ["models", "vit*"],
    ["summary", "folder_run", "--depth", "1", "--json"],
    ["summary", "vit_tiny_patch16_224", "--img-size", "32", "--field", "depth=1"],
    ["summary", "weights.pth", "--batch-size", "2"],
    ["plot", "curves", "run", "stopped", "--out", Out("out.png")],
    ["plot", "augment", "--config", corpus.FOLDER_RECIPE, "--out", Out("out.png")],
    ["plot", "patches", IMAGE, "--model", "folder_run", "--out", Out("out.pdf")],
    ["plot", "attention", "folder_run", IMAGE, "--method", "last", "--out", Out("out.png")],
    ["plot", "soft-splits", IMAGE, "--model", "t2t_vit_7", "--out", Out("out.jpg")],
    ["plot", "positions", "folder_run", "--out", Out("out.svg")],
    ["plot", "filters", "weights.pth", "--out", Out("out.png")],
    _PREPARE,
    _TRAIN,
    [*_FOLDER_TRAIN, "--config.num_epochs=1"],
)
# A slice that there is not: to compile takes long.
_PLAN = ["plan", "--config", corpus.RECIPE, "--topology", "v5e:7x9", "--json"]
# Options of any command, to be given to others.
_OPTIONS = ("--json", "--model", "--field", "--ema", "--no-ema", "--top", "--batch-size", "--out")
_OPTIONS += (
    "--config",
    "--workdir",
    "--source",
    "--name",
    "--data-dir",
    "--split",
    "--k",
    "--help",
)
_OPTIONS += ("--version", "--method", "--to", "--head", "--seed", "--images", "--steps", "--nosuch")
_OPTIONS += ("-h", "--", "-", "--config.seed", "--noconfig.seed", "--grad", "--all", "--process_id")
_OPTIONS += (
    "--num_processes",
    "--from",
    "--pairs",
    "--skip-damaged",
    "--search",
    "--heads",
    "--rename",
    "--resize",
    "--plot",
    "--depth",
)
_FIELDS = ("rngs=1", "depth=-1", "depth=0", "embed_dim=7", "num_heads=0", "dtype=float7", "depth=x")
_FIELDS += ("=", "depth", "img_size=(8,8,8)", "img_size=-8", "patch_size=3", "in_chans=0", "name=x")
_FIELDS += ("num_classes=-1", "num_classes=1e9", "dtype=bfloat16", "drop_rate=2", "drop_rate=nan")
_FIELDS += (
    "qkv_bias=3",
    "norm_eps=0",
    "norm_eps=nan",
    "act=tanh",
    "depth=None",
    "depth=[[[",
    "a=b",
)
_FIELDS += (f"depth={'-' * 3000}1", "depth=1e400", "patch_size=4.0", "img_size=('a',)", "config=1")
_FIELDS += ("param_dtype=int8", "remat=blocks", "remat=x", "scan_layers=true", "global_pool=x")


def commands(place: pathlib.Path, rng: random.Random) -> Case:
    """A valid command line with one to three words changed."""
    words = list(rng.choice((*VALID, _PLAN)))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        words = _changed(words, rng)
    return Case(words)


def _changed(words: list[str], rng: random.Random) -> list[str]:
    words = list(words)
    at = rng.randrange(len(words)) if words else 0
    what = rng.randrange(9)
    if not words or what == 0:
        option = rng.choice(_OPTIONS)
        value = rng.choice(_FIELDS) if option == "--field" else values.any_value(rng)
        words[at + 1 : at + 1] = [option, _as(value, option)][: rng.choice((1, 2, 2))]
    elif what == 1:
        del words[at]
    elif what == 2:
        words[at:at] = [words[at]]
    elif what == 3:
        other = rng.randrange(len(words))
        words[at], words[other] = words[other], words[at]
    elif what == 4:
        words += ["--field", rng.choice(_FIELDS)]
    else:  # mostly one that is not the command's name
        at = rng.randrange(min(1, len(words) - 1), len(words))
        value = values.any_value(rng)
        words[at] = Out(value) if isinstance(words[at], Out) else _as(value, words[at - 1])
        if "=" in words[at - 1] or rng.randrange(8) == 0:
            words[at] = type(words[at])(f"{words[at]}={value}")
    return words


def _as(value: str, option: str) -> str:
    outputs = ("--out", "--plot", "--neighbours", "--workdir", "--html")
    return Out(value) if option in outputs else value


_KWARGS = ("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads")
_KWARGS += ("drop_rate", "drop_path_rate", "remat", "dtype", "scan_layers", "rngs", "norm_eps", "x")
_PLAIN = ("0", "1", "2", "3", "-1", "0.5", "none", "true", "(1,2)", "x", "''", "4", "nan", "1e400")
_PLAIN += ("0.0", "1.0", "(0.5,)", "7", "[[", "9e39", "1e11", "-0.1", "16")
_RECIPES = (
    ("return from_dict(VALUES)", "return None"),
    ("return from_dict(VALUES)", "return VALUES"),
    ("return from_dict(VALUES)", "raise SystemExit(0)"),
    ("return from_dict(VALUES)", "import sys; sys.exit('done')"),
    ("return from_dict(VALUES)", "raise KeyboardInterrupt"),
    ("return from_dict(VALUES)", "return get_config()"),
    ("return from_dict(VALUES)", "raise RuntimeError()"),
    ("return from_dict(VALUES)", "c = from_dict(VALUES); c.data = None; return c"),
    ("return from_dict(VALUES)", "c = from_dict(VALUES); c.data.more = 1; return c"),
    ("return from_dict(VALUES)", "c = from_dict(VALUES); del c.seed; return c"),
    ("return from_dict(VALUES)", "c = from_dict(VALUES); c.model.kwargs = 7; return c"),
    ("return from_dict(VALUES)", "c = from_dict(VALUES); c.model.kwargs[3] = 7; return c"),
    ("return from_dict(VALUES)", "c = from_dict(VALUES); c.model.name = b'x'; return c"),
    ("return from_dict(VALUES)", "c = from_dict(VALUES); c.num_epochs = True; return c"),
    ("return from_dict(VALUES)", "c = from_dict(VALUES); c.data.mean = 'abc'; return c"),
    ("def get_config():", "def get_config(argument):"),
    ("def get_config():", "def config():"),
    ("def get_config():", "get_config = 3\ndef more():"),
    ("from vit_jax.config", "from vit_jax.nothing"),
    ("VALUES =", "VALUES = = "),
    ("VALUES =", "raise SystemExit\nVALUES ="),
    ("VALUES =", "1 / 0\nVALUES ="),
    ("'seed'", "'sede'"),
    ("'num_epochs'", "'epochs'"),
)


def configs(place: pathlib.Path, rng: random.Random) -> Case:
    """`--config.FIELD=VALUE`, a recipe that is wrong, or a config.json that was edited."""
    kind = rng.randrange(10)
    if kind < 6:
        words = list(rng.choice((_TRAIN, _TRAIN, _FOLDER_TRAIN)))
        for _ in range(rng.choice((1, 1, 2, 3))):
            words.append(_override(rng))
        if rng.randrange(20) == 0:
            words[3:] = [words[3] + ":" + values.any_value(rng), *words[4:]]
        return Case(words)
    if kind == 6:
        path = place / corpus.RECIPE
        old, new = rng.choice(_RECIPES)
        path.write_text(path.read_text().replace(old, new, 1))
        return Case(list(_TRAIN), (new,))
    if kind == 7:
        path = place / corpus.RECIPE
        values.damage_bytes(path, rng)
        return Case(list(_TRAIN), ("recipe.py damaged",))
    run = rng.choice(("stopped", "folder_run"))
    for _ in range(rng.choice((1, 1, 2))):
        values.damage_json(place / run / "config.json", rng)
    return Case(_on_run(run, rng), (f"{run}/config.json edited",))


def _override(rng: random.Random) -> str:
    if rng.randrange(4) == 0:
        return f"--config.model.kwargs.{rng.choice(_KWARGS)}={rng.choice(_PLAIN)}"
    info = rng.choice(list(fields_of()))
    choices: tuple[str, ...] = info.limits.choices
    kind, _ = plain_kind(info.annotation)
    what = rng.randrange(6)
    if choices and what < 3:
        value = rng.choice(choices)
    elif what == 3:
        value = values.any_value(rng)
    elif what == 4 and kind is str:
        value = rng.choice(values.PATHS)
    else:
        value = rng.choice(_PLAIN)
    name = info.path if rng.randrange(30) else info.path[:-1]
    return f"--config.{name}={value}" if rng.randrange(20) else f"--noconfig.{name}"


def folders(place: pathlib.Path, rng: random.Random) -> Case:
    """A folder of images with odd and damaged files."""
    root = place / "images"
    notes = [_spoil(root, rng) for _ in range(rng.choice((1, 2, 4)))]
    words = rng.choice(
        (
            list(_FOLDER_TRAIN),
            [*_FOLDER_TRAIN, "--config.data.num_workers=1"],
            ["evaluate", "folder_run", "--json"],
            ["evaluate", "weights.pth", *_OF_FOLDER, "--split", "all", "--json"],
            ["predict", "folder_run", "images", "--json"],
            ["predict", "folder_run", "images/**/*.*", "formats"],
            ["predict", _SAFE, "images/val/a", "images/train/a/00.png"],
            ["probe", "folder_run", "--test-split", "validation", "--json"],
            ["data", "check", "images"],
            ["embed", "folder_run", "images", "formats", "--out", Out("out.npz")],
            ["embed", "weights.pth", "images/**/*.*", "--neighbours", Out("out.png")],
            list(_FINETUNE),
            [*_FINETUNE, "--skip-damaged"],
            ["plot", "augment", "--config", corpus.FOLDER_RECIPE, "--out", Out("out.png")],
            ["plot", "attention", "folder_run", IMAGE, "--out", Out("out.png")],
        )
    )
    return Case(list(words), tuple(notes))


def _spoil(root: pathlib.Path, rng: random.Random) -> str:
    files = [path for path in sorted(root.rglob("*.*")) if path.is_file()]
    folders = [path for path in sorted(root.rglob("*")) if path.is_dir() and not path.is_symlink()]
    what = rng.randrange(8)
    if not files or not folders:
        return "nothing"
    path, folder = rng.choice(files), rng.choice(folders)
    if what == 0:
        size = rng.choice(values.OVERSIZED)
        path.write_bytes(values.png_that_states(size, rng.choice((1, size))))
        return f"{path.name} states {size}"
    if what == 1:
        new = folder / rng.choice((".hidden.png", "a\nb.png", "\udcff.png", "é.png", "x", "x.PNG"))
        shutil.copy(path, new)
        return f"{new.name!r} new"
    if what == 2:
        link, to = folder / "link", rng.choice(("..", ".", "/dev", "nothing", "link"))
        if not link.is_symlink():
            link.symlink_to(to)
        return "a linked folder"
    if what == 3:
        shutil.rmtree(folder)
        if rng.randrange(2):
            folder.mkdir()
        return f"{folder.name} removed or emptied"
    if what == 4:
        name = rng.choice(("TRAIN", "validation", "d", "__MACOSX", "é", "a\nb"))
        if not folder.with_name(name).exists():
            folder.rename(folder.with_name(name))
        return f"{folder.name} is {name!r}"
    if what == 5:
        shutil.copy(rng.choice(sorted((root.parent / "formats").iterdir())), path)
        return f"{path.name} of another format"
    return f"{path.name}: {values.damage_file(path, rng)}"


def _on_run(run: str, rng: random.Random) -> list[str]:
    """A command that reads a run."""
    recipe = corpus.FOLDER_RECIPE if run == "folder_run" else corpus.RECIPE
    return list(
        rng.choice(
            (
                ["train", "--config", recipe, "--workdir", Out(run)],
                ["train", "--config", recipe, "--workdir", Out(run)],
                ["predict", run, IMAGE, "--json"],
                ["evaluate", run, "--json"],
                ["convert", run, Out("out.safetensors")],
                ["summary", run, "--depth", "1"],
                ["plot", "curves", run, "--out", Out("out.png")],
                ["plot", "filters", run, "--out", Out("out.png")],
                [*_FOLDER_TRAIN, f"--config.init_from={run}"],
                ["embed", run, IMAGE, "--out", Out("out.npz")],
                ["finetune", "images", "--from", run, *_FINETUNE[4:]],
                ["predict", f"{run}/checkpoints", IMAGE],
                ["predict", f"{run}/checkpoints/4", IMAGE],
            )
        )
    )


def runs(place: pathlib.Path, rng: random.Random) -> Case:
    """A run that was damaged: files, rows, whole checkpoints."""
    run = rng.choice(("stopped", "stopped", "run", "folder_run"))
    notes = [_break(place / run, rng) for _ in range(rng.choice((1, 1, 2, 3)))]
    words = _on_run(run, rng)
    resumes = words[0] == "train" and words[-1] == run
    return Case(words, tuple(notes), run if resumes else None)


def _break(run: pathlib.Path, rng: random.Random) -> str:
    files = [path for path in sorted(run.rglob("*")) if path.is_file()]
    if not files:
        return "nothing"
    checkpoints = sorted(p for p in (run / "checkpoints").glob("*") if p.is_dir())
    metrics = run / "metrics.jsonl"
    what = rng.randrange(12)
    if what < 3 and metrics.is_file():
        return "metrics.jsonl: " + _break_rows(metrics, rng)
    if what == 3 and len(checkpoints) > 1:  # items of two checkpoints
        one, other = rng.sample(checkpoints, 2)
        item = rng.choice(("model", "training", "info"))
        if (one / item).is_dir() and (other / item).is_dir():
            shutil.rmtree(one / item)
            values.copy_folder(other / item, one / item)
        return f"{item} of {other.name} in {one.name}"
    if what == 4 and checkpoints:
        one = rng.choice(checkpoints)
        name = rng.choice(("7", "99", "4.orbax-checkpoint-tmp", "x", "007", "-1", "٣", "1" * 30))
        if not (one.parent / name).exists():
            values.copy_folder(one, one.parent / name)
        if rng.randrange(2):
            shutil.rmtree(one)
        return f"{one.name} also or only as {name}"
    if what == 5 and checkpoints:
        (run / "checkpoints" / rng.choice(("99", "0", "x", "5"))).mkdir(exist_ok=True)
        return "an empty checkpoint"
    if what == 6 and checkpoints:
        shutil.rmtree(rng.choice([*checkpoints, run / "checkpoints"]))
        return "a checkpoint, or all, removed"
    if what == 7 and checkpoints:
        path = rng.choice(checkpoints) / "info" / "metadata"
        if path.is_file():
            values.damage_json(path, rng)
        return f"{path.parts[-3]}: info edited"
    path = rng.choice(files)
    return f"{path.relative_to(run)}: {values.damage_file(path, rng)}"


def _break_rows(path: pathlib.Path, rng: random.Random) -> str:
    lines = path.read_bytes().splitlines(keepends=True)
    what = rng.choice(("cut", "lost", "doubled", "shuffled", "added", "gone", "wrong", "joined"))
    if what == "gone" or not lines:
        path.unlink()
        return what
    at = rng.randrange(len(lines))
    if what == "cut":
        lines = b"".join(lines)[: rng.randrange(sum(map(len, lines)))].splitlines(keepends=True)
    elif what == "lost":
        del lines[at]
    elif what == "doubled":
        lines.insert(rng.randrange(len(lines)), lines[at])
    elif what == "shuffled":
        rng.shuffle(lines)
    elif what == "joined":
        lines[at] = lines[at].rstrip(b"\n")
    elif what == "added":
        odd = (b"\n", b"{}\n", b"null\n", b"\0" * 50, b"[" * 9999 + b"\n", b"\xff\n")
        lines.insert(at, rng.choice(odd))
    else:
        old, new = rng.choice(((b"step", b"stop"), (b'"step": ', b'"step": 1e400 '), (b"}", b"")))
        lines[at] = lines[at].replace(old, new, 1)
    path.write_bytes(b"".join(lines))
    return what


def weights(place: pathlib.Path, rng: random.Random) -> Case:
    """A file or folder of weights, or a golden file, that was damaged."""
    sources = ("weights.pth", _SAFE, "google.npz", "hf", "orbax", "golden")
    source = rng.choice(sources)
    if source == "golden":
        path = place / rng.choice(("golden.json", "golden.json", "golden.npz"))
    elif (place / source).is_dir():
        path = rng.choice([p for p in sorted((place / source).rglob("*")) if p.is_file()])
    else:
        beside = place / f"{source}.json"
        path = rng.choice([place / source, *([beside] if beside.exists() else [])])
    notes = [f"{path.name}: {values.damage_file(path, rng)}" for _ in range(rng.choice((1, 1, 2)))]
    if source == "golden":
        return Case(list(_PARITY), tuple(notes))
    words = rng.choice(
        (
            ["predict", source, IMAGE, "--json", "--model", "vit_tiny_patch16_224"],
            ["predict", source, IMAGE],
            ["summary", source, "--depth", "1"],
            ["embed", source, "images", "--pairs", "2"],
            ["finetune", "images", "--from", source, *_FINETUNE[4:]],
            ["convert", source, Out("out.safetensors")],
            ["convert", source, Out("out.pth"), "--model", "vit_tiny_patch16_224", "--list"],
            ["plot", "filters", source, "--out", Out("out.png")],
            [*_FOLDER_TRAIN, f"--config.init_from={source}"],
        )
    )
    return Case(list(words), tuple(notes))


def prepared(place: pathlib.Path, rng: random.Random) -> Case:
    """A prepared set, or an archive to prepare, that was damaged."""
    if rng.randrange(3) == 0:
        path = place / "cifar-10-binary.tar.gz"
        note = values.damage_file(path, rng)
        return Case(list(_PREPARE), (f"archive: {note}",))
    files = [path for path in sorted((place / "sets").rglob("*")) if path.is_file()]
    path = rng.choice(files)
    note = values.damage_file(path, rng)
    train = ["train", "--config", corpus.PREPARED_RECIPE, "--workdir", Out("new")]
    asked = ["evaluate", "folder_run", "--source", "tfds", "--name", "small", "--data-dir", "sets"]
    words = rng.choice((train, [*asked, "--split", "test", "--json"]))
    return Case(list(words), (f"{path.name}: {note}",))


KINDS: dict[str, Callable[[pathlib.Path, random.Random], Case]] = {
    "commands": commands,
    "configs": configs,
    "folders": folders,
    "runs": runs,
    "weights": weights,
    "prepared": prepared,
}
# Of twenty cases in a row.
ORDER = ("commands", "configs", "runs", "folders", "weights") * 2 + (
    *("commands", "configs", "runs", "folders", "weights"),
    *("commands", "configs", "runs", "commands", "prepared"),
)
