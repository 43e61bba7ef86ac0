"""Names of the same ViT elsewhere: Hugging Face, torchvision and Google's Flax models.

A dialect maps its arrays to those of `models.vit` (timm's names) and back. Which one a file speaks
is told by its keys. timm, DeiT and the official T2T-ViT speak the models' own names.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Rules = tuple[tuple[str, str], ...]  # (pattern, replacement); the first that fits wins


class DialectError(ValueError):
    """Arrays that cannot be said in the other dialect."""


@dataclasses.dataclass(frozen=True)
class Dialect:
    """One naming of a ViT's arrays.

    Attributes:
      name: "huggingface", "torchvision" or "google".
      speaks: whether a set of keys is of this dialect.
      to_timm: its arrays under timm's names, in PyTorch layout.
      from_timm: the way back, from the arrays and the number of heads; None where nothing is
        written in this dialect.
      module_to_timm: the dotted path of one of its modules at timm; as it is where timm has none.
    """

    name: str
    speaks: Callable[[frozenset[str]], bool]
    to_timm: Callable[[Mapping[str, np.ndarray]], Arrays]
    from_timm: Callable[[Mapping[str, np.ndarray], int], Arrays] | None = None
    module_to_timm: Callable[[str], str] = str


def _rename(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name, changed = re.subn(pattern, replacement, name)
        if changed:
            return name
    return name


def _rename_module(path: str, modules: Rules, arrays: Rules) -> str:
    """By the rules of modules without arrays of their own, then by those of arrays."""
    renamed = _rename(path, modules)
    return renamed if renamed != path else _rename(f"{path}.", arrays).removesuffix(".")


def _collect(pairs: Iterable[tuple[str, np.ndarray]]) -> Arrays:
    arrays: Arrays = {}
    for name, array in pairs:
        if name in arrays:
            raise DialectError(f"two of the arrays are {name}")
        arrays[name] = array
    return arrays


def _fuse(arrays: Arrays) -> Arrays:
    """Joins `blocks.N.attn.{q,k,v}` to one `qkv`, in this order."""
    fused: Arrays = {}
    for name, array in arrays.items():
        match = re.fullmatch(r"(blocks\.\d+\.attn\.)([qkv])\.(weight|bias)", name)
        if match is None:
            fused[name] = array
        elif match[2] == "q":
            names = [f"{match[1]}{part}.{match[3]}" for part in "qkv"]
            kinds = [(arrays[n].shape, arrays[n].dtype) if n in arrays else None for n in names]
            if array.ndim == 0 or any(kind != kinds[0] for kind in kinds):
                got = ", ".join(f"{kind[1]}{list(kind[0])}" if kind else "none" for kind in kinds)
                raise DialectError(
                    f"{', '.join(names)}: wanted three of one shape and type, got {got}"
                )
            fused[f"{match[1]}qkv.{match[3]}"] = np.concatenate([arrays[part] for part in names])
        elif f"{match[1]}q.{match[3]}" not in arrays:
            raise DialectError(f"{match[1]}: the {match[3]} of the query is missing")
    return fused


def _unfuse(arrays: Mapping[str, np.ndarray]) -> Arrays:
    parts: Arrays = {}
    for name, array in arrays.items():
        match = re.fullmatch(r"(blocks\.\d+\.attn\.)qkv\.(weight|bias)", name)
        if match is None:
            parts[name] = array
            continue
        for part, third in zip("qkv", np.split(array, 3), strict=True):
            parts[f"{match[1]}{part}.{match[2]}"] = np.ascontiguousarray(third)
    return parts


# ---------------------------------------------------------------------------- Hugging Face

# transformers 4, and what transformers 5 writes to files; then 5's own names in memory.
_HF_TO_TIMM = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (
        r"^(?:encoder\.layer|layers)\.(\d+)\.attention\.(?:attention\.)?([qkv])"
        r"(?:uery|ey|alue|_proj)\.",
        r"blocks.\1.attn.\2.",
    ),
    (
        r"^(?:encoder\.layer|layers)\.(\d+)\.attention\.(?:output\.dense|o_proj)\.",
        r"blocks.\1.attn.proj.",
    ),
    (
        r"^(?:encoder\.layer|layers)\.(\d+)\.(?:intermediate\.dense|mlp\.fc1)\.",
        r"blocks.\1.mlp.fc1.",
    ),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.(?:output\.dense|mlp\.fc2)\.", r"blocks.\1.mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^pooler\.dense\.", "pre_logits.fc."),
    (r"^(?:cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)
_HF_MODULES = (
    (r"^embeddings\.patch_embeddings$", "patch_embed"),
    (r"^embeddings\.dropout$", "pos_drop"),
    (r"^(?:encoder\.layer|layers)\.(\d+)$", r"blocks.\1"),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.attention$", r"blocks.\1.attn"),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.mlp$", r"blocks.\1.mlp"),
)
_TIMM_TO_HF = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^dist_token$", "embeddings.distillation_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.layer.\1.layernorm_before."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.layer.\1.layernorm_after."),
    (r"^blocks\.(\d+)\.attn\.q\.", r"encoder.layer.\1.attention.attention.query."),
    (r"^blocks\.(\d+)\.attn\.k\.", r"encoder.layer.\1.attention.attention.key."),
    (r"^blocks\.(\d+)\.attn\.v\.", r"encoder.layer.\1.attention.attention.value."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layer.\1.attention.output.dense."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
    (r"^norm\.", "layernorm."),
)


def _speaks_hf(keys: frozenset[str]) -> bool:
    return any(key.endswith("embeddings.patch_embeddings.projection.weight") for key in keys)


def _hf_to_timm(arrays: Mapping[str, np.ndarray]) -> Arrays:
    return _fuse(
        _collect(
            (_rename(re.sub(r"^(vit|deit)\.", "", name), _HF_TO_TIMM), array)
            for name, array in arrays.items()
        )
    )


def _hf_module_to_timm(path: str) -> str:
    within = re.sub(r"^(vit|deit)\.", "", path)
    renamed = _rename_module(within, _HF_MODULES, _HF_TO_TIMM)
    return path if renamed == within else renamed


def _timm_to_hf(arrays: Mapping[str, np.ndarray], num_heads: int) -> Arrays:
    del num_heads  # the heads of a Linear are not told apart there
    distilled = "dist_token" in arrays
    prefix = "deit." if distilled else "vit."
    heads = {"head": "cls_classifier" if distilled else "classifier"}
    heads["head_dist"] = "distillation_classifier"
    said: Arrays = {}
    for name, array in _unfuse(arrays).items():
        module, _, leaf = name.rpartition(".")
        if module in heads:
            said[f"{heads[module]}.{leaf}"] = array
            continue
        renamed = _rename(name, _TIMM_TO_HF)
        if renamed == name:
            raise DialectError(f"Hugging Face's ViT and DeiT have no place for {name}")
        said[prefix + renamed] = array
    return said


# ------------------------------------------------------------------------------ torchvision

_TORCHVISION_TO_TIMM = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.", r"blocks.\1.norm\2."),
    (
        r"^encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(weight|bias)$",
        r"blocks.\1.attn.qkv.\2",
    ),
    (
        r"^encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.",
        r"blocks.\1.attn.proj.",
    ),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.", r"blocks.\1.mlp.fc1."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.", r"blocks.\1.mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.pre_logits\.", "pre_logits.fc."),
    (r"^heads\.head\.", "head."),
)
_TORCHVISION_MODULES = (
    (r"^encoder\.dropout$", "pos_drop"),
    (r"^encoder\.layers\.encoder_layer_(\d+)$", r"blocks.\1"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.self_attention$", r"blocks.\1.attn"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.mlp$", r"blocks.\1.mlp"),
)


def _torchvision_to_timm(arrays: Mapping[str, np.ndarray]) -> Arrays:
    return _collect((_rename(name, _TORCHVISION_TO_TIMM), array) for name, array in arrays.items())


def _torchvision_module_to_timm(path: str) -> str:
    return _rename_module(path, _TORCHVISION_MODULES, _TORCHVISION_TO_TIMM)


# ----------------------------------------------------------------------------------- Google

# (attention, second norm, MLP): of google-research/vision_transformer, then of big_vision.
_GOOGLE_BLOCKS = (
    ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"),
    ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0"),
)
_FLAX_LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_GOOGLE_TO_TIMM = {
    "cls": "cls_token",
    "embedding/kernel": "patch_embed.proj.weight",
    "embedding/bias": "patch_embed.proj.bias",
    "pos_embedding": "pos_embed",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
    "pre_logits/kernel": "pre_logits.fc.weight",
    "pre_logits/bias": "pre_logits.fc.bias",
    "head/kernel": "head.weight",
    "head/bias": "head.bias",
}


def _speaks_google(keys: frozenset[str]) -> bool:
    return any(re.fullmatch(r"(?:params/)?embedding/kernel", key) for key in keys)


def _unscan(arrays: Mapping[str, np.ndarray]) -> Iterable[tuple[str, np.ndarray]]:
    """big_vision's scanned blocks, stacked along their first axis, one by one."""
    for name, array in arrays.items():
        head, found, tail = name.partition("Transformer/encoderblock/")
        if not found:
            yield name, array
            continue
        _check_axes(name, array, None)
        for layer, part in enumerate(array):
            yield f"{head}Transformer/encoderblock_{layer}/{tail}", part


