"""The command line as a user meets it: statuses, one-line errors, and what is not imported."""

import contextlib
import functools
import importlib
import io
import os
import pathlib
import sys

import jax
import pytest

from tests.commands import run_alone
from vit_jax import cli
from vit_jax.cli import jax_setup, models

# Raised by beartype at annotations of the libraries when the commands import their modules.
pytestmark = pytest.mark.filterwarnings(
    "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning"
)

ROOT = pathlib.Path(__file__).parents[2]


def test_train_py_ends_a_mistake_in_one_line(tmp_path):
    wrong = "--config.model.kwargs.depht=2"
    done = run_alone(
        *(str(ROOT / "train.py"), "--config=digits_vit", wrong), status=2, cwd=tmp_path
    )
    assert done.stdout == ""
    assert done.stderr.startswith("error: config.model.kwargs.depht: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trian"],
        ["models", "--nope"],
        ["models", "zzz*"],
        ["prepare"],
        ["train"],
        ["train", "--config=nowhere.py"],
        ["train", "--config=digits_vit", "--config.model.kwargs.num_heads=5"],
        ["train", "--config=digits_vit", "--config.model.kwargs.num_classes=3"],
        ["train", "--config=digits_vit", "--config.model.kwargs.depth=x"],
        ["train", "--config=digits_vit", "--config.model.kwargs.depth=None"],
        ["plan", "--config=digits_vit", "--config.model.kwargs.img_size=(32,32,3)"],
        ["train", "--config=digits_vit", "--config.num_epochs=9e39"],
        ["train", "--config=digits_vit", "--config.num_epochs=2000000000"],
        ["train", "--config=digits_vit", "--workdir="],
        ["train", "--config=digits_vit", "--workdir=~nobody_of_that_name/x"],
        ["train", "--config=digits_vit", "--workdir=a\0b"],
        ["train", "--config=digits_vit", f"--config.model.kwargs.depth={'-' * 9000}1"],
        ["summary", "vit_tiny_patch16_224", "--field=rngs=1"],
        ["summary", "vit_tiny_patch16_224", "--field=name=x"],
        ["summary", "vit_tiny_patch16_224", "--field=embed_dim=99999999999999999999"],
        ["evaluate", "x", "--batch-size=0"],
        ["evaluate", "x", "--plot="],
        ["predict", "x", "i.png", "--top=0"],
        ["prepare", "cifar10", "--data-dir=~nobody_of_that_name", "--archive=x"],
    ],
)
def test_a_mistake_is_status_2_and_one_line(arguments, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax_setup, "set_up_jax", lambda **_: None)  # it is for whole processes
    assert cli.main(arguments) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "status", "words"),
    [
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device"),
        (MemoryError("of 3 TiB"), 2, "error: out of memory of 3 TiB"),
        (RuntimeError("RESOURCE_EXHAUSTED: x"), 2, "error: the device is out of memory: lower"),
        (SystemExit(), 2, "called sys.exit(None) before the command had a result"),
        (SystemExit(0), 2, "called sys.exit(0) before the command had a result"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (ValueError("from a library"), 70, "ValueError: from a library"),
        (TypeError("x"), 70, "TypeError: x"),
        (OSError("x"), 70, "OSError: x"),
        (RecursionError("deep"), 70, "RecursionError: deep"),
        (KeyError("name"), 70, "KeyError: 'name'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_how_a_command_ends_that_does_not_return(monkeypatch, capsys, raised, status, words):
    """A bug alone keeps its traceback, and asks for a report; 0 is said of a result alone."""

    def fail(options):
        raise raised

    monkeypatch.setattr(models, "run", fail)
    assert cli.main(["models"]) == status
    said = capsys.readouterr().err
    assert words in said
    assert ("Traceback" in said, "bug: vit_jax failed" in said) == (status == 70,) * 2
    if status == 2:
        assert said.count("\n") == 1


def test_an_error_is_one_short_printable_line(monkeypatch, capsys):
    def fail(options):
        raise OSError(5, "\x1b[2J\n" + "x" * 600_000 + "\udcff", "the end")

    monkeypatch.setattr(models, "run", fail)
    assert cli.main(["models"]) == 2
    said = capsys.readouterr().err
    assert len(said) < 2_100
    assert said.isprintable() or said[:-1].isprintable()
    assert said.endswith("'the end'\n")


def _closed_pipe() -> io.TextIOWrapper:
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


@pytest.mark.parametrize(
    ("stream", "status"),
    [
        (_closed_pipe, 141),
        (functools.partial(open, "/dev/full", "w"), 2),
        (lambda: io.TextIOWrapper(io.BytesIO(), "ascii"), 0),
        (lambda: None, 0),
    ],
    ids=["head", "full", "ascii", "closed"],
)
def test_an_output_that_takes_nothing_or_little(monkeypatch, capsys, stream, status):
    monkeypatch.setattr(models, "run", lambda options: print("█ \udcff") or 0)
    monkeypatch.setattr(sys, "stdout", stream())
    assert cli.main(["models"]) == status
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.count("\n") == (status == 2)
    with contextlib.suppress(OSError):  # what it could not take
        sys.stdout.close()


def test_messages_of_a_closed_stderr_go_nowhere(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(["nope"]) == 2
    sys.stderr.close()
    assert capsys.readouterr().out == ""


def test_help_and_version(capsys):
    for arguments, wanted in (
        (["--help"], "prepare"),
        (["--version"], "vit-jax "),
        (["train", "--help"], "--config.optimizer.learning_rate"),
        (["evaluate", "--help"], "--config.data.FIELD"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == 0
        assert wanted in capsys.readouterr().out


def test_models_prints_a_table(capsys):
    assert cli.main(["models", "vit_class*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].split() == ["vit_classifier", "2,618,916", "72", "x", "72"]


def test_models_prints_published_weights(capsys):
    assert cli.main(["models", "dinov?_vitb*", "--pretrained"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert ["dinov2_vitb14", "facebook/dinov2-base", "apache-2.0", "not", "confirmed"] in rows
    gated = ["facebook/dinov3-vitb16-pretrain-lvd1689m", "dinov3-license", "on", "request"]
    assert ["dinov3_vitb16", *gated] in rows
    assert cli.main(["models", "t2t*", "--pretrained"]) == 2
    assert "no published weights of 't2t*' are known" in capsys.readouterr().err


def test_prepare_hands_its_options_on(monkeypatch, capsys):
    calls = []
    module = importlib.import_module("vit_jax.data.prepare")
    monkeypatch.setattr(module, "prepare", lambda *given: calls.append(given) or "there")
    assert cli.main(["prepare", "cifar10", "--data-dir", "d", "--archive", "a.tar.gz"]) == 0
    assert calls == [("cifar10", "d", "a.tar.gz")]
    assert capsys.readouterr().out == "prepared there\n"


def test_train_hands_config_and_workdir_on_and_says_its_notes(monkeypatch, capsys, tmp_path):
    calls, given = [], str(tmp_path / "w")
    monkeypatch.setattr(jax_setup, "set_up_jax", lambda **settings: calls.append(settings))
    monkeypatch.setattr("vit_jax.training.loop.train", lambda *arguments: calls.append(arguments))
    status = cli.main(
        [
            "train",
            "--config=digits_vit",
            f"--workdir={given}",
            "--config.model.name=vit_classifier",
            "--config.training.deterministic",
        ]
    )
    assert status == 0
    assert calls[0] == {"deterministic": True}
    config, workdir = calls[1]
    assert (config.model.name, str(workdir)) == ("vit_classifier", given)
    assert capsys.readouterr().err.startswith("note: model.name is no longer vit_tiny_patch16_224")


class _Stop(Exception):
    pass


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "w", "a.png"],
        ["evaluate", "w"],
        ["embed", "w", "a.png", "--out=a.npz"],
        ["probe", "w", "--method=knn"],
        ["export", "w", "out"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_precision_of_matmuls_is_set_before_a_model_is_read(monkeypatch, arguments):
    def stop(asked):
        raise _Stop(asked)

    monkeypatch.setattr(jax_setup, "set_up_jax", lambda: None)
    monkeypatch.setattr(jax_setup, "set_matmul_precision", stop)
    module = importlib.import_module(f"vit_jax.cli.{arguments[0]}")
    with pytest.raises(_Stop, match="high"):
        module.run([*arguments[1:], "--matmul-precision=high"])


def test_config_and_cli_import_nothing_heavy(tmp_path):
    # Their own imports, apart from what `import vit_jax` itself brings.
    code = (
        "import sys, types; package = types.ModuleType('vit_jax');"
        f"package.__path__ = [{str(ROOT / 'vit_jax')!r}]; sys.modules['vit_jax'] = package;"
        "import vit_jax.cli;"
        "print([m for m in ('jax', 'flax', 'torch', 'tensorflow', 'numpy') if m in sys.modules])"
    )
    done = run_alone("-c", code, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({"HOME": "/home/me"}, "/home/me/.cache/vit_jax/xla"),
        ({"HOME": "/home/me", "XDG_CACHE_HOME": "/x"}, "/x/vit_jax/xla"),
        ({"JAX_COMPILATION_CACHE_DIR": "/own"}, None),  # JAX reads it itself
        ({"JAX_COMPILATION_CACHE_DIR": ""}, None),
    ],
)
def test_the_compilation_cache_is_the_users_and_configurable(monkeypatch, variables, wanted):
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR", "JAX_TRACEBACK_FILTERING"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    options = {}
    monkeypatch.setattr(jax.config, "update", options.__setitem__)
    jax_setup.set_up_jax()
    assert options.pop("jax_traceback_filtering") == "off"
    assert options.pop("jax_cpu_enable_async_dispatch") is False
    assert options == ({} if wanted is None else {"jax_compilation_cache_dir": wanted})


_PRECISION = "jax_default_matmul_precision"


@pytest.mark.parametrize("command", ["predict", "evaluate", "probe", "embed", "export"])
def test_commands_multiply_at_the_precision_they_are_told(command, monkeypatch):
    parser = importlib.import_module(f"vit_jax.cli.{command}")._parser()
    given = {"predict": ["a.png"], "embed": ["a.png"], "export": ["out"]}.get(command, [])
    arguments = ["w.pth", *given]
    options = {}
    monkeypatch.setattr(jax.config, "update", options.__setitem__)
    for flag, wanted in (([], {}), (["--matmul-precision=highest"], {_PRECISION: "highest"})):
        asked = parser.parse_known_args([*arguments, *flag])[0].matmul_precision
        jax_setup.set_matmul_precision(asked)
        assert options == wanted
    with pytest.raises(ValueError, match=r"--matmul-precision: .*choose from"):
        parser.parse_known_args([*arguments, "--matmul-precision=most"])
