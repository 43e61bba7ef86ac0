"""Label files: what is read, what is guessed, which rows are refused; and balanced epochs."""

import collections
from pathlib import Path

import numpy as np
import pytest

from tests.data.conftest import write_png
from vit_jax.data.folder import labels_of
from vit_jax.data.labels import encode, kind_of_labels, read_label_file
from vit_jax.data.loader import train_batches
from vit_jax.data.order import balanced_examples, label_key
from vit_jax.data.sources import ArraySource
from vit_jax.data.splits import open_splits


def folder(path: Path, text: str, count: int = 10) -> Path:
    """Images 0.png ... in a flat folder, with labels.csv beside them; returns the file."""
    for number in range(count):
        write_png(path / f"{number}.png", np.full((4, 4, 3), number, np.uint8))
    (path / "labels.csv").write_text(text)
    return path / "labels.csv"


@pytest.mark.parametrize(
    ("text", "kind", "wanted"),
    [
        ("file,label\n0.png,cat\n1.png,dog\n", "classification", [0, 1]),
        ("label , file\ncat,0.png\n\n1,1.png\n", "classification", [1, 0]),
        ("file,label\n0.png,3\n1.png,1\n", "classification", [1, 0]),
        ("file,label\n0.png,a;b\n1.png,c\n", "multilabel", [[1, 1, 0], [0, 0, 1]]),
        ('file,label\n0.png,"a; b"\n1.png,\n', "multilabel", [[1, 1], [0, 0]]),
        ("file,labels\n0.png,a\n1.png,b\n", "multilabel", [[1, 0], [0, 1]]),
        ("file,label\n0.png,0.5\n1.png,-2\n", "regression", [0.5, -2]),
        ("file,value\n0.png,3\n1.png,1e3\n", "regression", [3, 1000]),
        ("\ufefffile,label\r\n0.png,0.5;1\r\n1.png,2;2\r\n", "regression", [[0.5, 1], [2, 2]]),
        ('file, label\n"./0.png", "b, c"\nx/../1.png, "a"\n', "classification", [1, 0]),
    ],
)
def test_kinds(tmp_path, text, kind, wanted):
    file = read_label_file(folder(tmp_path, text, 2), tmp_path)
    assert kind_of_labels(file) == kind
    np.testing.assert_array_equal(encode(file, kind)[0], wanted)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("", "", "line 1: wanted the header file,label or file,label,split, got nothing"),
        ("0.png,cat\n", "", "line 1: wanted the header .*, got 0.png,cat"),
        ("file,label,colour\n0.png,a,b\n", "", "line 1: wanted the header"),
        ("file,label\n", "", "has no rows below its header"),
        ("file,label\n0.png\n", "", "line 2: wanted 2 columns, got 1$"),
        ("file,label\n0.png,a\n\n9.png,a\n", "", "line 4: there is no .*9.png$"),
        ("file,label\n0.png,a\n./0.png,b\n", "", "line 3: 0.png was in line 2 already"),
        ("file,label\n../0.png,a\n", "", "line 2: wanted a path from the folder, got ../0.png"),
        ("file,label\n/etc/passwd,a\n", "", "line 2: wanted a path from the folder, got /etc"),
        (f"file,label\n{'x' * 300},a\n", "", "line 2: there is no .*x$"),
        ('file,label\n0.png,"a\n1.png,b\n', "", "line 3: no line of a CSV file: unexpected end"),
        ("file,label\n,a\n", "", "line 2: names no file"),
        ("file,label\n0.png,a;;b\n", "", "line 2: an empty label in 'a;;b'"),
        ("file,label\n0.png,a;a\n", "", "line 2: a label twice in 'a;a'"),
        ("file,label,split\n0.png,a,dev\n", "", "line 2: wanted the split train, .* got 'dev'"),
        ("file,label\n" + "x.png,a\n" * 5, "", "line 4: there is no [^;]*; and 2 more"),
        ("file,label\n0.png,a\n1.png,a;b\n", "classification", "line 3: wanted one class, got a;b"),
        ("file,labels\n0.png,\n1.png,\n", "multilabel", "labels.csv: no row has a label"),
        ("file,label\n0.png,1\n1.png,x\n", "regression", "line 3: wanted a number, got x"),
        ("file,label\n0.png,0.5\n1.png,nan\n", None, "line 3: wanted a number, got nan"),
        ("file,label\n0.png,1e39\n1.png,.5\n", None, "line 2: wanted a number, got 1e39"),
        ("file,label\n0.png,1;2\n1.png,1\n", "regression", "line 3: wanted 2 numbers, got 1"),
    ],
)
def test_bad_rows_are_named_by_their_lines(tmp_path, text, kind, message):
    def read(path: Path) -> None:
        file = read_label_file(path, tmp_path)
        encode(file, kind_of_labels(file) if kind is None else kind)

    path = folder(tmp_path, text, 2)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"the label file .*none\.csv cannot be read: No such file"
    ):
        read_label_file(tmp_path / "none.csv", tmp_path)


