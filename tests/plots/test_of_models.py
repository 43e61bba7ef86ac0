"""Patches, soft splits, positions, filters: what is drawn is what the model has."""

import cv2
import jax
import numpy as np
import pytest

import vit_jax
from tests.data.conftest import write_png
from tests.models.families import FAMILIES, build
from tests.weights.designs import redraw
from vit_jax import cli
from vit_jax.inspect.embeddings import first_filters, position_similarity
from vit_jax.layers.soft_splits import soft_split_windows
from vit_jax.layers.tokens_to_token import GEOMETRY
from vit_jax.layers.unfold import extract_patches, unfold
from vit_jax.models.base import VisionModel
from vit_jax.models.registry import abstract_model
from vit_jax.plots.filters import as_picture, principal_components
from vit_jax.plots.patches import apart
from vit_jax.plots.positions import draw_positions
from vit_jax.plots.soft_splits import windows_apart

# The others share the stem with one of these.
LEARNED = ["vit", "deit3", "classifier", "vit_encoder", "vit_modular"]
STEMS = ["vit", "classifier", "vit_encoder", "vit_modular"]
T2T_STEMS = ["t2t performer", "t2t transformer", "t2t convolution"]


def tiny(design: str, **fields) -> VisionModel:
    if design in FAMILIES:
        return build(design, **fields)
    small = {"img_size": (8, 12), "embed_dim": 16, "depth": 1, "mlp_dim": 8, "max_tokens": 30}
    return redraw(abstract_model(design, **{**small, **fields}))


def pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def saved(design: str, path) -> list[str]:
    """Weights in a file, and the arguments that say of what."""
    name, fields = FAMILIES[design]
    vit_jax.save_pretrained(build(design), path)
    return [str(path), "--model", name, *(f"--field={key}={v!r}" for key, v in fields.items())]


def test_patches(figures, tmp_path, capsys):
    names = ("a.png", "b.png")
    images = [pixels(8, 8), 255 - pixels(8, 8)]
    paths = [str(tmp_path / name) for name in names]
    for path, image in zip(names, images, strict=True):
        write_png(tmp_path / path, image)
    out = str(tmp_path / "patches.png")
    model = ["--model", "vit_classifier", "--field=img_size=8", "--field=patch_size=2"]
    assert cli.main(["plot", "patches", *paths, *model, "--out", out]) == 0
    axes = figures[0].axes
    assert [one.get_title() for one in axes[::2]] == [f"{name}: 8 x 8 pixels" for name in names]
    assert axes[1].get_title() == "16 patches (4 x 4) of 2 x 2 pixels"
    for number, image in enumerate(images):
        np.testing.assert_array_equal(axes[2 * number].images[0].get_array(), image)
        drawn = axes[2 * number + 1].images[0].get_array()
        np.testing.assert_array_equal(drawn, apart(image, (2, 2)))


def test_patches_stand_apart_at_their_places():
    image = pixels(10, 15)
    sheet = apart(image, (5, 5))  # a space of one pixel
    assert sheet.shape == (2 * 6 - 1, 3 * 6 - 1, 3)
    np.testing.assert_array_equal(sheet[6:, 12:], image[5:, 10:])
    assert (sheet[5] == 255).all()
    assert (sheet[:, 5] == 255).all()


def test_what_a_token_of_each_soft_split_covers():
    size = (48, 64)
    seen = _seen(size)
    for number, split in enumerate(soft_split_windows(size)):
        for row, column in ((0, 0), (2, 1), (split.grid[0] - 1, split.grid[1] - 1)):
            touched = np.zeros(size, bool)
            top, left, tall, wide = split.box(row, column)
            touched[max(0, top) : top + tall, max(0, left) : left + wide] = True
            reached = np.zeros(size[0] * size[1] + 1, bool)
            reached[seen[number][row * split.grid[1] + column]] = True  # 0 is padding
            np.testing.assert_array_equal(reached[1:].reshape(size), touched)


