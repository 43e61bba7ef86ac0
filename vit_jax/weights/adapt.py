"""A state dict fitted to a model of another image size, number of classes or number of channels.

Each only when asked for, and each reported. What is not asked for stays as it is, for
`load_state_dict` to refuse. The rules are timm's (1.0.31: models/_manipulate.py,
models/vision_transformer.py) where it has one.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.layers.checks import check_bool, check_choice, check_int
from vit_jax.layers.patch_embed import patch_grid
from vit_jax.layers.position import sinusoid_table
from vit_jax.layers.tokens_to_token import GEOMETRY, TokensToToken
from vit_jax.models.base import VisionModel
from vit_jax.models.classifier_vit import ViTClassifier
from vit_jax.models.encoder_vit import EncoderViT
from vit_jax.models.modular_vit import ModularViT
from vit_jax.models.t2t_vit import TokensToTokenModel
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.patch_channels import PatchWeights, adapt_channels
from vit_jax.weights.resize import METHODS, check_grid, resize_pos_embed
from vit_jax.weights.state_dict import state_dict

RESIZE = ("source", *METHODS)


@dataclasses.dataclass(frozen=True)
class _Design:
    """What of a model can be adapted, under the names of its state dict.

    Attributes:
      positions: the position table; rows: of the model's; prefix: its rows before the patches'.
      grid: rows and columns of the patches; None where the positions are those of a sequence.
      sinusoid: whether the table is a formula of its number of rows.
      patches: the layer that reads the channels.
      heads: the last Linears; None is the identity.
    """

    positions: str
    rows: int
    patches: PatchWeights
    heads: dict[str, nnx.Linear | None]
    grid: tuple[int, int] | None = None
    prefix: int = 1
    sinusoid: bool = False


def _t2t_patches(tokens: TokensToToken) -> PatchWeights:
    if tokens.tokens_type == "convolution":
        return PatchWeights("tokens_to_token.soft_split0.weight")
    layer, window = "tokens_to_token.attention1", GEOMETRY[0][0] ** 2
    norm = f"{layer}.norm1"
    if tokens.tokens_type == "transformer":
        return PatchWeights(f"{layer}.attn.qkv.weight", window=window, norm=norm)
    bias = f"{layer}.kqv.bias"
    return PatchWeights(f"{layer}.kqv.weight", window=window, norm=norm, bias=bias)


def _design(model: VisionModel) -> _Design:
    if isinstance(model, VisionTransformer):
        return _Design(
            positions="pos_embed",
            rows=model.pos_embed.shape[1],
            grid=model.patch_embed.grid_size,
            prefix=0 if model.no_embed_class else model.num_prefix_tokens,
            patches=PatchWeights("patch_embed.proj.weight"),
            heads={"head": model.head}
            | ({"head_dist": model.head_dist} if model.distilled else {}),
        )
    if isinstance(model, TokensToTokenModel):
        return _Design(
            positions="pos_embed",
            rows=model.pos_embed.shape[1],
            grid=model.tokens_to_token.grid_size,
            sinusoid=True,
            patches=_t2t_patches(model.tokens_to_token),
            heads={"head": model.head},
        )
    if isinstance(model, ViTClassifier):
        embedding, window = "patch_embedding_layer", math.prod(model.patch_size)
        return _Design(
            positions=f"{embedding}.position_emb.weight",
            rows=model.patch_embedding_layer.position_emb.embedding.shape[0],
            grid=patch_grid(model.img_size, model.patch_size),
            patches=PatchWeights(f"{embedding}.projection_layer.weight", window=window),
            heads={"logits_layer": model.logits_layer},
        )
    if isinstance(model, EncoderViT):
        return _Design(
            positions="positon_embedding_table",  # so spelt in the source
            rows=model.max_tokens,
            patches=PatchWeights("weight", axis=0, window=math.prod(model.patch_size)),
            heads={"linear_layer": model.linear_layer},
        )
    assert isinstance(model, ModularViT), type(model)
    return _Design(
        positions="pos_emb.positional_encodings",
        rows=model.max_tokens,
        patches=PatchWeights("pacth_emb.conv.weight"),  # so spelt in the source
        heads={"classification.linear2": model.classification.linear2},
    )


def _rows(array: np.ndarray) -> int:
    return array.shape[0] if array.ndim else 0


def _old_grid(design: _Design, rows: int, grid: Sequence[int] | None) -> tuple[int, int]:
    """The grid of a table of so many rows: as given, else square."""
    if grid is not None:
        return check_grid("old_grid", grid)
    patches = rows - design.prefix
    side = math.isqrt(max(patches, 0))
    if not side or side**2 != patches:
        raise ValueError(
            f"{design.positions} of the state dict has {rows} rows: less the {design.prefix} of "
            "prefix tokens no square grid; give old_grid=(rows, columns)"
        )
    return side, side


def _is_sinusoid(table: np.ndarray) -> bool:
    if not jnp.issubdtype(table.dtype, jnp.floating):
        return False
    precision = max(1e-6, float(jnp.finfo(table.dtype).eps))  # float64 may hold a float32 table
    wanted = sinusoid_table(*table.shape)
    return np.allclose(table.astype(np.float64), wanted, rtol=0, atol=precision)


def _resize(
    array: np.ndarray, design: _Design, method: str, grid: Sequence[int] | None
) -> tuple[np.ndarray, str]:
    """The position table for the model's rows, and what was done to it."""
    if design.grid is None:
        rows = _rows(array)
        if grid is not None:
            raise ValueError(
                f"old_grid={grid}: {design.positions} of this model numbers the patches of any "
                "grid one after the other; leave old_grid out"
            )
        if rows < design.rows:
            raise ValueError(
                f"{design.positions} of the state dict has {rows} rows and the model "
                f"{design.rows} (max_tokens): these positions have no grid, so none can be made "
                f"between them; build the model with max_tokens={rows} or less"
            )
        if rows == design.rows:
            return array, f"{rows} rows already, kept"
        return array[: design.rows], f"the first {design.rows} of {rows} rows kept"

    rows = array.shape[-2] if array.ndim > 1 else 0
    new = f"{design.grid[0]}x{design.grid[1]}"
    if rows == design.rows and grid is None:
        return array, f"{rows} rows already, kept as of the model's {new} grid"
    if design.sinusoid and method == "source":
        dim = array.shape[-1] if array.ndim else 0
        if array.shape != (1, rows, dim) or not _is_sinusoid(array[0]):
            raise ValueError(
                f"{design.positions} of the state dict, {array.shape}, is not the sinusoid table "
                "that could be computed for another size; to interpolate it, name a method: "
                f"{', '.join(METHODS)}"
            )
        table = sinusoid_table(design.rows, dim)[None].astype(array.dtype)
        return table, f"the sinusoid table computed for {design.rows} rows, of {rows}"
    old_grid = _old_grid(design, rows, grid)
    method = "timm" if method == "source" else method
    table = resize_pos_embed(
        array, old_grid, design.grid, num_prefix_tokens=design.prefix, method=method
    )
    old = f"{old_grid[0]}x{old_grid[1]}"
    if old == new:
        return array, f"{new} already, kept"
    return table, f"{old} to {new} by {method!r}, {design.prefix} prefix rows kept"