def test_splits_of_a_label_file(tmp_path):
    rows = "".join(f"{n}.png,{'ab'[n % 2]},{'train' if n < 6 else 'val'}\n" for n in range(9))
    path = folder(tmp_path, "file,label,split\n" + rows)
    splits = open_splits(
        "folder", data_dir=tmp_path, labels_file=path, exclude=["1.png"], test_split=None
    )
    assert labels_of(splits.train).tolist() == [0, 0, 1, 0, 1]
    assert splits.describe() == (
        "2 classes, images: 5 train, 3 validation; left out: 1 image by config.data.exclude; "
        "1 image that labels.csv does not name"
    )
    assert splits.validation is not None
    assert int(splits.validation[0]["image"].max()) == 6
    with pytest.raises(ValueError, match="wanted source 'folder' with it, got 'digits'"):
        open_splits("digits", labels_file=path)
    path.write_text("file,label,split\n0.png,a,train\n1.png,b,test\n")
    with pytest.raises(ValueError, match="line 3: no row of the split train has the class b"):
        open_splits("folder", data_dir=tmp_path, labels_file=path, validation_split=None)


def test_a_flat_folder_is_cut_as_a_folder_of_classes(tmp_path):
    rows = "".join(f"{n}.png,{n}.5\n" for n in range(10))
    splits = open_splits(
        "folder",
        data_dir=tmp_path,
        labels_file=folder(tmp_path, "file,label\n" + rows),
        kind="regression",
    )
    assert [len(part) for part in (splits.train, splits.validation, splits.test) if part] == [
        *(7, 1, 2)
    ]
    example = splits.train[0]
    assert example["label"] == int(example["image"].max()) + 0.5
    assert (splits.train.label_shape, splits.train.label_dtype) == ((), np.float32)


LABELS = np.array([0] * 20 + [1] * 3 + [4] * 2, np.int32)


def test_a_balanced_epoch_shows_every_class_equally_often():
    places, seen = np.arange(25), []
    for epoch in (0, 1):
        positions, indices = balanced_examples(places, label_key(LABELS), 7, epoch)
        counts = collections.Counter(LABELS[positions].tolist())
        assert sorted(counts.values()) == [8, 8, 9]
        # A repeated image has an index, and so an augmentation, of its own.
        assert len(set(indices.tolist())) == 25
        np.testing.assert_array_equal(indices % 25, positions)
        rare = collections.Counter(positions[LABELS[positions] == 4].tolist())
        assert max(rare.values()) - min(rare.values()) <= 1
        seen.append(positions.tolist())
    assert seen[0] != seen[1]


def test_a_balanced_batch_is_a_pure_function_of_seed_and_step():
    images = np.arange(25, dtype=np.uint8).reshape(25, 1, 1, 1)
    source = ArraySource(images, LABELS, class_names="abcde", name="made up")

    def batches(start: int, seed: int = 7) -> list[list[int]]:
        with train_batches(
            source, batch_size=5, seed=seed, start_step=start, num_steps=9 - start, balanced=LABELS
        ) as found:
            return [batch["index"].tolist() for batch in found]

    assert batches(4) == batches(0)[4:]
    assert batches(0, seed=8) != batches(0)
    with pytest.raises(ValueError, match="balanced sampling: repeats must be 1, got 2"):
        train_batches(source, batch_size=5, seed=0, balanced=LABELS, repeats=2)


def _identity(root: Path) -> str:
    splits = open_splits(
        "folder",
        data_dir=root,
        labels_file=root / "labels.csv",
        train_split="all[3:]",
        validation_split="all[:3]",
        test_split=None,
    )
    return splits.identity


def test_the_images_of_a_folder_are_known_again(tmp_path):
    """In another place too; not with another name, label, class, image or order of the splits."""
    rows = [f"{n}.png,{'cat' if n % 2 else 'dog'}" for n in range(10)]
    text = "\n".join(["file,label", *rows])
    first = _identity(folder(tmp_path / "here", text).parent)
    assert first.startswith("10 images ")
    moved = folder(tmp_path / "elsewhere" / "deep", text).parent
    assert _identity(moved) == first
    changed = {
        "label": text.replace("2.png,dog", "2.png,cat"),
        "class": text.replace("cat", "cow"),  # with the labels of before
        "image": text.replace("\n9.png,cat", ""),
    }
    found = [_identity(folder(tmp_path / name, new).parent) for name, new in changed.items()]
    assert len({first, *found}) == 4
    (moved / "0.png").rename(moved / "10.png")
    (moved / "labels.csv").write_text(text.replace("\n0.png", "\n10.png"))
    assert _identity(moved) not in {first, *found}
    assert open_splits("digits", validation_split=None).identity == ""
