"""A state dict fitted to a model of another image size, number of classes or number of channels.

Each only when asked for, and each reported. What is not asked for stays as it is, for
`load_state_dict` to refuse. The rules are timm's (1.0.31: models/_manipulate.py,
models/vision_transformer.py) where it has one.
"""

import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from vit_jax.layers.checks import check_bool, check_choice, check_int
from vit_jax.layers.position import sinusoid_table
from vit_jax.layers.position_resize import METHODS, check_grid, resample_kernel, resize_pos_embed
from vit_jax.layers.relative_bias import resize_bias_table, square_grid, table_rows
from vit_jax.models.adaptable import BiasTable, PositionTable
from vit_jax.models.base import VisionModel
from vit_jax.weights.patch_channels import adapt_channels
from vit_jax.weights.state_dict import state_dict, torch_shapes

RESIZE = ("source", *METHODS)
OldGrid = Sequence[int] | Mapping[str, Sequence[int]] | None


def _rows(array: np.ndarray) -> int:
    return array.shape[0] if array.ndim else 0


def _old_grid(positions: PositionTable, rows: int, grid: Sequence[int] | None) -> tuple[int, int]:
    """The grid of a table of so many rows: as given, else square."""
    if grid is not None:
        return check_grid("old_grid", grid)
    patches = rows - positions.prefix
    side = math.isqrt(max(patches, 0))
    if not side or side**2 != patches:
        raise ValueError(
            f"{positions.name} of the state dict has {rows} rows: less the {positions.prefix} of "
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
    array: np.ndarray, positions: PositionTable, method: str, grid: Sequence[int] | None
) -> tuple[np.ndarray, str]:
    """The position table for the model's rows, and what was done to it."""
    if positions.grid is None:
        rows = _rows(array)
        if grid is not None:
            raise ValueError(
                f"old_grid={grid}: {positions.name} of this model numbers the patches of any "
                "grid one after the other; leave old_grid out"
            )
        if rows < positions.rows:
            raise ValueError(
                f"{positions.name} of the state dict has {rows} rows and the model "
                f"{positions.rows} (max_tokens): these positions have no grid, so none can be made "
                f"between them; build the model with max_tokens={rows} or less"
            )
        if rows == positions.rows:
            return array, f"{rows} rows already, kept"
        return array[: positions.rows], f"the first {positions.rows} of {rows} rows kept"

    rows = array.shape[-2] if array.ndim > 1 else 0
    new = f"{positions.grid[0]}x{positions.grid[1]}"
    if rows == positions.rows and grid is None:
        return array, f"{rows} rows already, kept as of the model's {new} grid"
    if positions.sinusoid and method == "source":
        dim = array.shape[-1] if array.ndim else 0
        if array.shape != (1, rows, dim) or not _is_sinusoid(array[0]):
            raise ValueError(
                f"{positions.name} of the state dict, {array.shape}, is not the sinusoid table "
                "that could be computed for another size; to interpolate it, name a method: "
                f"{', '.join(METHODS)}"
            )
        table = sinusoid_table(positions.rows, dim)[None].astype(array.dtype)
        return table, f"the sinusoid table computed for {positions.rows} rows, of {rows}"
    old_grid = _old_grid(positions, rows, grid)
    method = positions.method if method == "source" else method
    table = resize_pos_embed(
        array, old_grid, positions.grid, num_prefix_tokens=positions.prefix, method=method
    )
    old = f"{old_grid[0]}x{old_grid[1]}"
    if old == new:
        return array, f"{new} already, kept"
    return table, f"{old} to {new} by {method!r}, {positions.prefix} prefix rows kept"


def _resize_biases(
    array: np.ndarray, table: BiasTable, grid: Sequence[int] | None
) -> tuple[np.ndarray, str]:
    """A table of biases for the model's grid, and what was done to it."""
    rows, new = _rows(array), f"{table.grid[0]}x{table.grid[1]}"
    if rows == table_rows(table.grid, table.class_rows) and grid is None:
        return array, f"{rows} rows already, kept as of the model's {new} grid"
    grid = square_grid(rows, table.class_rows) if grid is None else grid
    if grid is None:
        raise ValueError(
            f"{table.name} of the state dict has {rows} rows: of no square grid; give "
            "old_grid=(rows, columns)"
        )
    old_grid = check_grid("old_grid", grid)
    resized = resize_bias_table(
        array, old_grid, table.grid, method=table.method, class_rows=table.class_rows
    )
    old = f"{old_grid[0]}x{old_grid[1]}"
    return resized, f"{new} already, kept" if old == new else f"{old} to {new} by {table.method!r}"


def _adapt_tables(
    state: dict[str, np.ndarray], model: VisionModel, method: str, old_grid: OldGrid
) -> list[str]:
    """The model's positions and biases at its grids, a line each."""
    positions = model.position_table()
    tables = [*([] if positions is None else [positions]), *model.bias_tables()]
    report = []
    for table in tables:
        name = table.name
        if name not in state:
            report.append(f"{name}: not in the state dict, nothing to resize")
            continue
        grid = old_grid.get(name) if isinstance(old_grid, Mapping) else old_grid
        array = np.asarray(state[name])
        state[name], done = (
            _resize_biases(array, table, grid)
            if isinstance(table, BiasTable)
            else _resize(array, table, method, grid)
        )
        report.append(f"{name}: {done}")
    return report or ["positions: computed for every image, nothing to resize"]


