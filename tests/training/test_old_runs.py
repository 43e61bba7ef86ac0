"""Work directories of earlier versions: they predict, and go on where nothing changes the numbers.

`old_runs/VERSION.tar.gz` was written by that version: `run`, of `tiny(ema__decay=0.9)`, stopped
after its first epoch; `all_rows.jsonl`, the rows of the same run to its end; `logits.npy`, what the
checkpoint's model makes of `IMAGES`.
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest

import vit_jax
from tests.training.runs import rows
from vit_jax.config import load_config
from vit_jax.training import train

OLD = sorted((pathlib.Path(__file__).parent / "old_runs").glob("*.tar.gz"))
IMAGES = np.linspace(-1, 1, 2 * 8 * 8, dtype=np.float32).reshape(2, 8, 8, 1)

pytestmark = pytest.mark.xdist_group("runs")


@pytest.fixture(params=OLD, ids=[path.name.removesuffix(".tar.gz") for path in OLD])
def old(request, tmp_path: pathlib.Path) -> pathlib.Path:
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_its_model_computes_what_it_did(old):
    model = vit_jax.from_pretrained(old / "run")
    np.testing.assert_allclose(model(IMAGES), np.load(old / "logits.npy"), rtol=0, atol=1e-6)
    assert model.spec.class_names == tuple("0123456789")
    assert model.spec.preprocessing.resized_from == (8, 8)


def test_it_goes_on_where_it_stopped(old):
    """Its own rows stay as they are; the others are of another kind of machine, perhaps."""
    run = old / "run"
    before = rows(run)
    train(load_config(run / "config.json"), run)
    after = rows(run)
    wanted = [json.loads(line) for line in (old / "all_rows.jsonl").read_text().splitlines()]
    assert after[: len(before)] == before
    assert [(row["split"], row["step"]) for row in after] == [
        (row["split"], row["step"]) for row in wanted
    ]
    for row, want in zip(after, wanted, strict=True):
        want.pop("images_per_second", None)
        assert row.keys() == want.keys()
        for name in ("loss", "ema_loss"):
            if name in row:
                assert row[name] == pytest.approx(want[name], rel=1e-4)


def test_it_is_refused_where_its_pixels_were_others(old):
    """As if it had been trained on random resized crops, which were others then."""
    path = old / "run" / "config.json"
    values = json.loads(path.read_text())
    values["data"]["random_resized_crop"] = True
    path.write_text(json.dumps(values))
    before = rows(old / "run")
    refusal = r"run of vit_jax 0\.1\.0, which drew other random resized crops: finish it with that"
    with pytest.raises(ValueError, match=refusal):
        train(load_config(path), old / "run")
    assert rows(old / "run") == before
    assert json.loads(path.read_text()) == values
