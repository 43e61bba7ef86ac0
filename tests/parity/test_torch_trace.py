"""What `trace_torch` keeps of a PyTorch module, against PyTorch asked directly."""

import sys
import warnings
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.commands import run_alone
from vit_jax.models.vit import VisionTransformer
from vit_jax.parity.golden_weights import make_labels
from vit_jax.parity.torch_trace import trace_torch
from vit_jax.parity.values import OptimizerSpec, Reference, Whole
from vit_jax.weights.dialects import module_to_own, to_own

IMAGES = np.random.default_rng(0).normal(size=(2, 4, 6, 3))


class Pair(nn.Module):
    """Takes its input by keyword and answers with more than it: integers first."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 5)

    def forward(self, *, mask, x):
        return mask, [self.linear(x)]


class Toy(nn.Module):
    """A layer called twice and under two names, outputs written over in place, one never called."""

    table: torch.Tensor

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 2, stride=2)
        self.layer = nn.Linear(5, 5)
        self.alias = self.layer
        self.relu = nn.ReLU(inplace=True)
        self.pair = Pair()
        self.head = nn.Linear(5, 4)
        self.unused = nn.Linear(2, 2)
        self.register_buffer("table", torch.randn(6, 5))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.frozen = nn.Parameter(torch.randn(5), requires_grad=False)

    def forward(self, images):
        x = self.conv(images)
        x += 1
        x = x.flatten(2).mT  # (B, 6, 5)
        x = self.layer(x) + self.table * self.frozen
        x = self.relu(self.layer(x))
        x = self.pair(mask=torch.zeros(2, dtype=torch.int64), x=x)[1][0]
        return self.head(x.mean(1))


@pytest.fixture
def toy() -> Toy:
    torch.manual_seed(0)
    return Toy()


def array(value: Any) -> np.ndarray:
    assert isinstance(value, Whole)
    assert value.array.dtype == np.float64
    return value.array


def assert_equal(got: Any, want: torch.Tensor | None, atol: float = 1e-14) -> None:
    assert want is not None
    np.testing.assert_allclose(array(got), want.detach().numpy(), rtol=0, atol=atol)


def as_torch(images: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(images, -1, 1)).to(dtype)


def test_stages_in_their_order(toy: Toy) -> None:
    reference = trace_torch(toy, IMAGES)
    assert list(reference.stages) == [
        "before ",
        *("before conv", "conv"),
        *("before layer", "layer", "before layer#1", "layer#1"),
        *("before relu", "relu", "before pair", "before pair.linear", "pair.linear"),
        *("pair", "pair[0]"),
        *("before head", "head", ""),
    ]
    toy.double()
    conv = toy.conv(as_torch(IMAGES))
    layer = toy.layer((conv + 1).flatten(2).mT)
    before = layer + toy.table * toy.frozen
    again = toy.layer(before)
    assert (again < 0).any()
    assert_equal(reference.stages["conv"], conv)
    assert_equal(reference.stages["layer"], layer)
    assert_equal(reference.stages["before layer#1"], before)
    assert_equal(reference.stages["layer#1"], again)  # as it was before the ReLU wrote over it
    assert_equal(reference.stages["relu"], again.relu())
    assert_equal(reference.stages["before pair"], again.relu())
    assert_equal(reference.stages["pair"], toy.pair.linear(again.relu()))
    assert_equal(reference.stages[""], toy(as_torch(IMAGES)))
    np.testing.assert_array_equal(reference.images, as_torch(IMAGES).numpy())


def test_noise_is_what_float32_is_off(toy: Toy) -> None:
    reference = trace_torch(toy, IMAGES)
    narrow = toy(as_torch(IMAGES, torch.float32)).double()
    off = (narrow - toy.double()(as_torch(IMAGES))).abs().max().item()
    assert reference.stages[""].noise == pytest.approx(off, rel=1e-6)
    assert off > 1e-9
    for values in (reference.stages, reference.gradients, reference.stage_gradients):
        assert all(value.noise < 1e-5 for value in values.values())
        assert any(value.noise > 1e-9 for value in values.values())


def test_weights_and_gradients(toy: Toy) -> None:
    reference = trace_torch(toy, IMAGES, labels=np.array([3, 1]))
    floats = {name for name, entry in toy.state_dict().items() if entry.is_floating_point()}
    assert set(reference.weights) == floats
    assert {"table", "frozen", "alias.weight"} < floats
    np.testing.assert_array_equal(reference.weights["table"], toy.table.numpy())
    assert reference.untrained == {"unused.weight", "unused.bias"}

    toy.double()
    images = as_torch(IMAGES).requires_grad_()
    delta = torch.zeros(2, 6, 5, dtype=torch.float64, requires_grad=True)
    calls = []

    def add(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        calls.append(output)
        return output + delta if len(calls) == 2 else None

    toy.layer.register_forward_hook(add)
    loss = nn.functional.cross_entropy(toy(images), torch.tensor([3, 1]))
    loss.backward()
    assert reference.loss is not None
    assert_equal(reference.loss, loss)
    assert_equal(reference.image_gradient, images.grad)
    assert_equal(reference.stage_gradients["layer#1"], delta.grad)
    assert set(reference.stage_gradients) == {
        stage for stage in reference.stages if not stage.startswith("before ")
    } - {"pair[0]"}
    want = {name: p.grad for name, p in toy.named_parameters() if p.grad is not None}
    assert set(reference.gradients) == set(want)
    assert not {"frozen", "alias.weight"} & set(want)
    for name, gradient in want.items():
        assert_equal(reference.gradients[name], gradient)


def test_default_labels_and_none_without_classes(toy: Toy) -> None:
    reference = trace_torch(toy, IMAGES)
    assert reference.labels is not None
    np.testing.assert_array_equal(reference.labels, make_labels(2, 4))
    assert reference.direction is None
    tokens = np.random.default_rng(1).normal(size=(2, 3, 5))
    reference = trace_torch(nn.Linear(5, 4), tokens)
    np.testing.assert_array_equal(reference.images, tokens)
    direction = np.random.default_rng(0).standard_normal((2, 3, 4))
    assert reference.labels is None
    assert reference.direction is not None
    np.testing.assert_array_equal(reference.direction, direction)
    want = (array(reference.stages[""]) * direction).mean()
    assert array(reference.loss) == pytest.approx(want, abs=1e-15)


def test_the_module_is_left_as_it_is(toy: Toy) -> None:
    toy.conv.requires_grad_(False)
    seen = []
    toy.head.register_forward_hook(lambda *_: seen.append(1))
    before = {name: entry.clone() for name, entry in toy.state_dict().items()}
    with torch.no_grad():
        reference = trace_torch(toy, IMAGES, optimizer=OptimizerSpec(steps=1))
    assert "conv.weight" not in reference.gradients
    assert reference.gradients
    assert toy.training
    assert len(toy.head._forward_hooks) == 1
    assert not any(part._forward_pre_hooks for part in toy.modules())
    assert all(p.grad is None and p.dtype == torch.float32 for p in toy.parameters())
    assert all(torch.equal(entry, before[name]) for name, entry in toy.state_dict().items())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_training(toy: Toy, name: str) -> None:
    spec = OptimizerSpec(name=name, steps=3, learning_rate=0.1, weight_decay=0.3)
    reference = trace_torch(toy, IMAGES, optimizer=spec)
    assert reference.optimizer is spec
    assert reference.labels is not None
    toy.double()
    trained = [p for p in toy.parameters() if p.requires_grad]
    if name == "adamw":
        optimizer: Any = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.3)
    else:
        optimizer = torch.optim.SGD(trained, lr=0.1, weight_decay=0.3, momentum=0.9)
    losses = []
    for step in range(4):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(
            toy(as_torch(IMAGES)), torch.from_numpy(reference.labels)
        )
        losses.append(loss.item())
        loss.backward()
        if step < 3:
            optimizer.step()
    assert reference.losses is not None
    assert_equal(reference.losses, torch.tensor(losses, dtype=torch.float64))
    assert set(reference.trained) == {n for n, p in toy.named_parameters() if p.requires_grad}
    for key, value in reference.trained.items():
        assert_equal(value, toy.get_parameter(key))
    start = reference.weights["unused.weight"]
    np.testing.assert_array_equal(array(reference.trained["unused.weight"]), start)


def test_without_gradients(toy: Toy) -> None:
    reference = trace_torch(toy, IMAGES, grad=False)
    assert reference.loss is reference.image_gradient is reference.losses is None
    assert not reference.gradients
    assert not reference.trained
    assert len(reference.stages) == 17


@pytest.mark.parametrize("frozen", [False, True])
def test_inside_of_pytorchs_encoder(frozen: bool) -> None:
    """Its fused path, which calls no inner module, is not taken, whatever is frozen."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    encoder.requires_grad_(not frozen)
    tokens = np.random.default_rng(1).normal(size=(2, 5, 8))
    reference = trace_torch(encoder, tokens, grad=not frozen)
    assert {"layers.0.linear1", "layers.1.self_attn", "layers.1.norm2"} < set(reference.stages)
    assert_equal(reference.stages["layers.1"], torch.from_numpy(array(reference.stages[""])))
    assert_equal(reference.stages[""], encoder.double().eval()(torch.from_numpy(tokens)), 1e-13)


