"""The layer table: its rows add up to the model's totals, and say what each layer has."""

import io
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

import vit_jax
from tests.models.families import FAMILIES
from tests.tiers import mostly_slow
from tests.weights.designs import redraw
from vit_jax import cli
from vit_jax.cli import jax_setup
from vit_jax.inspect.summary import LayerRow, Summary, _kept_bytes, print_summary, summarize
from vit_jax.layers.variables import Frozen
from vit_jax.models.macs import count_macs
from vit_jax.models.registry import abstract_model

SEEDS: dict[str, tuple[str, dict[str, Any]]] = {
    "encoder": ("vit_encoder", {"img_size": 8, "depth": 2, "embed_dim": 16, "mlp_dim": 8}),
    "modular": ("vit_modular", {"img_size": 8, "depth": 2, "embed_dim": 16, "mlp_dim": 8}),
    "shared": (
        "vit_modular",
        {"img_size": 8, "depth": 3, "embed_dim": 16, "mlp_dim": 8, "share_layers": True},
    ),
}


def rows_of(summary: Summary) -> dict[str, LayerRow]:
    assert len({row.name for row in summary.rows}) == len(summary.rows)
    return {row.name: row for row in summary.rows}


@pytest.mark.parametrize(
    "design", mostly_slow([*FAMILIES, *SEEDS], ["vit", "t2t performer", "classifier", "shared"])
)
def test_rows_add_up_to_the_model(design):
    name, fields = (FAMILIES | SEEDS)[design]
    model = abstract_model(name, **fields | ({} if design == "t2t dense" else {"depth": 2}))
    images = jax.ShapeDtypeStruct((1, *model.img_size, 3), jnp.float32)
    whole, parts = summarize(model), summarize(model, depth=1)
    for summary in (whole, parts):
        trainable, frozen = (
            sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, kind)))
            for kind in (nnx.Param, Frozen)
        )
        assert sum(row.trainable for row in summary.rows) == trainable == summary.trainable
        assert sum(row.frozen for row in summary.rows) == frozen == summary.frozen
        assert sum(row.macs for row in summary.rows) == count_macs(model, images) == summary.macs
        assert summary.parameter_bytes == 4 * (trainable + frozen)
    assert whole.activation_bytes == parts.activation_bytes > 0
    assert max(row.depth for row in parts.rows) == 1
    assert not model.deterministic  # it stays in train mode


def test_what_the_rows_of_a_block_hold():
    """Formulas of a block of D = 8, 2 heads, N = 1 + 2 * 3 tokens."""
    model = abstract_model(*FAMILIES["vit"][:1], **FAMILIES["vit"][1])
    rows = rows_of(summarize(model, batch_size=3))
    tokens, dim = 7, 8
    assert rows["pos_embed"] == LayerRow("pos_embed", "Param", 1, (1, tokens, dim), tokens * dim)
    assert rows["patch_embed"].output_shape == (3, 6, dim)
    assert rows["patch_embed.proj"].parameters == 4 * 4 * 3 * dim + dim
    assert rows["blocks.1.attn.qkv"].output_shape == (3, tokens, 3 * dim)
    assert rows["blocks.1.attn.qkv"].macs == 3 * tokens * dim * 3 * dim
    # The products of attention are its own, in no Linear of it.
    assert rows["blocks.1.attn"].macs == 3 * 2 * tokens * tokens * dim
    assert rows["blocks.1.attn"].parameters == 0
    assert rows["blocks.1.mlp"].macs == 0
    assert rows["blocks.1"].depth == 1
    assert rows["head"].output_shape == (3, 1000)
    names = list(rows)
    assert names.index("pos_embed") < names.index("patch_embed") < names.index("blocks.0.norm1")


def test_a_row_at_the_limit_holds_what_is_inside_it():
    name, fields = FAMILIES["t2t performer"]
    model = abstract_model(name, **fields | {"depth": 1})
    whole, parts = (summarize(model, depth=depth) for depth in (None, 1))
    inside = [row for row in whole.rows if row.name.startswith("tokens_to_token")]
    folded = rows_of(parts)["tokens_to_token"]
    for count in ("trainable", "frozen", "macs", "activation_bytes"):
        assert getattr(folded, count) == sum(getattr(row, count) for row in inside) > 0
    assert rows_of(whole)["tokens_to_token.attention1.w"].type == "Frozen"
    assert [row.name for row in summarize(model, depth=0).rows] == [""]


def test_activations_are_what_a_backward_pass_keeps():
    """Of sin(x w) the cosine is made and kept, x and w are given; of x + 1 nothing is."""

    def backward(w, x):
        def call(w):
            with jax.named_scope("layer:0"):
                x_plus = x + 1
                with jax.named_scope("layer:1"):
                    return jnp.sin(x @ w) * x_plus.sum()

        return jax.vjp(call, w)[1]

    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 5), (2, 3)))
    assert _kept_bytes(jax.make_jaxpr(backward)(*shapes).jaxpr) == {1: 2 * 5 * 4 + 4}


