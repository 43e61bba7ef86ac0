"""`vit-jax convert` as a user meets it."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vit_jax
from tests.models.families import FAMILIES, build
from vit_jax import cli

VIT = FAMILIES["vit"][0]
SIZES = [
    "--field=patch_size=4",
    "--field=embed_dim=8",
    "--field=depth=3",
    "--field=num_heads=2",
]
ARGUMENTS = ["--model", VIT, "--field=img_size=8,12", *SIZES]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "w.safetensors"
    vit_jax.save_pretrained(build("vit"), path)
    return path


def test_a_table_and_what_was_written(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "o.safetensors"
    assert cli.main(["convert", str(source), str(target), *ARGUMENTS]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "blocks.*.attn.qkv.weight" in captured.out
    assert captured.out.splitlines()[-1] == f"wrote {target}"
    want = vit_jax.state_dict(build("vit"))
    got = load_file(target)
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)


def test_options_reach_the_conversion(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "o.safetensors"
    options = ["--head=2,0", "--in-chans", "--field=in_chans=1", "--resize=source", "--no-ema"]
    assert cli.main(["convert", str(source), str(target), *ARGUMENTS, *options]) == 0
    adapted = [line for line in capsys.readouterr().out.splitlines() if line.startswith("adapted:")]
    assert len(adapted) == 4  # positions, two arrays of the head, patches
    got = load_file(target)
    assert got["patch_embed.proj.weight"].shape == (8, 1, 4, 4)
    want = vit_jax.state_dict(build("vit"))["head.weight"][[2, 0]]
    np.testing.assert_array_equal(got["head.weight"], want)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--to=torch"], "invalid choice"),
        (["--head=first"], '--head: wanted "drop" or class indices such as 0,5,7'),
        (["--head=0,9"], "indices below 5, got 9"),
        (["--field=depht=3"], "unknown field 'depht'"),
        (["--field=depth"], "--field: wanted NAME=VALUE, got 'depth'"),
        (["--field=img_size=0"], "img_size"),
        (["--resize=cubic"], "resize must be"),
        (["--model=vit_tinny"], "unknown model 'vit_tinny'"),
        (["--ema"], "does not tell averaged weights from others"),
        (["--field=depth=2"], "is of a model with depth=3, this one has 2"),
        (["--to=google"], "written as .npz"),
        (["--rename=norm"], "--rename: wanted REGEX=NEW"),
        (["--rename=(=x"], "rename '(' to 'x': missing )"),
        (["--rename=absent=x"], "rename 'absent': it changes none of the names"),
        (["--rename=bias$=weight"], "it gives two arrays one name"),
        (["--old-grid=2"], "--old-grid: wanted ROWS,COLUMNS such as 14,28"),
        (["--old-grid=2,3"], "needs resize"),
        (["--to=hf"], "is a file"),
        (["source"], "no weights file"),
        (["damaged"], "not a whole safetensors file"),
    ],
)
def test_a_mistake_is_status_2_and_one_line(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: list[str],
    message: str,
) -> None:
    target = tmp_path / "o.safetensors"
    target.write_text("what was there")
    given = str(source)
    if changes == ["source"]:
        given, changes = str(tmp_path / "missing.safetensors"), []
    elif changes == ["damaged"]:
        (tmp_path / "cut.safetensors").write_bytes(source.read_bytes()[:-9])
        given, changes = str(tmp_path / "cut.safetensors"), []
    assert cli.main(["convert", given, str(target), *ARGUMENTS, *changes]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert captured.out == ""
    assert target.read_text() == "what was there"


@pytest.mark.parametrize("missing", [0, 1])
def test_arguments_that_are_needed(capsys: pytest.CaptureFixture[str], missing: int) -> None:
    arguments = ["convert", "a.pth", "b.pth"]
    del arguments[1 + missing]
    assert cli.main(arguments) == 2
    assert "required" in capsys.readouterr().err


def test_names_are_changed_first(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where every name that does not fit is asked for."""
    other, target = tmp_path / "other.safetensors", tmp_path / "o.safetensors"
    whole = load_file(source)
    save_file({f"x/{k}".replace("norm", "ln"): v for k, v in whole.items()}, other)
    command = ["convert", str(other), str(target), *ARGUMENTS]
    assert cli.main([*command, "--list"]) == 2
    captured = capsys.readouterr()
    # Each but those of the head, which the model has not, and the first once more.
    assert captured.err.count("missing: ") == len(whole) - 1
    renamed = [*command, "--rename=^x/=", r"--rename=\bln(\d?)\b=norm\1"]
    assert cli.main(renamed) == 0
    assert load_file(target).keys() == whole.keys()
