"""metrics.jsonl after whatever may have happened to it."""

import json
from typing import Any

import pytest

from vit_jax.training.records import Records, read_rows


def row(step: int, split: str = "train", loss: float = 0.5) -> dict[str, Any]:
    return {"step": step, "split": split, "epoch": 0.5, "loss": loss, "top1": 0.5, "top5": 1}


ROWS = [row(5), row(6, "validation"), row(10)]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_missing_file_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("tail", ['{"step": 11, "sp', '{"step": 11, "sp\n', '{"step": 11}'])
def test_half_a_line_is_dropped(path, tail):
    path.write_text(path.read_text() + tail)
    records = Records(path, read_rows(path), write=True)
    assert records.rows == ROWS
    records.cut_back(10)
    records.append(row(12))
    assert read_rows(path) == [*ROWS, row(12)]


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[" * 100_000,
        "[]",
        '{"step": 1}',
        *(
            json.dumps(row(7) | changed)
            for changed in ({"step": "7"}, {"step": 7.0}, {"split": 3}, {"loss": "0.1"})
        ),
        json.dumps(row(7)).replace('"step": 7', '"step": 1e400'),
    ],
    ids=range(9),
)
def test_a_line_that_is_no_row_is_an_error(path, line):
    path.write_text(path.read_text() + line + "\n" + json.dumps(row(12)) + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 4, is not a row") as error:
        read_rows(path)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (ROWS, []),
        (ROWS[:2], ["1 of 2 train"]),
        (ROWS[1:], ["1 of 2 train"]),
        ([], ["2 of 2 train, 1 of 1 validation"]),
        ([*ROWS, ROWS[1]], ["1 rows twice"]),
        ([*ROWS, *ROWS], ["3 rows twice"]),
        ([ROWS[0], ROWS[0], ROWS[1]], ["1 rows twice", "1 of 2 train"]),
        ([ROWS[2], ROWS[0], ROWS[1]], []),
    ],
)
def test_rows_that_are_lost_or_doubled_are_said(path, left, said):
    path.write_text("".join(json.dumps(row) + "\n" for row in [*left, row(12)]))
    records = Records(path, read_rows(path), write=True)
    remarks = records.cut_back(10, {"train": 2, "validation": 1})
    assert len(remarks) == len(said)
    for remark, words in zip(remarks, said, strict=True):
        assert words in remark
    assert read_rows(path) == [row for row in ROWS if row in left]


@pytest.mark.parametrize("change", ["gone", "cut", "longer"])
def test_a_file_that_was_changed_in_mid_run_is_written_anew(path, change):
    records = Records(path, read_rows(path), write=True)
    records.cut_back(10)
    assert records.append(row(12))
    text = {"gone": None, "cut": json.dumps(ROWS[0]) + "\n", "longer": path.read_text() * 2}[change]
    path.unlink() if text is None else path.write_text(text)
    assert not records.append(row(15))
    assert records.append(row(18))
    assert read_rows(path) == [*ROWS, row(12), row(15), row(18)]


def test_cut_back_keeps_rows_up_to_the_step(path):
    records = Records(path, read_rows(path), write=True)
    records.cut_back(6)
    assert records.rows == read_rows(path) == ROWS[:2]


def test_find_gives_the_last_of_a_split(path):
    records = Records(path, read_rows(path), write=True)
    assert records.find("train") == ROWS[2]
    assert records.find("train", 5) == ROWS[0]
    assert records.find("validation", 10) is None
    assert records.find("test") is None
