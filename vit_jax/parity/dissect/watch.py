"""The calls that a PyTorch module makes, seen as they are made, each with its place in the code."""

import collections
import contextlib
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vit_jax.inspect.stages import arrays_of
from vit_jax.parity.torch_run import import_torch

_OURS = str(Path(__file__).resolve().parents[1])


@dataclasses.dataclass(frozen=True)
class Site:
    """Where in the reference's code a call stands.

    Attributes:
      function: what is called.
      kind: the class of the module whose code it is.
      file, line: of that code; the file is empty where it is PyTorch's own.
      number: of equal calls at this line, in one call of the module.
      inside: the function of PyTorch's that it is a part of, such as an attention; or "".
    """

    function: str
    kind: str
    file: str
    line: int
    number: int
    inside: str

    def is_alike(self, other: "Site") -> bool:
        """Whether it is the same line of the same class."""
        return dataclasses.replace(self, number=other.number) == other


def is_tensor(value: Any) -> bool:
    return isinstance(value, import_torch().Tensor)


def tensors_in(value: Any) -> list[Any]:
    return list(arrays_of(value, is_tensor).values())


def name_of(function: Callable[..., Any]) -> str:
    """`softmax`, `add` for `__radd__` and `add_` too, `T` for the attribute."""
    name = getattr(function, "__name__", "")
    if name == "__get__":
        full = import_torch().overrides.resolve_name(function) or ""
        return full.split(".")[-2] if full.count(".") > 1 else full
    name = name.strip("_")
    return _OPERATORS.get(name, name)


_OPERATORS = {
    **{f"{r}{name}": name for name in ("add", "sub", "mul", "matmul", "pow") for r in ("r", "i")},
    **dict.fromkeys(("truediv", "rtruediv", "itruediv", "rdiv", "divide"), "div"),
    "subtract": "sub",
    "multiply": "mul",
    "concat": "cat",
    "concatenate": "cat",
}


@dataclasses.dataclass
class _Frame:
    stage: str
    module: Any
    calls: collections.Counter


class Stack(contextlib.ExitStack):
    """The modules that are running, by the names of the stages here.

    Args:
      rename: of a module's path; what it turns into "" is a wrapper.
    """

    def __init__(self, rename: Callable[[str], str]):
        super().__init__()
        self.frames: list[_Frame] = []
        self.on_entry: Callable[[str, tuple], tuple] = lambda path, args: args
        self._rename = rename
        self._paths: dict[int, str] = {}
        self._calls: collections.Counter[str] = collections.Counter()

    def __enter__(self) -> "Stack":
        hooks = import_torch().nn.modules.module
        self.callback(hooks.register_module_forward_pre_hook(self._enter).remove)
        self.callback(hooks.register_module_forward_hook(self._leave).remove)
        return super().__enter__()

    def _enter(self, module: Any, args: tuple) -> tuple:
        if not self.frames:
            self._calls.clear()
            self._paths = {
                id(part): (self._rename(path) or f"({path})") if path else ""
                for path, part in reversed(list(module.named_modules()))
            }
        path = self._paths.get(id(module), f"({type(module).__name__})")
        number = self._calls[path]
        self._calls[path] += 1
        stage = f"{path}#{number}" if number else path
        args = self.on_entry(path, args)
        self.frames.append(_Frame(stage, module, collections.Counter()))
        return args

    def _leave(self, module: Any, args: Any, output: Any) -> None:
        del module, args, output
        self.frames.pop()

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(frame.stage for frame in self.frames)

    def site(self, function: Callable[..., Any], inside: str) -> Site:
        """Of a call that is made now."""
        frame = self.frames[-1]
        kind = type(frame.module)
        is_torch = kind.__module__.startswith("torch.")
        torch_files = str(Path(import_torch().__file__).parent)
        code = sys._getframe(1)
        while code.f_back is not None:
            file = code.f_code.co_filename
            own = is_torch and code.f_locals.get("self") is frame.module
            if own or not file.startswith((torch_files, _OURS)):
                break
            code = code.f_back
        file, line = ("" if is_torch else code.f_code.co_filename), code.f_lineno
        name = name_of(function)
        number = frame.calls[name, file, line, inside]
        frame.calls[name, file, line, inside] += 1
        return Site(name, kind.__qualname__, file, line, number, inside)


