"""Published weights: which repository of the Hugging Face hub fits which registered name.

Licences as the model cards or the releases state them: DINOv2 (README and model card of
facebookresearch/dinov2, timm's table), DINOv3 (its own terms; access is granted by hand), SigLIP
and SigLIP 2 (cards of google's repositories), Swin (cards of microsoft's, timm's configuration for
its own; the release's LICENSE is MIT), CLIP (openai/CLIP's LICENSE for the weights of OpenAI, cards
of laion's repositories), ViT and DeiT (cards of google's and facebook's repositories), BEiT and
CaiT (timm's configurations of its repositories). None: not confirmed: of MAE the release says cc-
by-nc-4.0, and the repository's page apache-2.0. Read in November 2026; the hub is right where it
says otherwise.
"""

import dataclasses
from collections.abc import Iterator

_APACHE, _MIT, _DINOV3 = "apache-2.0", "mit", "dinov3-license"


@dataclasses.dataclass(frozen=True)
class Published:
    """One repository of the hub.

    Attributes:
      name: registered, which its weights are of.
      repository: OWNER/NAME.
      licence: of the weights; None: not confirmed.
      is_gated: whether access has to be asked for, logged in; None: not confirmed.
    """

    name: str
    repository: str
    licence: str | None
    is_gated: bool | None = None

    @property
    def page(self) -> str:
        """Its page, where access is asked for."""
        return f"https://huggingface.co/{self.repository}"


def _swin() -> Iterator[Published]:
    """Microsoft's repositories whose pages were seen, then timm's of all names."""
    sizes, tuned = ("base", "large"), ((16, 256), (24, 384))
    for name, repository in (
        *(
            (f"swin_{size}_patch4_window7_224", f"swin-{size}-patch4-window7-224")
            for size in ("tiny", "base")
        ),
        ("swinv2_small_window8_256", "swinv2-small-patch4-window8-256"),
        ("swinv2_base_window16_256", "swinv2-base-patch4-window16-256"),
        *(
            (f"swinv2_{size}_window12_192", f"swinv2-{size}-patch4-window12-192-22k")
            for size in sizes
        ),
        *(
            (
                f"swinv2_{size}_window12to{window}_192to{side}",
                f"swinv2-{size}-patch4-window12to{window}-192to{side}-22kto1k-ft",
            )
            for size in sizes
            for window, side in tuned
        ),
    ):
        yield Published(name, f"microsoft/{repository}", _APACHE)
    for name in (
        *(f"swin_{size}_patch4_window7_224.ms_in1k" for size in ("tiny", "small", "base")),
        "swin_large_patch4_window7_224.ms_in22k_ft_in1k",
        "swin_base_patch4_window12_384.ms_in1k",
        "swin_large_patch4_window12_384.ms_in22k_ft_in1k",
        *(
            f"swinv2_{size}_window{window}_256.ms_in1k"
            for size in ("tiny", "small", "base")
            for window in (8, 16)
        ),
        *(f"swinv2_{size}_window12_192.ms_in22k" for size in sizes),
        *(
            f"swinv2_{size}_window12to{window}_192to{side}.ms_in22k_ft_in1k"
            for size in sizes
            for window, side in tuned
        ),
    ):
        yield Published(name.partition(".")[0], f"timm/{name}", _MIT)


