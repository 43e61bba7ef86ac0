"""timm's models, also without torchvision: timm's data part imports it, its models do not."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import vit_jax
from vit_jax.models.registry import abstract_model
from vit_jax.weights.huggingface import read_facts


class _Named(type):
    """A class whose attributes are their names."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _StandIn(ModuleType):
    """A module in which every name is a class of nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Named(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds torchvision, and all modules in it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        is_wanted = fullname.partition(".")[0] == "torchvision"
        return (
            importlib.machinery.ModuleSpec(fullname, self, is_package=True) if is_wanted else None
        )

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        del module


def timm_models(file: str) -> Any:
    """A file of `timm.models`; the test is skipped where timm is not installed.

    A stand-in of torchvision is there while it is imported, and no longer.
    """
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    if importlib.util.find_spec("torchvision") is not None:
        return importlib.import_module(f"timm.models.{file}")
    sys.meta_path.append(finder := _Finder())
    try:
        return importlib.import_module(f"timm.models.{file}")
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]


def with_weights_of(module: Any, name: str, **fields: Any) -> Any:
    """Our model of a registered name, in eval mode, with the weights of theirs."""
    model = abstract_model(name, **fields)
    vit_jax.load_state_dict(model, {key: t.numpy() for key, t in module.state_dict().items()})
    model.eval()
    return model


def assert_drawn_alike(state: Mapping[str, Any], module: Any, *, spread: float) -> None:
    """Initial weights of one spread and mean, to a tenth; small arrays to `spread` of it."""
    for name, tensor in module.state_dict().items():
        want, got = tensor.numpy(), state[name]
        near = 0.1 if want.size > 1000 else spread
        assert got.std() == pytest.approx(want.std(), rel=near, abs=1e-9), name
        assert got.mean() == pytest.approx(want.mean(), abs=near * want.std() + 1e-9), name


def assert_preprocessing_is_timms(model: Any, file: str, folder: Path) -> None:
    """That of a registered name is that of timm's; and a folder of timm's says both."""
    name = model.spec.name
    configs = timm_models(file).default_cfgs[name].cfgs.values()
    cfg = next(cfg for cfg in configs if cfg.num_classes == 1000)
    stated = {field: getattr(cfg, field) for field in ("mean", "std", "crop_pct", "interpolation")}
    stated |= {"input_size": cfg.input_size, "crop_mode": "center"}
    config = {"architecture": name, "num_classes": 1000, "pretrained_cfg": stated}
    (folder / "config.json").write_text(json.dumps(config))
    facts = read_facts(folder, [])[0]
    assert (facts.name, facts.preprocessing) == (name, model.spec.preprocessing)
    assert facts.fields is not None
    assert facts.fields["img_size"] == model.img_size == cfg.input_size[1:]
