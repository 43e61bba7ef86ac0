"""The names of the models, and what each is built from."""

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from flax import nnx

from vit_jax.models.base import Variant, VisionModel
from vit_jax.models.beit import Beit
from vit_jax.models.cait import Cait
from vit_jax.models.classifier_vit import ViTClassifier
from vit_jax.models.clip import Clip
from vit_jax.models.dinov2 import Dinov2
from vit_jax.models.dinov3 import Dinov3
from vit_jax.models.encoder_vit import EncoderViT
from vit_jax.models.mae import Mae
from vit_jax.models.modular_vit import ModularViT
from vit_jax.models.pretrained import PUBLISHED
from vit_jax.models.siglip import Siglip
from vit_jax.models.siglip_naflex import SiglipNaflex
from vit_jax.models.streams import Streams
from vit_jax.models.swin import Swin
from vit_jax.models.swin_v2 import SwinV2
from vit_jax.models.t2t_vit import T2TViT, T2TViTGhost, T2TViTSE
from vit_jax.models.t2t_vit_dense import T2TViTDense
from vit_jax.models.vit import VisionTransformer

DESIGNS: tuple[type[VisionModel[Any]], ...] = (
    Clip,  # before `siglip`, whose names are among its own
    Siglip,
    SiglipNaflex,
    Dinov3,
    SwinV2,  # before `swin`, whose names at Hugging Face are among its own
    Swin,  # before `beit` and `vit`, likewise
    Beit,
    Mae,
    Dinov2,  # before `vit`, whose names at Hugging Face are among its own
    VisionTransformer,
    Cait,
    T2TViT,
    T2TViTSE,
    T2TViTGhost,
    T2TViTDense,
    ViTClassifier,
    EncoderViT,
    ModularViT,
)
_NAMES: dict[str, type[VisionModel[Any]]] = {
    name: design for design in DESIGNS for name in design.variants
}
_DESIGNS_BY_NAME: dict[str, type[VisionModel[Any]]] = {design.design: design for design in DESIGNS}
_TIMM_NAMES = {theirs: found for design in DESIGNS for theirs, found in design.timm_names.items()}


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Returns the registered names that match a glob, sorted.

    Args:
      pattern: the glob.
      pretrained: only those of which `vit_jax.models.pretrained` knows published weights.
    """
    known = {entry.name for entry in PUBLISHED} if pretrained else _NAMES
    return sorted(fnmatch.filter(known, pattern))


def name_of_timm(architecture: Any) -> tuple[str, Mapping[str, Any]] | None:
    """The registered name of an architecture of timm, and the fields in which it differs from that.

    None where there is none.
    """
    if not isinstance(architecture, str):
        return None
    return (architecture, {}) if architecture in _NAMES else _TIMM_NAMES.get(architecture)


def design_of(name: str) -> type[VisionModel[Any]]:
    """Returns the design of a registered name, or that is called so.

    Raises:
      ValueError: an unknown name; near ones are proposed.
    """
    found = _NAMES.get(name) or _DESIGNS_BY_NAME.get(name)
    if found is not None:
        return found
    near = difflib.get_close_matches(str(name), _NAMES, n=3, cutoff=0.5)
    hint = f"; near: {', '.join(near)}" if near else ""
    raise ValueError(
        f"unknown model {name!r}{hint}; vit_jax.list_models() gives all {len(_NAMES)} names"
    )


def register_model(design: type[Any]) -> type[Any]:
    """Adds a design of your own, for this process; may stand above its class as a decorator.

    `create_model`, `TrainConfig` and all commands of the process then know it as the package's own.
    In a recipe it stands beside `get_config`; to read the run's weights back, import it first.

    Args:
      design: what a design's file in `vit_jax.models` holds: its `design`, `config_class` and
        `variants` are registered.

    Raises:
      ValueError: it is no design, or has a name that is taken.
    """
    if not (isinstance(design, type) and issubclass(design, VisionModel)):
        raise ValueError(f"wanted a subclass of VisionModel, got {design!r}")
    names = [design.design, *design.variants]
    # A file that is run again (a recipe, a notebook's cell) makes the same class anew.
    same = (design.__module__, design.__qualname__)
    for name in names:
        found = _NAMES.get(name) or _DESIGNS_BY_NAME.get(name)
        if found is not None and (found.__module__, found.__qualname__) != same:
            raise ValueError(f"the name {name!r} is taken by {found.__module__}.{found.__name__}")
    _NAMES.update(dict.fromkeys(design.variants, design))
    _DESIGNS_BY_NAME[design.design] = design
    return design


def _registered(name: str) -> Variant | None:
    """What a registered name adds to its design; None for the name of a design."""
    return design_of(name).variants.get(name)


def model_fields(name: str) -> dict[str, Any]:
    """Returns every field of a registered name and its default there.

    Raises:
      ValueError: an unknown name; near ones are proposed.
    """
    variant = _registered(name)
    defaults = {f.name: f.default for f in dataclasses.fields(design_of(name).config_class)}
    return {**defaults, **(variant.fields if variant else {})}


def create_model(name: str, /, *, rngs: nnx.Rngs, **overrides: Any) -> VisionModel[Any]:
    """Builds a registered model, in train mode.

    Args:
      name: one of `list_models()`, or the name of a design, which has no preprocessing.
      rngs: stream "params" draws the initial weights.
      **overrides: fields of the design, in place of the name's own.

    Raises:
      ValueError: an unknown name or field (near or valid ones are named), or a field that does not
        fit.
    """
    design, fields = design_of(name), model_fields(name)
    _check_fields(name, overrides, fields)
    if not isinstance(rngs, nnx.Rngs):
        raise ValueError(f"rngs must be flax.nnx.Rngs, such as nnx.Rngs(0), got {rngs!r}")
    build = cast(Callable[..., VisionModel[Any]], design)
    model = build(design.config_class(**{**fields, **overrides}), rngs=rngs)
    variant = _registered(name)
    preprocessing = variant.preprocessing if variant else None
    if preprocessing is not None and len(preprocessing.mean) != model.in_chans:
        preprocessing = None
    model.spec = dataclasses.replace(model.spec, name=name, preprocessing=preprocessing)
    return model


def abstract_model(name: str, /, **overrides: Any) -> VisionModel[Any]:
    """The model of `create_model`, in train mode, its arrays as shapes and types alone.

    Raises:
      ValueError: see `create_model`.
    """
    _check_fields(name, overrides, model_fields(name))  # "rngs" is none
    return nnx.eval_shape(lambda: create_model(name, rngs=Streams(0), **overrides))


def _check_fields(name: str, given: Iterable[str], fields: Mapping[str, Any]) -> None:
    for field in given:
        if field not in fields:
            near = difflib.get_close_matches(field, fields, n=1, cutoff=0.5)
            hint = f", did you mean {near[0]!r}?" if near else ","
            raise ValueError(
                f"unknown field {field!r} of {name}{hint} valid fields: {', '.join(fields)}"
            )