def _check_axes(name: str, array: np.ndarray, axes: int | None) -> None:
    """Refuses a number of axes that could not be put in PyTorch's layout; None: any but none."""
    if (array.ndim != axes) if axes is not None else (array.size == 0 or array.ndim == 0):
        wanted = f"{axes} axes" if axes is not None else "stacked layers"
        raise DialectError(f"{name}: wanted {wanted}, got the shape {array.shape}")


def google_heads(arrays: Mapping[str, np.ndarray]) -> int | None:
    """The number of heads, which Google's arrays (and no other's) have as an axis."""
    queries = (array for name, array in arrays.items() if re.search(r"/query/(kernel|bias)$", name))
    query = next(queries, None)
    return None if query is None or query.ndim < 2 else query.shape[-2]


def _google_block(rest: str, array: np.ndarray) -> tuple[str, np.ndarray] | None:
    """The name and array, in PyTorch layout, of what stands in a block under `rest`."""
    for attention, second_norm, mlp in _GOOGLE_BLOCKS:
        module, _, leaf = rest.rpartition("/")
        if leaf not in _FLAX_LEAF:
            return None
        torch_leaf = _FLAX_LEAF[leaf]
        if module == "LayerNorm_0":
            return f"norm1.{torch_leaf}", array
        if module == second_norm:
            return f"norm2.{torch_leaf}", array
        if module in (f"{mlp}/Dense_0", f"{mlp}/Dense_1"):
            _check_axes(rest, array, 2 if leaf == "kernel" else 1)
            return f"mlp.fc{int(module[-1]) + 1}.{torch_leaf}", array.T
        if module == f"{attention}/out":  # (heads, head_dim, D)
            _check_axes(rest, array, 3 if leaf == "kernel" else 1)
            flat = array.reshape(-1, array.shape[-1]).T if leaf == "kernel" else array
            return f"attn.proj.{torch_leaf}", flat
        for part in ("query", "key", "value"):
            if module == f"{attention}/{part}":  # (D, heads, head_dim)
                _check_axes(rest, array, 3 if leaf == "kernel" else 2)
                flat = array.reshape(array.shape[0], -1).T if leaf == "kernel" else array.ravel()
                return f"attn.{part[0]}.{torch_leaf}", flat
    return None