def _adapt_kernel(state: dict[str, np.ndarray], model: VisionModel) -> list[str]:
    """The patches' kernel at the model's patch size, where that is another."""
    name = model.patch_weights().name
    array = np.asarray(state.get(name, 0.0))
    (*_, rows, columns), old = torch_shapes(model)[name], array.shape[2:]
    if array.ndim != 4 or 0 in old or old == (rows, columns):
        return []  # what else is wrong with it `load_state_dict` says
    state[name] = resample_kernel(array, (rows, columns))
    return [f"{name}: {old[0]}x{old[1]} to {rows}x{columns} by timm's least squares"]


def _check_classes(indices: Sequence[int], num_classes: int) -> list[int]:
    classes = [check_int("a class index of head", index, least=0) for index in indices]
    if not classes or len(classes) != num_classes or len(set(classes)) != len(classes):
        raise ValueError(
            f'head must be "drop" or the indices of the model\'s {num_classes} classes in the '
            f"state dict, each once, got {len(classes)} indices of {len(set(classes))} classes"
        )
    return classes


def _adapt_heads(
    state: dict[str, np.ndarray], model: VisionModel, head: str | Sequence[int]
) -> list[str]:
    report = []
    if isinstance(head, str):
        check_choice("head", head, ("drop",))
        for name, linear in model.head_layers().items():
            stored = [n for n in (f"{name}.weight", f"{name}.bias") if n in state]
            old = f"{_rows(np.asarray(state[stored[0]]))} classes" if stored else "none"
            for entry in stored:
                del state[entry]
            fresh = {} if linear is None else state_dict(linear)
            state.update({f"{name}.{leaf}": array for leaf, array in fresh.items()})
            new = f"its own of {model.num_classes} classes" if fresh else "none, as built"
            report.append(f"{name}: dropped the state dict's ({old}), the model keeps {new}")
        return report + _adapt_before_head(state, model)
    classes = _check_classes(head, model.num_classes)
    for name in model.heads:
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


def _adapt_before_head(state: dict[str, np.ndarray], model: VisionModel) -> list[str]:
    """A layer before the head goes with the head where only one of state dict and model has it.

    And a token that another head would read is the model's token.
    """
    report, own = [], torch_shapes(model)
    stored, wanted = ([t for t in model.head_tokens if t in of] for of in (state, own))
    if len(stored) == len(wanted) == 1 and stored != wanted:
        state[wanted[0]] = state.pop(stored[0])
        report.append(f"{stored[0]}: taken for {wanted[0]}")
    for name in model.before_head:
        entries = (f"{name}.weight", f"{name}.bias")
        stored, wanted = ([e for e in entries if e in of] for of in (state, own))
        if stored and not wanted:
            for entry in stored:
                del state[entry]
            report.append(f"{name}: left out with the head, the model has none")
        elif wanted and not stored:
            state.update({entry: state_dict(model)[entry] for entry in wanted})
            report.append(f"{name}: not in the state dict, the model keeps its own")
    return report


def adapt(
    state: Mapping[str, np.ndarray],
    model: VisionModel,
    *,
    resize: str | None = None,
    old_grid: OldGrid = None,
    head: str | Sequence[int] | None = None,
    in_chans: bool = False,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Fits a state dict of the model's design to the model's sizes, for `load_state_dict`.

    Args:
      state: name to array under the names of `vit_jax.state_dict(model)`, in PyTorch layout; it and
        its arrays stay as they are.
      model: of the wanted sizes; only read. It may be abstract unless a head is dropped.
      resize: how positions of another image size are made: "source", or a method of
        `position_resize.METHODS`. "source" is timm's for ViT, DeiT and DeiT III, as timm does it
        for all of them (DeiT's own finetuning is "bicubic"), and for `vit_classifier`, whose text
        has none; DINOv2's field `position_resize`; for T2T-ViT it computes the sinusoid table for
        the new size (its utils.py would interpolate: "bicubic"). The positions of `vit_encoder` and
        `vit_modular` are numbered rows without a grid: any method takes the first `max_tokens` of
        more rows, and fewer are an error. Relative position biases (BEiT, Swin) become those of
        another grid or window as the model's field `bias_resize` says, whatever the method. The
        kernel of the patches of `vit` and `dinov2` for another patch size is made as timm does it,
        whatever the method: so that it gives on a resized patch what the old one gave on the patch.
      old_grid: (rows, columns) of the patches in `state`, or of Swin's windows; or those of each
        table by its name. None, or a name left out: the model's where the number of rows is the
        model's, else square.
      head: "drop" keeps the model's own last Linear in place of the stored one, and a layer before
        it (`pre_logits`) that only one of the two has is left out or kept with it; indices choose
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
    adapted, report = dict(state), []
    if resize is not None:
        report += _adapt_tables(adapted, model, resize, old_grid)
        if model.patch_weights().is_resampled:
            report += _adapt_kernel(adapted, model)
    if head is not None:
        report += _adapt_heads(adapted, model, head)
    if check_bool("in_chans", in_chans):
        report += adapt_channels(adapted, model.patch_weights(), model.in_chans)
    return adapted, report
