"""Images as vectors: those of the model's own evaluation, neighbours by hand, and the command."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vit_jax
from vit_jax.cli import main
from vit_jax.inference import embed as embedding
from vit_jax.inference.embed import closest_pairs, embed, nearest

pytestmark = pytest.mark.xdist_group("run")


@pytest.fixture
def photos(tmp_path: pathlib.Path) -> list[str]:
    """Five pictures of noise, the last a copy of the second; and a file that is none."""
    draw = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        pixels = draw.integers(0, 256, (9 + number, 8), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "4 copy.png").write_bytes((folder / "1.png").read_bytes())
    (folder / "5.png").write_bytes(b"no image")
    return sorted(str(path) for path in folder.iterdir())


def test_features_are_what_the_head_reads(run: pathlib.Path, photos: list[str]) -> None:
    model = vit_jax.from_pretrained(run)
    found = embed(model, photos, batch_size=4)
    assert found.paths == tuple(photos[:5])
    assert list(found.unread) == photos[5:]
    images = vit_jax.preprocess(model, photos[:5])
    head = jax.jit(lambda x: model.forward_head(model.forward_features(x), pre_logits=True))
    want = head(images)
    np.testing.assert_allclose(found.features, want, rtol=0, atol=1e-5)


def test_neighbours_are_those_by_hand_whatever_is_compared_at_a_time(monkeypatch) -> None:
    draw = np.random.default_rng(1)
    features = draw.normal(size=(7, 3))
    features[5], features[6] = 2 * features[2], 0
    unit = features[:6] / np.linalg.norm(features[:6], axis=1, keepdims=True)
    cosines = np.pad(unit @ unit.T, (0, 1))
    np.fill_diagonal(cosines, -np.inf)
    want = np.argsort(-cosines, axis=1, kind="stable")[:, :3]
    for at_a_time in (2**24, 14):  # 14: two of seven
        monkeypatch.setattr(embedding, "SIMILARITIES", at_a_time)
        indices, similarities = nearest(features, 3)
        np.testing.assert_array_equal(indices[:6], want[:6])
        np.testing.assert_allclose(
            similarities, np.take_along_axis(cosines, indices, axis=1), atol=1e-12
        )
    first, second, similarity = closest_pairs(features, 1)[0]
    assert (first, second) == (2, 5)
    assert similarity == pytest.approx(1)
    ranked = sorted(
        ((-cosines[i, j], i, j) for i in range(7) for j in range(i + 1, 7)), key=lambda x: x[0]
    )
    found = [(i, j) for i, j, _ in closest_pairs(features, 4)]
    assert found == [(i, j) for _, i, j in ranked[:4]]
    assert len(closest_pairs(features, 999)) == 21


@pytest.mark.parametrize(
    ("features", "k", "message"),
    [
        (np.ones((3, 2)), 0, "got k=0 of 3"),
        (np.ones((1, 2)), 1, "two features or more, got k=1 of 1"),
        (np.array([[1.0], [np.nan]]), 1, "features that are finite numbers"),
    ],
)
def test_what_has_no_neighbours(features, k, message) -> None:
    with pytest.raises(ValueError, match=message):
        nearest(features, k)


def test_the_command(run, photos, tmp_path, capsys) -> None:
    out, picture = tmp_path / "features.npz", tmp_path / "near.png"
    words = [str(run), *photos, "--out", str(out), "--neighbours", str(picture)]
    assert main(["embed", *words, "--pairs", "2", "--rows", "2", "--columns", "3"]) == 1
    said = capsys.readouterr()
    first = said.out.splitlines()[0].split("  ")
    assert float(first[0]) == pytest.approx(1, abs=1e-4)
    assert first[1:] == [photos[1], photos[4]]
    assert "skipped" in said.err
    assert "5 images, 16 features each, 1 could not be read" in said.err
    with np.load(out) as stored:  # which refuses pickles
        assert stored["paths"].tolist() == photos[:5]
        assert stored["features"].shape == (5, 16)
        assert stored["features"].dtype == jnp.float32
    assert picture.stat().st_size > 5_000
    assert main(["embed", str(run), *photos[:5], "--pairs", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pair"] == [photos[1], photos[4]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to make: wanted --out FILE.npz, --neighbours PICTURE.png or --pairs N"),
        (["--out", "x.txt"], "'x.txt': wanted a file .npz"),
        (["--neighbours", "x.txt"], "'x.txt': wanted a file .png, .jpg"),
        (["--pairs", "0"], "--pairs"),
    ],
)
def test_a_mistake_is_one_line(run, photos, words, message, capsys) -> None:
    assert main(["embed", str(run), photos[0], *words]) == 2
    said = capsys.readouterr().err
    assert message in said.splitlines()[-1]