def _google_to_timm(arrays: Mapping[str, np.ndarray]) -> Arrays:
    beside = ("opt", "optimizer", "chrono")  # a training state's, beside its parameters
    kept = {name: array for name, array in arrays.items() if name.split("/")[0] not in beside}
    return _fuse(
        _collect(_google_entry(name.removeprefix("params/"), a) for name, a in _unscan(kept))
    )


def _google_entry(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Its name and array at timm; as it is where it is nothing of a ViT: the model will name it."""
    block = re.fullmatch(r"Transformer/encoderblock_(\d+)/(.*)", name)
    if block is not None:
        converted = _google_block(block[2], array)
        return (
            (name, array)
            if converted is None
            else (f"blocks.{block[1]}.{converted[0]}", converted[1])
        )
    if name not in _GOOGLE_TO_TIMM:
        return name, array
    if name == "embedding/kernel":
        _check_axes(name, array, 4)
        array = np.moveaxis(array, (-1, -2), (0, 1))  # (h, w, C, D)
    elif name.endswith("kernel"):
        array = array.T
    return _GOOGLE_TO_TIMM[name], array


def _timm_to_google(arrays: Mapping[str, np.ndarray], num_heads: int) -> Arrays:
    """google-research/vision_transformer's names."""
    names = {timm: google for google, timm in _GOOGLE_TO_TIMM.items()}
    attention, second_norm, mlp = _GOOGLE_BLOCKS[0]
    modules = {
        "norm1": "LayerNorm_0",
        "norm2": second_norm,
        "mlp.fc1": f"{mlp}/Dense_0",
        "mlp.fc2": f"{mlp}/Dense_1",
        "attn.q": f"{attention}/query",
        "attn.k": f"{attention}/key",
        "attn.v": f"{attention}/value",
        "attn.proj": f"{attention}/out",
    }
    said: Arrays = {}
    for name, array in _unfuse(arrays).items():
        if name in names:
            if name == "patch_embed.proj.weight":
                array = np.moveaxis(array, (0, 1), (-1, -2))
            elif array.ndim == 2:
                array = array.T
            said[names[name]] = np.ascontiguousarray(array)
            continue
        block = re.fullmatch(r"blocks\.(\d+)\.(.*)\.(weight|bias)", name)
        if block is None or block[2] not in modules:
            raise DialectError(f"Google's ViT has no place for {name}")
        leaf = block[3]
        if leaf == "weight":
            leaf = "scale" if array.ndim == 1 else "kernel"
        if block[2] in ("attn.q", "attn.k", "attn.v"):
            split = (num_heads, array.shape[0] // num_heads)
            array = array.T.reshape(-1, *split) if leaf == "kernel" else array.reshape(split)
        elif block[2] == "attn.proj" and leaf == "kernel":
            array = array.T.reshape(num_heads, -1, array.shape[0])
        elif leaf == "kernel":
            array = array.T
        module = f"Transformer/encoderblock_{block[1]}/{modules[block[2]]}"
        said[f"{module}/{leaf}"] = np.ascontiguousarray(array)
    return said


DIALECTS = (
    Dialect("huggingface", _speaks_hf, _hf_to_timm, _timm_to_hf, _hf_module_to_timm),
    Dialect(
        "torchvision",
        lambda keys: "conv_proj.weight" in keys,
        _torchvision_to_timm,
        module_to_timm=_torchvision_module_to_timm,
    ),
    Dialect("google", _speaks_google, _google_to_timm, _timm_to_google),
)


def dialect_of(keys: Iterable[str]) -> Dialect | None:
    """The dialect in which arrays of these names speak; None for the models' own names."""
    names = frozenset(keys)
    return next((dialect for dialect in DIALECTS if dialect.speaks(names)), None)


def to_timm(arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, str | None]:
    """The arrays under timm's names, and the dialect they spoke; None: they are left as they are.

    Raises:
      DialectError: a query, key or value stands alone; two arrays have the same place; one has no
        layout of the dialect.
    """
    dialect = dialect_of(arrays)
    return (dict(arrays), None) if dialect is None else (dialect.to_timm(arrays), dialect.name)


def from_timm(arrays: Mapping[str, np.ndarray], dialect: str, num_heads: int) -> Arrays:
    """The arrays of a `models.vit` model in another dialect.

    Raises:
      DialectError: the dialect has no place for one of them.
    """
    writers: dict[str, Any] = {d.name: d.from_timm for d in DIALECTS if d.from_timm is not None}
    if dialect not in writers:
        raise DialectError(f"wanted one of {', '.join(writers)}, got {dialect!r}")
    return writers[dialect](arrays, num_heads)