def test_attention_weights_are_activations():
    summary = summarize(abstract_model(*FAMILIES["vit"][:1], **FAMILIES["vit"][1]))
    products = 4 * (2 * 7 * 7 + 3 * 7 * 8)  # bytes of softmax(q k^T) of 2 heads, of q, k and v
    rows = rows_of(summary)
    assert products <= rows["blocks.0.attn"].activation_bytes < 2 * products  # softmax keeps more
    assert rows["pos_embed"].activation_bytes == rows["blocks.0.attn.qkv"].activation_bytes == 0


def test_the_form_of_a_model_does_not_matter():
    plain, scanned, remat = (
        summarize(abstract_model("vit_tiny_patch16_224", img_size=32, depth=2, **form))
        for form in ({}, {"scan_layers": True}, {"remat": "blocks"})
    )
    assert plain == scanned == remat


def test_shared_layers_count_their_parameters_once_and_their_products_each_time():
    rows = rows_of(summarize(abstract_model(SEEDS["shared"][0], **SEEDS["shared"][1]), depth=1))
    layers = [row for name, row in rows.items() if name.startswith("transformer_layer")]
    first, second, third = layers
    assert second.name == f"{first.name}#1"
    assert (first.parameters > 0, second.parameters, third.parameters) == (True, 0, 0)
    assert first.macs == second.macs == third.macs > 0


def test_the_printed_table():
    name, fields = FAMILIES["t2t performer"]
    model = abstract_model(name, **fields | {"depth": 1})
    console = Console(width=80, record=True, file=io.StringIO())
    print_summary(summarize(model), console)
    text = console.export_text()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    qkv = next(line for line in lines if line.split()[:2] == ["qkv", "Linear"])
    assert qkv.split()[2:4] == ["1x2x24", "192"]
    assert qkv.startswith("      qkv")
    assert "frozen)" in text
    told = " ".join(text.split())
    assert "on a GPU: 1 plain: it computes in float32, and cuDNN in bfloat16 and float16;" in told
    assert "…" not in text


@pytest.fixture
def as_command(monkeypatch):
    monkeypatch.setattr(jax_setup, "set_up_jax", lambda: None)  # it is for whole processes


def test_the_command(as_command, capsys):
    arguments = ["t2t_vit_7", "--img-size=16x32", "--field=depth=1", "--depth=1", "--json"]
    assert cli.main(["summary", *arguments, "--batch-size=2"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["input_shape"] == [2, 16, 32, 3]
    assert shown["parameters"] == sum(row["trainable"] + row["frozen"] for row in shown["rows"])
    names = [row["name"] for row in shown["rows"]]
    assert names[:4] == ["", "cls_token", "pos_embed", "tokens_to_token"]
    assert "blocks.0" in names
    assert "blocks.1" not in names


@pytest.mark.xdist_group("run")
def test_the_command_of_a_run_reads_no_weights(as_command, capsys, run, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr("vit_jax.weights.load.load_into", refuse)
    checkpoint = max((run / "checkpoints").iterdir())
    for source in (run, checkpoint):
        assert cli.main(["summary", str(source)]) == 0
        assert "images 1x8x8x1" in capsys.readouterr().out


def test_the_command_of_weights(as_command, capsys, tmp_path):
    fields = {"img_size": 12, "depth": 1, "mlp_head_units": (4,)}
    model = redraw(abstract_model("vit_classifier", **fields))
    vit_jax.save_pretrained(model, tmp_path / "w.safetensors")
    options = [f"--field={name}={value}" for name, value in fields.items()]
    path = str(tmp_path / "w.safetensors")
    assert cli.main(["summary", path, "--model=vit_classifier", *options, "--json"]) == 0
    arrays = vit_jax.state_dict(model).values()
    assert json.loads(capsys.readouterr().out)["parameters"] == sum(map(np.size, arrays))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vit_tiny"], "unknown model 'vit_tiny'; near: "),
        (["vit_encoder", "--img-size=a"], "--img-size: wanted N or HxW in pixels, got 'a'"),
        (["vit_encoder", "--batch-size=0"], "batch-size: wanted a number of at least 1"),
        (["vit_encoder", "--model=vit_encoder"], "--model is for weights"),
        (["vit_encoder", "--field=deep=2"], "deep"),
        (["./nowhere", "--model=vit_encoder"], "no weights file"),
    ],
)
def test_mistakes(as_command, arguments, message, capsys):
    assert cli.main(["summary", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