def _seen(size) -> list[np.ndarray]:
    """Of each token of each split the pixels that the unfolds bring into it, counted from 1."""

    @jax.jit
    def unfolded(index: jax.Array) -> list[jax.Array]:
        tokens, grid, found = index, size, []
        for kernel, stride, padding in GEOMETRY:
            pair = ((kernel, kernel), (stride, stride), (padding, padding))
            tokens = unfold(tokens.reshape(1, *grid, -1), *pair)
            grid = tuple((n + 2 * padding - kernel) // stride + 1 for n in grid)
            found.append(tokens[0])
        return found

    index = np.arange(1, size[0] * size[1] + 1, dtype=np.float32).reshape(1, *size, 1)
    return [np.asarray(tokens, int) for tokens in unfolded(index)]


def test_soft_splits(figures, tmp_path):
    image = pixels(64, 64)
    write_png(tmp_path / "a.png", image)
    model = ["--model", "t2t_vit_7", "--field=img_size=64", "--field=depth=1"]
    out = tmp_path / "splits.png"
    assert (
        cli.main(["plot", "soft-splits", str(tmp_path / "a.png"), *model, "--out", str(out)]) == 0
    )
    above, below = figures[0].axes[::2], figures[0].axes[1::2]
    for number, grid, values in ((0, 16, 147), (1, 8, 576), (2, 4, 576)):
        title = above[number].get_title()
        assert f"{grid} x {grid} = {grid**2} tokens" in title
        assert f"= {values} values" in title
        assert len(above[number].collections[0].get_offsets()) == grid**2
        split = soft_split_windows((64, 64))[number]
        boxes = above[number].patches
        assert [box.get_width() for box in boxes] == [split.covered] * 2
        assert boxes[1].get_x() - boxes[0].get_x() == split.step
        shown = above[number].images[0].get_array()
        drawn = below[number].images[0].get_array()
        np.testing.assert_array_equal(drawn, windows_apart(np.asarray(shown), split, 5))
    assert "covers 31 x 31 pixels" in below[2].get_title()


def test_windows_apart_are_the_unfold_of_the_image():
    image = pixels(32, 32)
    split = soft_split_windows((32, 32))[0]
    sheet = windows_apart(image, split, 99)
    side = 7 * 5  # made five times larger
    space = side // 8
    unfolded = jax.jit(lambda images: unfold(images, (7, 7), (4, 4), (2, 2)))
    windows = np.asarray(unfolded(image[None].astype(np.float32))[0])
    for row, column in ((0, 0), (3, 5), (7, 7)):
        top, left = row * (side + space), column * (side + space)
        drawn = sheet[top : top + side : 5, left : left + side : 5]
        window = windows[row * 8 + column].reshape(3, 7, 7).transpose(1, 2, 0)
        np.testing.assert_array_equal(drawn, window)


@pytest.mark.parametrize("design", LEARNED)
def test_positions_are_those_that_the_model_adds(design):
    model = tiny(design)
    table = np.random.default_rng(0).normal(size=(6, model.config.embed_dim))
    model.eval()
    # Found by what it does: the change of the tokens' positions as state_dict names them.
    names = {
        "vit_encoder": "positon_embedding_table",
        "vit_modular": "pos_emb.positional_encodings",
    }
    name = names.get(design, "patch_embedding_layer.position_emb.weight")
    weights = vit_jax.state_dict(model)
    name = name if name in weights else "pos_embed"
    array = weights[name].copy()
    flat = array.reshape(-1, model.config.embed_dim)
    first = 0 if design == "deit3" else model.num_prefix_tokens
    flat[first : first + 6] = table
    vit_jax.load_state_dict(model, weights | {name: array})
    similarity = position_similarity(model)
    assert similarity.shape == (2, 3, 2, 3)
    norms = np.linalg.norm(table, axis=1)
    wanted = (table @ table.T) / np.outer(norms, norms)
    np.testing.assert_allclose(similarity.reshape(6, 6), wanted, atol=1e-6)


def test_the_picture_of_positions(figures, tmp_path):
    out = tmp_path / "positions.png"
    arguments = saved("vit", tmp_path / "w.safetensors")
    assert cli.main(["plot", "positions", *arguments, "--out", str(out)]) == 0
    axes, bar = figures[0].axes
    similarity = position_similarity(build("vit"))
    sheet = np.ma.filled(axes.images[0].get_array(), np.nan)
    np.testing.assert_allclose(sheet[3:5, 4:7], similarity[1, 1], atol=1e-6)
    assert np.isnan(sheet[2]).all()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("column of the patch", "row of the patch")
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "3"]
    assert bar.get_ylabel() == "cosine similarity to the other patches"
    assert cv2.imread(str(out)) is not None


def test_positions_of_a_large_grid_have_few_labels(figures, tmp_path):
    draw_positions(np.ones((24, 24, 24, 24)), "a title", tmp_path / "o.png")
    labels = [text.get_text() for text in figures[0].axes[0].get_yticklabels()]
    assert labels == [str(i) for i in range(1, 24, 2)]


