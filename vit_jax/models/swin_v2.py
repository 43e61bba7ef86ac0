"""Swin Transformer V2: cosine attention, biases as a function of distance, norms after branches.

Liu et al. 2022 (2111.09883); microsoft/Swin-Transformer (models/swin_transformer_v2.py), timm
1.0.31 (models/swin_transformer_v2.py), whose names these are, and transformers 5.24
(models/swinv2).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from vit_jax.layers.checks import check_choice, check_int
from vit_jax.layers.swin_block import Windowing
from vit_jax.layers.window_attention import CosineWindowAttention, WindowAttention
from vit_jax.models.base import Variant
from vit_jax.models.config import checked
from vit_jax.models.swin import huggingface, release, swin_variant
from vit_jax.models.swin_base import SwinConfig, SwinModel


def _check_trained(name: str, value: Any) -> tuple[int, ...]:
    """Returns whole numbers from 0 on, one for each stage."""
    return tuple(check_int(name, side, least=0) for side in value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwinV2Config(SwinConfig):
    """The fields of `SwinV2`: those of `SwinConfig` but for what is said here.

    There is no table of biases: `bias_resize` is not looked at.

    Attributes:
      window_rule: also "transformers": windows and shifts are those of the rows at `img_size`, and
        what keeps tokens of different regions apart is added twice.
      pretrained_window_sizes: for each stage the side of the windows that the biases were trained
        with, where `window_size` is another now; 0 where it is not. Those of further stages are not
        looked at.
    """

    img_size: Any = 256
    window_size: Any = 8
    window_rule: str = checked(
        "swin", check_choice, free=True, choices=("swin", "timm", "transformers")
    )
    pretrained_window_sizes: Sequence[int] = checked((0, 0, 0, 0), _check_trained, free=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.pretrained_window_sizes
        self.check_stages("pretrained_window_sizes", sizes[: len(self.depths)])

    def windowing(self, stage: int, block: int) -> Windowing:
        """How a block cuts its map."""
        if self.window_rule != "transformers":
            return super().windowing(stage, block)
        rows = self.map_size(0)[0] // 2**stage
        wanted = self.wanted_window(stage)[0]
        side, shift = min(rows, wanted), wanted // 2 if block % 2 and rows > wanted else 0
        return Windowing((side, side), (shift, shift), False, False)


def _variants() -> dict[str, Variant]:
    found = {}
    for size in ("tiny", "small", "base"):
        for window in (8, 16):
            found[f"swinv2_{size}_window{window}_256"] = swin_variant(size, 256, window)
    for size in ("base", "large"):
        found[f"swinv2_{size}_window12_192"] = swin_variant(size, 192, 12, num_classes=21841)
        for window, img_size in ((16, 256), (24, 384)):
            found[f"swinv2_{size}_window12to{window}_192to{img_size}"] = swin_variant(
                size, img_size, window, pretrained_window_sizes=(12, 12, 12, 6)
            )
    return found


_PARTS = tuple(f"layers.#.blocks.#.attn.{part}.weight" for part in "qkv")
_HUGGINGFACE = functools.partial(
    huggingface,
    "swinv2",
    told_by=r"\.continuous_position_bias_mlp\.0\.weight$",
    attention=(
        ("q.weight", "self.query.weight"),
        ("k.weight", "self.key.weight"),
        ("v.weight", "self.value.weight"),
        ("q_bias", "self.query.bias"),
        ("v_bias", "self.value.bias"),
        ("logit_scale", "self.logit_scale"),
        ("cpb_mlp.", "self.continuous_position_bias_mlp."),
    ),
    joined=("layers.#.blocks.#.attn.qkv.weight", _PARTS),
    fields={"window_rule": "transformers"},
    config={"pretrained_window_sizes": "pretrained_window_sizes"},
    defaults={"pretrained_window_sizes": (0, 0, 0, 0)},
)


class SwinV2(SwinModel[SwinV2Config]):
    """Swin Transformer V2."""

    design = "swinv2"
    config_class = SwinV2Config
    variants = _variants()
    norms_after = True
    token_names = ("logit_scale",)
    dialects = (
        _HUGGINGFACE(architecture="Swinv2Model"),
        _HUGGINGFACE(architecture="Swinv2ForImageClassification"),
        release(),
    )

    def attention_of(self, stage: int) -> Callable[..., WindowAttention]:
        """What builds the attention of a stage's blocks."""
        config, window = self.config, self.config.windowing(stage, 0).window
        side = config.pretrained_window_sizes[stage]
        return functools.partial(
            CosineWindowAttention,
            trained=(side, side) if side else window,
            apart=-200.0 if config.window_rule == "transformers" else -100.0,
        )