def _adapt_positions(
    state: dict[str, np.ndarray], design: _Design, method: str, grid: Sequence[int] | None
) -> list[str]:
    name = design.positions
    if name not in state:
        return [f"{name}: not in the state dict, nothing to resize"]
    state[name], done = _resize(np.asarray(state[name]), design, method, grid)
    return [f"{name}: {done}"]


def _check_classes(indices: Sequence[int], num_classes: int) -> list[int]:
    classes = [check_int("a class index of head", index, least=0) for index in indices]
    if not classes or len(classes) != num_classes or len(set(classes)) != len(classes):
        raise ValueError(
            f'head must be "drop" or the indices of the model\'s {num_classes} classes in the '
            f"state dict, each once, got {len(classes)} indices of {len(set(classes))} classes"
        )
    return classes


def _adapt_heads(
    state: dict[str, np.ndarray], model: VisionModel, design: _Design, head: str | Sequence[int]
) -> list[str]:
    report = []
    if isinstance(head, str):
        check_choice("head", head, ("drop",))
        for name, linear in design.heads.items():
            stored = [n for n in (f"{name}.weight", f"{name}.bias") if n in state]
            old = f"{_rows(np.asarray(state[stored[0]]))} classes" if stored else "none"
            for entry in stored:
                del state[entry]
            fresh = {} if linear is None else state_dict(linear)
            state.update({f"{name}.{leaf}": array for leaf, array in fresh.items()})
            new = f"its own of {model.num_classes} classes" if fresh else "none, as built"
            report.append(f"{name}: dropped the state dict's ({old}), the model keeps {new}")
        return report
    classes = _check_classes(head, model.num_classes)
    for name in design.heads:
        for entry in (f"{name}.weight", f"{name}.bias"):
            if entry not in state:
                report.append(f"{entry}: not in the state dict, no classes to choose from")
                continue
            array = np.asarray(state[entry])
            old = _rows(array)
            if max(classes) >= old:
                raise ValueError(
                    f"{entry} of the state dict has {old} classes: head must hold indices below "
                    f"{old}, got {max(classes)}"
                )
            state[entry] = array[classes]
            report.append(f"{entry}: {len(classes)} of {old} classes kept")
    return report