@pytest.mark.parametrize("design", [*STEMS, *T2T_STEMS])
def test_filters_are_what_the_first_projection_does(design):
    """Patches times the filters are patches times the weights in PyTorch's layout."""
    model = tiny(design)
    filters = first_filters(model)
    assert filters.shape[3] == 3
    if not design.startswith("t2t"):
        images = np.random.default_rng(0).normal(size=(1, 8, 12, 3)).astype(np.float32)
        cut = jax.jit(lambda images: extract_patches(images, filters.shape[1:3]))
        patches = np.asarray(cut(images))
        ours = patches @ filters.transpose(3, 1, 2, 0).reshape(patches.shape[-1], -1)
        weights = vit_jax.state_dict(model)
        name = next(
            key
            for key in weights
            if key in ("weight", "patch_embed.weight", "pacth_emb.conv.weight")
            or key.endswith(("patch_embed.proj.weight", "projection_layer.weight"))
        )
        torch = weights[name]
        torch = torch.T if torch.ndim == 2 and design == "vit_encoder" else torch
        np.testing.assert_allclose(ours, patches @ torch.reshape(len(torch), -1).T, atol=1e-4)
        return
    weights = vit_jax.state_dict(model)
    if design == "t2t convolution":
        torch = weights["tokens_to_token.soft_split0.weight"]
    else:
        name = "attention1.attn.qkv" if design == "t2t transformer" else "attention1.kqv"
        torch = weights[f"tokens_to_token.{name}.weight"]
        torch = torch * weights["tokens_to_token.attention1.norm1.weight"]
    np.testing.assert_allclose(filters, torch.reshape(-1, 3, 7, 7).transpose(0, 2, 3, 1), atol=1e-6)


def test_principal_components():
    """Filters on a plane through their mean have two, which explain all of it."""
    generator = np.random.default_rng(0)
    plane, _ = np.linalg.qr(generator.normal(size=(27, 2)))
    weights = generator.normal(size=(40, 2)) * (5, 1)
    filters = (plane @ weights.T).T + 3.0
    components, shares = principal_components(filters.reshape(40, 3, 3, 3), 3)
    assert shares[:2].sum() == pytest.approx(1)
    assert shares[0] > 0.9
    assert abs(components[0].ravel() @ plane[:, 0]) == pytest.approx(1, abs=0.02)


def test_a_filter_as_a_picture():
    one = np.zeros((2, 2, 3))
    one[0, 0] = (2, -2, 1)
    np.testing.assert_array_equal(as_picture(one)[0, 0], [255, 0, 191])
    np.testing.assert_array_equal(as_picture(one)[1, 1], [128, 128, 128])
    side_by_side = as_picture(np.concatenate([one, one[:, :, :1]], axis=2))
    assert side_by_side.shape == (2, 8, 1)
    assert side_by_side[0, ::2, 0].tolist() == [255, 0, 191, 255]


def test_the_picture_of_filters(figures, tmp_path):
    out = tmp_path / "filters.png"
    arguments = saved("t2t performer", tmp_path / "w.safetensors")
    assert cli.main(["plot", "filters", *arguments, "--out", str(out)]) == 0
    filters = first_filters(build("t2t performer"))  # 12 of them
    components, largest = (part.axes for part in figures[0].subfigs)
    assert len(components) == len(largest) == 12
    strongest = filters[np.argmax(np.square(filters).sum(axis=(1, 2, 3)))]
    np.testing.assert_array_equal(largest[0].images[0].get_array(), as_picture(strongest))
    caption = figures[0].subfigs[1].texts[0].get_text()
    assert caption == "12 of 12 filters, the largest first"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["patches", "a.png", "--model", "t2t_vit_7"], "`vit-jax plot soft-splits` draws them"),
        (["soft-splits", "a.png", "--model", "vit_encoder"], "that have them: t2t_vit_10, "),
        (["patches", "a.png", "--model", "vit_tini"], "unknown model 'vit_tini'; near: "),
        (["patches", "none.png", "--model", "vit_encoder"], "none.png"),
        (["positions", "W"], "computed, not learned; models that learn them: vit_*"),
    ],
)
def test_mistakes(figures, arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_png(tmp_path / "a.png", pixels(8, 8))
    if arguments[-1] == "W":
        arguments = [arguments[0], *saved("t2t performer", tmp_path / "w.safetensors")]
    assert cli.main(["plot", *arguments, "--out", "o.png"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "o.png").exists()
