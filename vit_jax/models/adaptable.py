"""Where a design's weights depend on the size and the channels of its images."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class PositionTable:
    """A model's position embeddings.

    Attributes:
      name: of the table in the state dict; its last axis is the width of a token.
      rows: how many it has.
      grid: rows and columns of the patches; None where the positions are those of a sequence.
      prefix: rows before those of the patches.
      sinusoid: whether the table is a formula of its number of rows.
      method: how the design's source resizes it: see `vit_jax.layers.position_resize`.
    """

    name: str
    rows: int
    grid: tuple[int, int] | None
    prefix: int = 1
    sinusoid: bool = False
    method: str = "timm"


@dataclasses.dataclass(frozen=True)
class BiasTable:
    """Biases of attention by the offset from one token to another.

    Attributes:
      name: of the table in the state dict: (rows, heads).
      grid: rows and columns of the tokens that it is for, of an image or of a window.
      method: how the design resizes it: see `vit_jax.layers.relative_bias`.
      class_rows: of a class token: 3, or 0 where there is none.
    """

    name: str
    grid: tuple[int, int]
    method: str
    class_rows: int = 0


@dataclasses.dataclass(frozen=True)
class PatchWeights:
    """Where a state dict holds the layer that reads the channels of an image.

    Attributes:
      name: its weight.
      axis: along which the channels stand one after the other.
      window: numbers of each: 1 in a convolution, the pixels of a patch in a Linear over unfolded
        ones (C, kh, kw).
      norm: the LayerNorm over all channels of a window before it, if there is one.
      bias: the layer's, after such a norm, if it has one.
      is_interleaved: whether a window is held pixel by pixel, the channels of each together.
      is_resampled: whether its kernel can be made of one for another size of patches.
    """

    name: str
    axis: int = 1
    window: int = 1
    norm: str | None = None
    bias: str | None = None
    is_interleaved: bool = False
    is_resampled: bool = False