def test_names_by_patterns(toy: Toy) -> None:
    names = [(r"^pair\.linear\.", "proj."), (r"^head\.", "classifier."), (r"\bconv\b", "patch")]
    reference = trace_torch(toy, IMAGES, names=names, optimizer=OptimizerSpec(steps=1))
    assert {"proj", "classifier", "before patch", "layer#1", "pair", ""} < set(reference.stages)
    assert {"proj.weight", "patch.bias"} < set(reference.gradients)
    assert not any("head" in name for name in (*reference.weights, *reference.trained))
    assert "classifier" in reference.stage_gradients


def test_names_by_a_function_and_wrappers(toy: Toy) -> None:
    """A wrapper whose name goes away is not the model: the root alone is."""
    wrapped = nn.Sequential(OrderedDict(inner=toy, soft=nn.Softmax(-1)))
    reference = trace_torch(wrapped, IMAGES, names=lambda name: name.removeprefix("inner."))
    assert_equal(reference.stages[""], wrapped.double()(as_torch(IMAGES)))
    np.testing.assert_allclose(array(reference.stages[""]).sum(-1), 1)
    assert "layer.weight" in reference.weights
    assert "unused.weight" in reference.untrained
    plain = trace_torch(toy, IMAGES)
    np.testing.assert_array_equal(
        array(reference.stages["layer#1"]), array(plain.stages["layer#1"])
    )