def watching(stack: Stack, watch: Callable[[Site, Any, tuple, dict], Any]) -> Any:
    """A mode in which each call of a function with tensors goes through `watch`.

    Attention functions are taken apart: what they compute is called in their place.
    """
    torch = import_torch()
    functional = torch.nn.functional
    apart = {
        functional.scaled_dot_product_attention: _attention,
        functional.multi_head_attention_forward: _multi_head_attention,
    }
    inside: list[str] = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            del types
            kwargs = kwargs or {}
            if not stack.frames:
                return func(*args, **kwargs)
            if func in apart:
                inside.append(name_of(func))
                try:
                    with self:
                        output = apart[func](*args, **kwargs)
                finally:
                    inside.pop()
                if output is not None:
                    return output
            site = stack.site(func, inside[-1] if inside else "")
            return watch(site, func, args, kwargs)

    return Mode()


def _attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """`scaled_dot_product_attention` by its formula; None where it drops."""
    torch = import_torch()
    if dropout_p:
        return None
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.matmul(query * scale, key.transpose(-2, -1))
    if is_causal:
        keeps = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(~torch.tril(keeps), -torch.inf)
    if attn_mask is not None:
        is_bool = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if is_bool else scores + attn_mask
    return torch.matmul(torch.nn.functional.softmax(scores, dim=-1), value)


def _multi_head_attention(
    query,
    key,
    value,
    embed_dim_to_check,
    num_heads,
    in_proj_weight,
    in_proj_bias,
    bias_k,
    bias_v,
    add_zero_attn,
    dropout_p,
    out_proj_weight,
    out_proj_bias,
    training=True,
    key_padding_mask=None,
    need_weights=True,
    attn_mask=None,
    use_separate_proj_weight=False,
    q_proj_weight=None,
    k_proj_weight=None,
    v_proj_weight=None,
    static_k=None,
    static_v=None,
    average_attn_weights=True,
    is_causal=False,
):
    """`multi_head_attention_forward` by its formula; None for what it has beyond that."""
    del embed_dim_to_check
    beyond = (bias_k, bias_v, static_k, static_v, key_padding_mask)
    if any(x is not None for x in beyond) or add_zero_attn or (training and dropout_p):
        return None
    torch = import_torch()
    is_single = query.ndim == 2
    given = [x.unsqueeze(1) if is_single else x for x in (query, key, value)]
    weights = (q_proj_weight, k_proj_weight, v_proj_weight)
    weights = weights if use_separate_proj_weight else in_proj_weight.chunk(3)
    biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    linear = torch.nn.functional.linear
    q, k, v = (
        linear(x, w, b).unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3)
        for x, w, b in zip(given, weights, biases, strict=True)
    )
    if attn_mask is not None and attn_mask.ndim == 3:
        attn_mask = attn_mask.unflatten(0, (-1, num_heads))
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
    if attn_mask is None and is_causal:
        return None
    if attn_mask is not None:
        is_bool = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(attn_mask, -torch.inf) if is_bool else scores + attn_mask
    shares = torch.nn.functional.softmax(scores, dim=-1)
    mixed = torch.matmul(shares, v).permute(2, 0, 1, 3).flatten(-2)
    output = linear(mixed, out_proj_weight, out_proj_bias)
    if average_attn_weights:
        shares = shares.mean(dim=1)
    if is_single:
        output, shares = output.squeeze(1), shares.squeeze(0)
    return output, shares if need_weights else None


def site_in_words(site: Site) -> str:
    parts = [f"in {site.inside}"] if site.inside else []
    if site.file:
        parts.append(f"{Path(site.file).name}, line {site.line}")
    else:
        parts.append(f"of {site.kind}")
    return f" ({', '.join(parts)})"
