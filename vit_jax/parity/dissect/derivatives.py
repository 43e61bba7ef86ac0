"""Right values with a wrong derivative: where a gradient stops or goes through."""

from collections.abc import Callable, Iterator
from typing import Any

from vit_jax.inspect.stages import map_arrays
from vit_jax.parity.dissect.case import Case
from vit_jax.parity.dissect.functions import activations
from vit_jax.parity.dissect.program import Everywhere
from vit_jax.parity.dissect.watch import Site, is_tensor, site_in_words
from vit_jax.parity.torch_trace import rerun

_MOST_DERIVATIVES = 80


def derivative(case: Case) -> tuple[str, str] | None:
    """A change that leaves all values and gives the model's gradients."""
    if case.live is None or not case.wrong_gradients():
        return None
    stage, _ = case.run.place()
    tried: set[Site] = set()
    applied, reference = case.applied, case.reference
    sites = case.live.sites()
    if not any(path.startswith(stage) for _, path in sites):
        stage = ""  # the name of an array, not of a module
    for site, path in sites:
        is_near = path.startswith(stage)
        if not is_near or site in tried or len(tried) >= _MOST_DERIVATIVES:
            continue
        tried.add(site)
        for text, change in _derivatives(site):

            def fits(other: Site, _: str, site=site) -> bool:
                return other == site

            changes = [*applied, Everywhere(fits, change)]
            try:
                case.see(rerun(case.run.reference, changes))
            except Exception:  # nothing is left to differentiate
                continue
            if case.bad is None and not case.wrong_gradients():
                case.applied = changes
                where = f"in {path or 'the model itself'}"
                at = site_in_words(site)
                return f"{where} the values are right and a derivative is not: {text}{at}", path
    case.see(reference)
    return None


def _derivatives(site: Site) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Other derivatives of a call."""
    name = site.function
    if name == "detach":
        yield (
            "ours differentiates through what the reference detaches",
            lambda f, args, kwargs, _: args[0],
        )
        return

    def stopped(function: Any, args: tuple, kwargs: dict, _: Any) -> Any:
        output = function(*args, **kwargs)
        return map_arrays(output, lambda _, t: t.detach(), is_tensor)

    def through(function: Any, args: tuple, kwargs: dict, _: Any) -> Any:
        output = function(*args, **kwargs)
        return args[0] + (output - args[0]).detach()

    yield f"ours passes no gradient back through {name}", stopped
    yield f"ours passes the gradient back through {name} as it is", through
    for place in range(2):
        words = ("first", "second")[place]
        yield f"ours passes no gradient to the {words} operand of {name}", _held(place)
    if name in activations():
        for other, function in activations().items():
            yield f"its derivative is that of {other}", _sloped(function)


def _held(place: int) -> Callable[..., Any]:
    def apply(function: Any, args: tuple, kwargs: dict, _: Any) -> Any:
        tensors = [i for i, value in enumerate(args) if is_tensor(value)]
        held = tensors[place]
        args = tuple(a.detach() if i == held else a for i, a in enumerate(args))
        return function(*args, **kwargs)

    return apply


def _sloped(other: Callable[[Any], Any]) -> Callable[..., Any]:
    def apply(function: Any, args: tuple, kwargs: dict, _: Any) -> Any:
        slope = other(args[0])
        return function(*args, **kwargs).detach() + slope - slope.detach()

    return apply
