"""metrics.jsonl after whatever may have happened to it."""

import json

import pytest

from vit_jax.training.records import Records, read_rows

ROWS = [
    {"step": 5, "split": "train"},
    {"step": 6, "split": "validation"},
    {"step": 10, "split": "train"},
]


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
    records.append({"step": 12, "split": "train"})
    assert read_rows(path) == [*ROWS, {"step": 12, "split": "train"}]


def test_a_broken_line_in_the_middle_is_an_error(path):
    row = '{"step": 1, "split": "train"}\n'
    path.write_text(row + "nonsense\n" + row)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2, is not a row"):
        read_rows(path)
    path.write_text('{"step": 1}\n' + row)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1, is not a row"):
        read_rows(path)


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