def adapt(
    state: Mapping[str, np.ndarray],
    model: VisionModel,
    *,
    resize: str | None = None,
    old_grid: Sequence[int] | None = None,
    head: str | Sequence[int] | None = None,
    in_chans: bool = False,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Fits a state dict of the model's design to the model's sizes, for `load_state_dict`.

    Args:
      state: name to array under the names of `vit_jax.state_dict(model)`, in PyTorch layout; it and
        its arrays stay as they are.
      model: of the wanted sizes; only read. It may be abstract unless a head is dropped.
      resize: how positions of another image size are made: "source", or a method of
        `resize.METHODS`. "source" is timm's for ViT, DeiT and DeiT III, as timm does it for all of
        them (DeiT's own finetuning is "bicubic"), and for `vit_classifier`, whose text has none;
        for T2T-ViT it computes the sinusoid table for the new size (its utils.py would interpolate:
        "bicubic"). The positions of `vit_encoder` and `vit_modular` are numbered rows without a
        grid: any method takes the first `max_tokens` of more rows, and fewer are an error.
      old_grid: (rows, columns) of the patches in `state`. None: the model's where the number of
        rows is the model's, else square.
      head: "drop" keeps the model's own last Linear in place of the stored one; indices choose
        its classes from the stored ones, in their order. Both heads of a distilled model alike.
      in_chans: convert the patch weights to the model's channels. From any number to 1: their sum
        over channels (a grey image gives what its copies in all channels gave). From 3 to n:
        repeated, times 3 / n. After T2T's first LayerNorm, which is over all channels, only to 1 or
        to a multiple, in a performer.

    Returns:
      A new dict, and for each thing asked for what was done, one line an array or layer: also
      where it fits already, or is missing, which is left to `load_state_dict`.

    Raises:
      ValueError: what was asked for cannot be done, or an argument is none of the choices.
    """
    if resize is not None:
        check_choice("resize", resize, RESIZE)
    elif old_grid is not None:
        raise ValueError(f"old_grid={old_grid} needs resize, one of {RESIZE}, got None")
    design, adapted, report = _design(model), dict(state), []
    if resize is not None:
        report += _adapt_positions(adapted, design, resize, old_grid)
    if head is not None:
        report += _adapt_heads(adapted, model, design, head)
    if check_bool("in_chans", in_chans):
        report += adapt_channels(adapted, design.patches, model.in_chans)
    return adapted, report