def _published() -> Iterator[Published]:
    for letter, size in (("s", "small"), ("b", "base"), ("l", "large"), ("g", "giant")):
        yield Published(f"dinov2_vit{letter}14", f"facebook/dinov2-{size}", _APACHE)
        if letter in "sb":  # the names of the larger two are not confirmed
            repository = f"facebook/dinov2-with-registers-{size}"
            yield Published(f"dinov2_vit{letter}14_reg", repository, _APACHE)
    for size in ("small", "base", "large", "giant"):
        for name in (f"vit_{size}_patch14_dinov2", f"vit_{size}_patch14_reg4_dinov2"):
            yield Published(name, f"timm/{name}.lvd142m", _APACHE)
    for size in ("s16", "s16plus", "b16", "l16", "h16plus", "7b16"):
        repository = f"facebook/dinov3-vit{size}-pretrain-lvd1689m"
        yield Published(f"dinov3_vit{size}", repository, _DINOV3, is_gated=True)
    for size in ("l16", "7b16"):
        repository = f"facebook/dinov3-vit{size}-pretrain-sat493m"
        yield Published(f"dinov3_vit{size}", repository, _DINOV3, is_gated=True)
    for size in ("base-patch32", "base-patch16", "large-patch14", "large-patch14-336"):
        yield Published(f"clip_vit_{size.replace('-', '_')}", f"openai/clip-vit-{size}", _MIT)
    for name, repository in (
        ("base_patch32", "B-32-laion2B-s34B-b79K"),
        ("base_patch16", "B-16-laion2B-s34B-b88K"),
        ("large_patch14", "L-14-laion2B-s32B-b82K"),
        ("huge_patch14", "H-14-laion2B-s32B-b79K"),
        ("giant_patch14", "g-14-laion2B-s12B-b42K"),
        ("bigg_patch14", "bigG-14-laion2B-39B-b160k"),
    ):
        yield Published(f"clip_vit_{name}_gelu", f"laion/CLIP-ViT-{repository}", _MIT)
    for size in (
        *(f"base-patch16-{side}" for side in (224, 256, 384, 512)),
        *(f"large-patch16-{side}" for side in (256, 384)),
        *(f"so400m-patch14-{side}" for side in (224, 384)),
    ):
        yield Published(f"siglip_{size.replace('-', '_')}", f"google/siglip-{size}", _APACHE)
    i18n = "google/siglip-so400m-patch16-256-i18n"
    yield Published("siglip_so400m_patch16_256", i18n, _APACHE)
    for size in (
        "base-patch32-256",
        *(f"base-patch16-{side}" for side in (224, 256, 384, 512)),
        *(f"large-patch16-{side}" for side in (256, 384, 512)),
        *(f"so400m-patch14-{side}" for side in (224, 384)),
        *(f"so400m-patch16-{side}" for side in (256, 384, 512)),
        *(f"giant-opt-patch16-{side}" for side in (256, 384)),
        *(f"{size}-patch16-naflex" for size in ("base", "so400m")),
    ):
        yield Published(f"siglip2_{size.replace('-', '_')}", f"google/siglip2-{size}", _APACHE)
    yield from _swin()
    for size in (
        "base_patch16_224",
        "base_patch16_384",
        *(f"large_patch16_{side}" for side in (224, 384, 512)),
    ):
        yield Published(f"beit_{size}", f"timm/beit_{size}.in22k_ft_in22k_in1k", _APACHE)
    for size in ("base_patch16_224", "large_patch16_224"):
        yield Published(f"beitv2_{size}", f"timm/beitv2_{size}.in1k_ft_in22k_in1k", _APACHE)
    for size in (
        *(f"{kind}_{side}" for kind in ("xxs24", "xxs36", "s24") for side in (224, 384)),
        *("xs24_384", "s36_384", "m36_384", "m48_448"),
    ):
        yield Published(f"cait_{size}", f"timm/cait_{size}.fb_dist_in1k", _APACHE)
    yield Published("mae_vit_base_patch16", "facebook/vit-mae-base", None)
    yield Published("vit_base_patch16_224", "google/vit-base-patch16-224", _APACHE)
    yield Published(
        "deit_base_distilled_patch16_224", "facebook/deit-base-distilled-patch16-224", _APACHE
    )


PUBLISHED = tuple(_published())


def published_of(name: str) -> Published | None:
    """The weights of a registered name: the first of the table; None: none are known."""
    return next((entry for entry in PUBLISHED if entry.name == name), None)


def published_at(repository: str) -> Published | None:
    """What is known of a repository; None: nothing."""
    return next((entry for entry in PUBLISHED if entry.repository == repository), None)
