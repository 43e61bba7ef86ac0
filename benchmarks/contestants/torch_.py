"""The same design in PyTorch, eager or through `torch.compile`: SDPA and the fused AdamW."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.contestants import CannotCompute, Workload
from benchmarks.references import reference_of
from tests.reference.vit import Attention
from vit_jax.allocator import keep_freed_memory
from vit_jax.models.registry import model_fields


def _sdpa(self: Attention, tokens: torch.Tensor) -> torch.Tensor:
    query, key, value = (
        part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        for part in self.qkv(tokens).chunk(3, dim=-1)
    )
    mixed = F.scaled_dot_product_attention(
        self.q_norm(query),
        self.k_norm(key),
        value,
        dropout_p=self.attn_drop.p if self.training else 0.0,
        scale=self.scale,
    )
    return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


def make(
    work: Workload,
    form: str,
    *,
    compile: bool,
    timm: bool = False,
    keep_memory: bool = False,
) -> Callable[[], Any]:
    if keep_memory and not keep_freed_memory():
        raise CannotCompute("the allocator of this machine is not told")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if timm:
        if work.model.startswith(("t2t", "vit_classifier")):
            raise CannotCompute("timm does not have it")
        try:  # by name: it is no dependency of anything here
            library = importlib.import_module("timm")
        except ImportError as error:
            raise CannotCompute(str(error)) from error
        model = library.create_model(work.model, img_size=work.image_size, **work.fields)
    else:
        Attention.forward = _sdpa
        fields = {"img_size": work.image_size, **work.fields}
        model = reference_of(work.model, fields, dropout=True)
    model = model.to(device)
    classes = (model_fields(work.model) | dict(work.fields))["num_classes"]
    images = torch.randn(work.batch, 3, work.image_size, work.image_size, device=device)
    labels = torch.randint(classes, (work.batch,), device=device)
    narrow = work.dtype != "float32"

    def forward() -> torch.Tensor:
        with torch.autocast(device, getattr(torch, work.dtype), enabled=narrow):
            return model(images)

    if compile:
        model.compile()

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    if form == "forward":
        model.eval()

        def evaluate() -> None:
            with torch.inference_mode():
                forward()
            wait()

        return evaluate

    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.05, fused=True)

    def step() -> None:
        F.cross_entropy(forward().float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        wait()

    return step