class Output(nn.Module):
    """Answers with a dictionary, as Hugging Face's models do."""

    def forward(self, x):
        return {"loss": x.sum(), "logits": 2 * x}


def test_the_root_answers_with_its_logits() -> None:
    x = np.random.default_rng(1).normal(size=(2, 5))
    np.testing.assert_array_equal(array(trace_torch(Output(), x).stages[""]), 2 * x)


class Overwriting(nn.Module):
    def forward(self, x):
        return x.mul_(2)


def test_a_module_may_write_into_its_input() -> None:
    x = np.random.default_rng(1).normal(size=(2, 5))
    reference = trace_torch(Overwriting(), x)
    np.testing.assert_array_equal(array(reference.stages["before "]), x)
    np.testing.assert_array_equal(array(reference.stages[""]), 2 * x)
    np.testing.assert_array_equal(
        array(reference.image_gradient), 2 * array(reference.stage_gradients[""])
    )


class Random(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5)


class Detached(nn.Module):
    def forward(self, x):
        return x.detach()


class Nothing(nn.Module):
    def forward(self, x):
        return x.argmax(-1)


class Computed(nn.Module):
    """Keeps a tensor that PyTorch cannot copy."""

    def __init__(self):
        super().__init__()
        self.kept = torch.ones(2, requires_grad=True) * 2


X = np.ones((2, 5))


