"""Published weights here beside transformers' own model, on a photograph."""

import dataclasses
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.models.base import VisionModel
from vit_jax.parity.compare import compare
from vit_jax.parity.result import Report
from vit_jax.weights.dialects import DialectError, dialect_for

_ANSWERS = ("logits", "image_embeds", "pooler_output")


@dataclasses.dataclass(frozen=True)
class PublishedReport:
    """What was compared.

    Attributes:
      report: of the two models, on the images as they are prepared here.
      architecture: transformers' class.
      preparation: the largest difference of the photograph as both prepare it, in units of
        normalised pixels; None where transformers' processor cannot be run here.
      why: it cannot.
    """

    report: Report
    architecture: str
    preparation: float | None
    why: str = ""

    def lines(self) -> list[str]:
        """The findings in words."""
        if self.preparation is None:
            said = f"preprocessing: not compared, {self.why}"
        else:
            said = f"preprocessing: pixels differ by up to {self.preparation:.2g} of their scale"
        verdict = "equal" if self.report.ok else f"departs at {self.report.stage or 'the model'}"
        return [f"transformers' {self.architecture}: {verdict}", said]


def compare_published(
    model: VisionModel[Any], folder: Path, images: np.ndarray, photograph: Path
) -> PublishedReport:
    """Compares a model with transformers' own of the same folder.

    Args:
      model: of the folder, in float64.
      folder: of transformers: config.json beside safetensors.
      images: (1, H, W, C), the photograph as it is prepared here.
      photograph: what transformers' processor prepares.

    Raises:
      ValueError: PyTorch or transformers is not installed, or has no such model, or one that takes
        no images of one size.
    """
    try:
        dialect = dialect_for(model, "huggingface")
    except DialectError as error:
        raise ValueError(f"transformers has no model to compare with: {error}") from error
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all that is needed is in the folder
    try:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import transformers
    except ImportError as error:
        raise ValueError(
            f"--image compares with transformers' own model: pip install torch transformers "
            f"({error})"
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    kind = getattr(transformers, dialect.architecture)
    module = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    if "num_patches" in dialect.config:
        raise ValueError(
            f"{dialect.architecture} takes padded patches, not images of one size: not compared"
        )
    report = compare(model, _with_one_answer(module), images, grad=False)
    difference, why = _preparation(transformers, folder, images, photograph)
    return PublishedReport(report, dialect.architecture, difference, why)


def _with_one_answer(module: Any) -> Any:
    """The module, answering with its logits or pooled features alone."""
    kind = type(module)

    def forward(self: Any, images: Any) -> Any:
        output = kind.forward(self, images)
        return next(
            found for name in _ANSWERS if (found := getattr(output, name, None)) is not None
        )

    module.__class__ = type(
        kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__}
    )
    return module


def _preparation(
    transformers: Any, folder: Path, images: np.ndarray, photograph: Path
) -> tuple[float | None, str]:
    """How far their preparation of the photograph is from ours; None, and why, where unknown."""
    prepare: Callable[..., Any]
    try:
        from PIL import Image

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prepare = transformers.AutoImageProcessor.from_pretrained(folder)
            with Image.open(photograph) as opened:
                found = prepare(images=opened.convert("RGB"), return_tensors="np")
    except Exception as error:  # whatever their processors raise
        return None, " ".join(str(error).split())[:150] or type(error).__name__
    theirs = np.asarray(found["pixel_values"], np.float64).transpose(0, 2, 3, 1)
    if theirs.shape != images.shape:
        return None, f"they prepare {theirs.shape[1:3]} pixels, here {images.shape[1:3]}"
    return float(np.abs(theirs - images).max() / max(float(np.ptp(theirs)), 1e-9)), ""
