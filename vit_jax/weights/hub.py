"""Names of the Hugging Face hub, such as hf:timm/vit_base_patch16_224.augreg_in21k."""

import re
from pathlib import Path

from vit_jax.models.pretrained import published_at

_FILES = ("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json")


def fetch(name: str) -> Path:
    """The local folder of a model of the hub: from the cache if it is there, else downloaded.

    Only safetensors and JSON are fetched.

    Args:
      name: "OWNER/NAME", or "OWNER/NAME@REVISION".

    Raises:
      ValueError: no such name; neither cached nor to be had; huggingface_hub is not installed.
    """
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
    if match is None:
        raise ValueError(f"wanted hf:OWNER/NAME or hf:OWNER/NAME@REVISION, got 'hf:{name}'")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError as error:
        raise ValueError(
            "names hf:OWNER/NAME need huggingface_hub: pip install 'vit-jax[hub]'"
        ) from error
    repository, revision = match.groups()
    place = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    known, gate = published_at(repository), ""
    if known is not None and known.is_gated:
        gate = (
            f"It is gated ({known.licence}): ask for access at {known.page}, then `hf auth login`. "
        )
    for local_files_only in (True, False):
        try:
            folder = Path(
                snapshot_download(
                    repository,
                    revision=revision,
                    allow_patterns=list(_FILES),
                    local_files_only=local_files_only,
                    etag_timeout=5,
                )
            )
        # huggingface_hub raises its own kinds, and those of its HTTP client.
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            continue
        if any(folder.glob("*.safetensors")):
            return folder
        reason = "it holds no .safetensors file"
    raise ValueError(
        f"hf:{name} is not in the cache and cannot be had: {reason}. It is looked for at {place}. "
        f"{gate}Where there is a network, `hf download {repository}` fills the cache; copy that "
        "folder here, or give the path of a folder with config.json and model.safetensors"
    )