@pytest.mark.parametrize(
    ("module", "images", "settings", "message"),
    [
        (np.tanh, X, {}, "wanted a torch.nn.Module, got ufunc"),
        (nn.Identity(), X.astype(int), {}, "answers with a floating-point tensor"),
        (nn.Identity(), X.astype(bool), {}, r"floats or whole numbers, got bool \[2, 5\]"),
        (nn.Identity(), X[0], {}, r"got float64 \[5\]"),
        (nn.Identity(), X[:0], {}, r"got float64 \[0, 5\]"),
        (nn.Identity(), X, {"labels": np.array([1, 5])}, "labels from 0 to 4, got 1 to 5"),
        (nn.Identity(), X, {"labels": np.array([-1, 4])}, "labels from 0 to 4, got -1 to 4"),
        (nn.Identity(), X, {"labels": np.array([1])}, r"2 whole numbers as labels, got int64 \[1"),
        (nn.Identity(), X, {"labels": np.ones(2)}, "2 whole numbers as labels, got float64"),
        (nn.Identity(), X[None], {"labels": np.array([1])}, r"answered \[1, 2, 5\]: leave"),
        (nn.Identity(), X, {"grad": False, "optimizer": OptimizerSpec()}, "wanted grad=True"),
        (nn.Linear(5, 5), X, {"names": lambda _: "a"}, "both weight and bias are 'a'"),
        (nn.Linear(5, 5), X, {"names": [("(", "")]}, "function or pairs .*unterminated"),
        (nn.Linear(5, 5), X, {"names": [("a", r"\1")]}, "function or pairs .*invalid group"),
        (nn.Linear(5, 5), X, {"names": 3}, "function or pairs .*not iterable"),
        (Random(), X, {}, "second answer is .* off its first"),
        (Detached(), X, {}, "cannot be differentiated: pass grad=False"),
        (Nothing(), X, {}, "answers with a floating-point tensor"),
        (Computed(), X, {}, "PyTorch cannot copy this module"),
    ],
)
def test_mistakes(module: Any, images: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trace_torch(module, images, **settings)


def test_what_the_module_raises_is_let_through() -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        trace_torch(nn.Linear(4, 2), X)


class Float32(nn.Module):
    """Runs in float32 alone."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 5)

    def forward(self, x):
        if x.dtype != torch.float32:
            raise RuntimeError("expected scalar type Float but found Double")
        return self.linear(nn.functional.layer_norm(x, (5,)))


def test_a_module_of_float32_alone() -> None:
    x = np.random.default_rng(1).normal(size=(4, 5))
    with pytest.raises(
        ValueError, match=r"not in float64 .*found Double.*precisions=\(\"float32\",\)"
    ):
        trace_torch(Float32(), x)
    torch.manual_seed(0)
    reference = trace_torch(Float32(), x, float32_alone=True)
    assert reference.is_float32
    # Its noise is estimated to be about what it is.
    plain = Float32()
    torch.manual_seed(0)
    plain = nn.Sequential(nn.LayerNorm(5, elementwise_affine=False), Float32().linear)
    floor = trace_torch(plain, x)
    for name in ("", "gradients"):
        one = reference.stages[""] if not name else reference.gradients["linear.weight"]
        other = floor.stages[""] if not name else floor.gradients["1.weight"]
        assert 0.3 < one.noise / other.noise < 10
    assert not trace_torch(plain, x, float32_alone=True).is_float32


def test_overflow_in_float32_is_no_excuse() -> None:
    class Large(nn.Module):
        def forward(self, x):
            return (100 * x).exp()

    value = trace_torch(Large(), X, grad=False).stages[""]
    assert np.isfinite(array(value)).all()
    assert value.noise == 0


def test_without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match="pip install torch"):
        trace_torch(None, X)  # type: ignore[arg-type]


def test_import_needs_no_pytorch() -> None:
    modules = ("torch_trace", "torch_run", "golden", "golden_writer")
    code = "; ".join(f"import vit_jax.parity.{name}" for name in modules)
    code = f"import sys; sys.modules['torch'] = None; {code}"
    run_alone("-c", code)


# ---------------------------------------------------------------------------- Hugging Face


@pytest.fixture(scope="module")
def hf() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports, some at every new Python
        from transformers import (
            DeiTConfig,
            DeiTForImageClassificationWithTeacher,
            ViTConfig,
            ViTForImageClassification,
        )
    return SimpleNamespace(
        vit=(ViTForImageClassification, ViTConfig),
        distilled=(DeiTForImageClassificationWithTeacher, DeiTConfig),
    )


def hf_module(hf: Any, design: str) -> nn.Module:
    kind, config = getattr(hf, design)
    torch.manual_seed(0)
    module = kind(
        config(
            hidden_size=8,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=8,
            patch_size=4,
            num_labels=5,
            layer_norm_eps=1e-6,
        )
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return module


HF_IMAGES = np.random.default_rng(1).normal(size=(2, 8, 8, 3))
# Stages that have a counterpart, by their name in transformers 5.
HF_STAGES = {
    "embeddings.patch_embeddings": "patch_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.dropout": "pos_drop",
    "layers.0": "blocks.0",
    "layers.0.layernorm_before": "blocks.0.norm1",
    "layers.0.attention": "blocks.0.attn",
    "layers.0.attention.o_proj": "blocks.0.attn.proj",
    "layers.0.layernorm_after": "blocks.0.norm2",
    "layers.2.mlp": "blocks.2.mlp",
    "layers.2.mlp.fc1": "blocks.2.mlp.fc1",
    "layers.2.mlp.fc2": "blocks.2.mlp.fc2",
    "layernorm": "norm",
}


@pytest.mark.parametrize("design", ["vit", "distilled"])
def test_hugging_face(hf: Any, design: str) -> None:
    """Under timm's names; its run under its own names has the same values."""
    module = hf_module(hf, design)
    spec = OptimizerSpec(steps=1)
    reference = trace_torch(module, HF_IMAGES, optimizer=spec)
    theirs: Reference = trace_torch(module, HF_IMAGES, optimizer=spec, names=lambda name: name)
    prefix = "vit." if design == "vit" else "deit."
    heads = {"classifier": "head"}
    if design == "distilled":
        heads = {"cls_classifier": "head", "distillation_classifier": "head_dist"}
    pairs = {f"{prefix}{theirs}": ours for theirs, ours in HF_STAGES.items()} | heads
    for path, ours in (*pairs.items(), ("", "")):
        for before in ("before ", ""):
            got, want = reference.stages[before + ours], theirs.stages[before + path]
            np.testing.assert_array_equal(array(got), array(want))
    assert array(reference.stages["blocks.0.attn"]).shape == array(reference.stages["norm"]).shape
    attention = f"{prefix}layers.1.attention."
    for values in ("gradients", "trained"):
        got = getattr(reference, values)["blocks.1.attn.qkv.weight"]
        parts = [getattr(theirs, values)[f"{attention}{part}_proj.weight"] for part in "qkv"]
        np.testing.assert_array_equal(array(got), np.concatenate([array(part) for part in parts]))
        assert got.noise == max(part.noise for part in parts)
    weights, dialect = to_own(theirs.weights)
    assert dialect == "huggingface"
    assert reference.weights.keys() == weights.keys() == reference.gradients.keys()
    assert {"cls_token", "pos_embed", "patch_embed.proj.bias", "norm.bias"} < set(weights)


@pytest.mark.parametrize(
    ("dialect", "path", "want"),
    [
        ("huggingface", "vit.encoder.layer.11.attention.output.dense", "blocks.11.attn.proj"),
        ("huggingface", "deit.encoder.layer.3.intermediate.dense", "blocks.3.mlp.fc1"),
        ("huggingface", "encoder.layer.3.attention", "blocks.3.attn"),
        ("huggingface", "vit.encoder.layer.3.attention.attention", None),
        ("huggingface", "vit.encoder.layer.3.output", None),  # with the residual added
        ("huggingface", "vit.encoder", None),
        ("huggingface", "vit", None),
        ("torchvision", "conv_proj", "patch_embed.proj"),
        ("torchvision", "encoder.dropout", "pos_drop"),
        ("torchvision", "encoder.layers.encoder_layer_7", "blocks.7"),
        ("torchvision", "encoder.layers.encoder_layer_7.self_attention", "blocks.7.attn"),
        ("torchvision", "encoder.layers.encoder_layer_7.ln_2", "blocks.7.norm2"),
        ("torchvision", "encoder.layers.encoder_layer_7.mlp.3", "blocks.7.mlp.fc2"),
        ("torchvision", "encoder.ln", "norm"),
        ("torchvision", "heads.head", "head"),
        ("torchvision", "encoder.layers", None),
    ],
)
def test_modules_of_dialects(dialect: str, path: str, want: str | None) -> None:
    for found in VisionTransformer.dialects:
        if found.name == dialect:
            assert module_to_own(found, path) == (path if want is None else want)
