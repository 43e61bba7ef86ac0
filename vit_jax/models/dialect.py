"""Other libraries' names for a design's arrays, as data that `weights.dialects` works by."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

# Of blocks whose query, key and value are one Linear here and three there.
QKV = (("blocks.#.attn.qkv.", ("blocks.#.attn.q.", "blocks.#.attn.k.", "blocks.#.attn.v.")),)


@dataclasses.dataclass(frozen=True)
class Name:
    """An array, or all arrays of a module, here and in another library.

    "#" stands for the number of a layer. A name that ends in "." or "/" is a module's.

    Attributes:
      own: in the design's state dict.
      theirs: as it is written; "" where it is only read.
      also: further spellings that are read.
      layout: of Flax's kernels, in which the heads are an axis: "heads out" for (D, heads,
        head_dim), "heads in" for (heads, head_dim, D). Elsewhere other axes, theirs first: those of
        1 that only one of the two has ("N,D for 1,N,D"), or another order ("D,E for E,D"). "" for
        none.
    """

    own: str
    theirs: str
    also: tuple[str, ...] = ()
    layout: str = ""


@dataclasses.dataclass(frozen=True)
class Dialect:
    """One library's naming of a design's arrays.

    Attributes:
      name: such as "huggingface"; several dialects may share it, for the library's several models.
      whose: the library's model in words, for errors.
      told_by: a pattern that one of the names has in this dialect, and in no later one of the
        list; of several each has to be one's.
      names: every array that has a place in it; the first that fits wins.
      modules: (theirs, own) paths of modules without arrays of their own.
      prefixes: what may stand before the names that are read.
      joined: modules here that are several there: ("qkv.", ("q.", "k.", "v.")).
      split: modules that are several here, joined there: ("in_proj.", (("q.", 1), ("kv.", 2))) with
        the share that each has of the rows.
      positions: a pattern of the position table's name; "" where no wrapper has a prefix before it.
      is_flax: whether arrays have Flax's layout and leaves (kernel, scale), and "/" in their name.
      stack: of Flax's scanned layers: `stack/...` holds all of `stack_#/...`; "" for none.
      masked: (array, mask) here: theirs is the product of the two.
      zero: arrays of theirs that are none here, by their name here: they have to be zero.
      tells: fields that arrays tell, by the names in the file; it raises ValueError.
      beside: first parts of names that belong to no model, such as an optimizer's, or to another
        part of the library's model, such as its text tower.
      empty: arrays that the library's model has without elements where the design has none, by
        their name here: (1, 0, "embed_dim") with the names of fields.
      is_written: whether weights are written in it.
      fields: those of the design that the library's model has once for all.
      model_type, architecture: in a Hugging Face folder's config.json.
      section: of config.json in which they stand; "" for the top.
      config: its keys and the fields that they are; "intermediate_size" as `mlp_ratio` is a width.
      scalars: its keys that hold one number, where a model here may have several.
      values: of a key, what values of theirs are called here.
      defaults: of the library's configuration class, where the file leaves a key out.
      settled: keys of it that may have but one value here.
    """

    name: str
    whose: str
    told_by: str | tuple[str, ...]
    names: Sequence[Name]
    modules: Sequence[tuple[str, str]] = ()
    prefixes: tuple[str, ...] = ()
    joined: Sequence[tuple[str, tuple[str, ...]]] = ()
    split: Sequence[tuple[str, tuple[tuple[str, int], ...]]] = ()
    positions: str = ""
    is_flax: bool = False
    stack: str = ""
    masked: Sequence[tuple[str, str]] = ()
    zero: tuple[str, ...] = ()
    tells: Callable[[Mapping[str, np.ndarray]], dict[str, Any]] | None = None
    beside: tuple[str, ...] = ()
    empty: Mapping[str, tuple[int | str, ...]] = dataclasses.field(default_factory=dict)
    is_written: bool = True
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model_type: str = ""
    architecture: str = ""
    section: str = ""
    config: Mapping[str, str] = dataclasses.field(default_factory=dict)
    scalars: tuple[str, ...] = ()
    values: Mapping[str, Mapping[Any, Any]] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settled: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# The names within a layer of transformers' CLIP, which its SigLIPs have too: see `layer_names`.
CLIP_LAYER = (
    ("norm1.", "layer_norm1."),
    *((f"attn.{part}.", f"self_attn.{part}_proj.") for part in "qkv"),
    ("attn.proj.", "self_attn.out_proj."),
    ("norm2.", "layer_norm2."),
    ("mlp.fc1.", "mlp.fc1."),
    ("mlp.fc2.", "mlp.fc2."),
)

# The sizes in the config.json of transformers' Vision Transformers, and our fields.
HUGGINGFACE_SIZES = {
    "hidden_size": "embed_dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "intermediate_size": "mlp_ratio",
    "image_size": "img_size",
    "patch_size": "patch_size",
    "num_channels": "in_chans",
}
# The modules without arrays of transformers' ViT and BEiT, of version 4 and of 5, and ours.
HUGGINGFACE_MODULES = (
    ("embeddings.patch_embeddings", "patch_embed"),
    ("embeddings.dropout", "pos_drop"),
    *(
        (f"{stack}{theirs}", f"blocks.#{own}")
        for stack in ("encoder.layer.#", "layers.#")
        for theirs, own in (("", ""), (".attention", ".attn"), (".mlp", ".mlp"))
    ),
)


def layer_names(
    own: str, theirs: str, rows: Sequence[tuple[str, ...]], also: str = "", layout: str = ""
) -> list[Name]:
    """The names within a layer.

    Args:
      own, theirs: what stands before each, with its number as "#".
      rows: (own, theirs), or (own, theirs, short) with another spelling that is read.
      also: what stands before the other spellings.
      layout: of all of them: see `Name`.
    """
    return [
        Name(own + mine, theirs + first, tuple(also + spelling for spelling in short), layout)
        for mine, first, *short in rows
    ]
