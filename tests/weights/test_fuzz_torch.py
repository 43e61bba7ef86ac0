"""Random damage to PyTorch files.

`VIT_JAX_FUZZ=1000 pytest tests/weights/test_fuzz_torch.py` damages files of 20 MB that often.
"""

import argparse
import os
import sys
from pathlib import Path

import pytest
import torch

from tests.weights.mutate import attack

COUNT = int(os.environ.get("VIT_JAX_FUZZ", "0"))
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="its memory limit is Linux's")

READER = "vit_jax.weights.torch_file:read_torch_file"


def save_checkpoint(path: Path, width: int, zipped: bool) -> Path:
    """A checkpoint with its optimizer: 48 storages."""
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(6)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, width)).sum().backward()
    optimizer.step()
    args = argparse.Namespace(lr=0.1, names=["a", "b"], seed=2**40)
    checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "args": args}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("form", ["zip", "zip without checksums", "legacy"])
@pytest.mark.timeout(3600)
def test_damaged_files(form: str, tmp_path: Path) -> None:
    """Without checksums the damage to a zip form's pickle reaches its instructions too."""
    torch.serialization.set_crc32_options(form != "zip without checksums")
    try:
        path = save_checkpoint(tmp_path / "a.pth", 540 if COUNT else 8, form != "legacy")
    finally:
        torch.serialization.set_crc32_options(True)
    figures = attack(READER, path, seed=1, count=COUNT or 200)
    print(path.stat().st_size, figures)
    figures.check()
    assert figures.refused > figures.count / 4
    assert form == "zip" or figures.loaded > 0  # the damaged place may hold any number
