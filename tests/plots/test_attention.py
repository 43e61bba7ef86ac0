"""`vit-jax plot attention`: the heat maps are the model's attention."""

from collections.abc import Callable

import jax
import numpy as np
import pytest

import vit_jax
from tests.data.conftest import write_png
from tests.models.families import FAMILIES, build, images
from vit_jax import cli
from vit_jax.data.host_crop import evaluation_crop
from vit_jax.inspect.attention import attention_maps, attention_rollout, token_attention_maps
from vit_jax.inspect.heat_maps import HeatMap, heat_maps
from vit_jax.models.base import VisionModel
from vit_jax.plots.attention import draw_attention

pytestmark = pytest.mark.xdist_group("attention plots")


@pytest.fixture(scope="module")
def vit() -> VisionModel:
    """6 patches in rows of 3, 2 heads, 3 blocks."""
    return build("vit")


@pytest.fixture(scope="module")
def maps(vit: VisionModel) -> list[np.ndarray]:
    return maps_of(vit, images())


def maps_of(
    model: VisionModel, batch: jax.Array, of: Callable = attention_maps
) -> list[np.ndarray]:
    """In the order of the layers, which is that of their names."""
    return list(map(np.asarray, jax.jit(lambda x: of(model, x))(batch).values()))


def test_what_the_class_token_attends_to_in_a_block(vit, maps):
    (mean,) = heat_maps(vit, images(), "1")
    wanted = 7 * maps[1][:, :, 0, 1:].reshape(2, 2, 2, 3)
    np.testing.assert_allclose(mean.weights, wanted.mean(axis=1), rtol=1e-5)
    heads = heat_maps(vit, images(), "1", heads=True)
    for number, one_map in enumerate(heads):
        np.testing.assert_allclose(one_map.weights, wanted[:, number], rtol=1e-5)
    assert [one_map.caption for one_map in heads] == ["block 1, head 0", "block 1, head 1"]
    (last,) = heat_maps(vit, images(), "last")
    np.testing.assert_allclose(
        last.weights.reshape(2, 6), 7 * maps[2][:, :, 0, 1:].mean(axis=1), rtol=1e-5
    )


def test_rollout(vit, maps):
    (one_map,) = heat_maps(vit, images(), "rollout")
    wanted = 7 * np.asarray(jax.jit(attention_rollout)(maps))[:, 0, 1:].reshape(2, 2, 3)
    np.testing.assert_allclose(one_map.weights, wanted, rtol=1e-5)
    assert one_map.caption == "rollout over 3 blocks"


def test_the_implied_attention_of_performers():
    model = build("t2t performer", depth=1)  # 8x12 pixels: 2 x 3 tokens, then 1 x 2
    maps = maps_of(model, images(), token_attention_maps)
    shown = heat_maps(model, images(), "tokens")
    assert [one_map.weights.shape for one_map in shown] == [(2, 2, 3)] * 2 + [(2, 1, 2)] * 2
    marked = 1 * 3 + 1
    np.testing.assert_allclose(shown[0].weights.reshape(2, 6), 6 * maps[0][:, 0, marked], rtol=1e-4)
    np.testing.assert_allclose(
        shown[3].weights.reshape(2, 2), 2 * maps[1][:, 0].mean(axis=1), rtol=1e-4
    )
    assert shown[0].mark == (5, 5)  # of windows of 7 pixels from -2, each 4 after the last
    assert shown[1].mark is None


def test_the_picture(figures, tmp_path):
    seen = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    shown = [
        HeatMap("one", np.arange(12.0).reshape(2, 2, 3)),
        HeatMap("two", np.ones((2, 2, 3)), (1, 2)),
    ]
    draw_attention(seen, ["a", "b"], shown, "title", tmp_path / "o.png")
    for number, part in enumerate(figures[0].subfigs):
        first, one, two, bar = part.axes
        np.testing.assert_array_equal(first.images[0].get_array(), seen[number])
        assert [a.get_title() for a in (first, one, two)] == ["ab"[number], "one", "two"]
        for axes, one_map in ((one, shown[0]), (two, shown[1])):
            heat = axes.images[1]
            np.testing.assert_array_equal(heat.get_array(), one_map.weights[number])
            assert tuple(heat.get_extent()) == (-0.5, 11.5, 7.5, -0.5)  # all of the image
        assert one.images[1].get_clim() == two.images[1].get_clim()
        assert [line.get_xydata().tolist() for line in two.lines] == [[[2, 1]]]
        assert not one.lines
        assert bar.get_ylabel() == "attention (1: the same for all)"


def test_the_command(figures, tmp_path, capsys, vit):
    name, fields = FAMILIES["vit"]
    vit_jax.save_pretrained(vit, tmp_path / "w.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", pixels)
    model = ["--model", name, *(f"--field={key}={value!r}" for key, value in fields.items())]
    start = ["plot", "attention", str(tmp_path / "w.safetensors"), str(tmp_path / "a.png"), *model]
    assert cli.main([*start, "--heads", "--out", str(tmp_path / "o.png")]) == 0
    first, *heads, _ = figures[0].subfigs[0].axes
    facts = vit.spec.preprocessing
    seen = evaluation_crop(pixels, 8, 12, facts.crop_fraction, facts.interpolation)
    np.testing.assert_array_equal(first.images[0].get_array(), seen)
    normal = ((seen[None] / 255 - 0.5) / 0.5).astype(np.float32)
    wanted = 7 * maps_of(vit, normal)[2][0, :, 0, 1:]
    for axes, weights in zip(heads, wanted, strict=True):
        np.testing.assert_allclose(axes.images[1].get_array().ravel(), weights, rtol=1e-3)
    vit.eval()
    assert first.get_title().startswith(f"a.png\n{int(jax.jit(vit)(normal).argmax())} (")
    for options, message in (
        (["--method", "3"], "the number of a block from 0 to 2, got '3'"),
        (["--method", "rollout", "--heads"], "'rollout' has no heads"),
        (["--method", "tokens"], "wanted a T2T-ViT with tokens_type"),
    ):
        assert cli.main([*start, *options, "--out", str(tmp_path / "p.png")]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ")
        assert message in error


def test_a_model_without_a_class_token():
    model = build("vit", class_token=False, global_pool="avg", depth=1)
    (one_map,) = heat_maps(model, images(), "last")
    (attention,) = maps_of(model, images())
    np.testing.assert_allclose(
        one_map.weights.reshape(2, 6), 6 * attention.mean(axis=(1, 2)), rtol=1e-5
    )
    with pytest.raises(ValueError, match="wanted rollout, last, tokens, or the number"):
        heat_maps(model, images(), "first")
