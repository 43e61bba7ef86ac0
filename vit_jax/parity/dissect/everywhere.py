"""A change of a recorded program as one of a whole run: which calls of a model are alike."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vit_jax.inspect.stages import map_arrays
from vit_jax.parity.dissect.program import Everywhere, Insert, Program
from vit_jax.parity.dissect.search import Trial
from vit_jax.parity.dissect.watch import Site, is_tensor, tensors_in

Fits = Callable[[Site, str], bool]


def scopes(program: Program, calls: Sequence[int]) -> Iterator[Callable[[int], Fits]]:
    """Which calls of a model are alike: of one class, of modules of one name, of one module."""
    numbers = {program.calls[i].site.number for i in calls}

    def scope(is_near: Callable[[str, str], bool]) -> Callable[[int], Fits]:
        def of(index: int) -> Fits:
            call = program.calls[index]

            def fits(site: Site, path: str) -> bool:
                is_number = (
                    site.number == call.site.number if len(calls) < 2 else (site.number in numbers)
                )
                return is_number and site.is_alike(call.site) and is_near(path, call.path)

            return fits

        return of

    yield scope(lambda path, own: True)
    yield scope(lambda path, own: path.rpartition(".")[2] == own.rpartition(".")[2])
    yield scope(lambda path, own: path == own)


def everywhere(program: Program, trial: Trial, fits: Callable[[int], Fits]) -> list[Everywhere]:
    """A trial as changes of a whole run."""
    found = []
    seen: list[Site] = []
    for index, apply in trial.changes.items():
        site = program.calls[index].site
        if any(site.is_alike(other) for other in seen) and len(trial.changes) > 1:
            continue  # of calls at one line a change stands for all
        seen.append(site)
        found.append(Everywhere(fits(index), lambda f, a, k, _, apply=apply: apply(f, a, k)))
    for slot, insert in trial.inserts.items():
        made = program.made(slot)
        if made is not None and made not in trial.fixed:
            place = program.calls[made].outputs.index(slot)
            found.append(Everywhere(fits(made), _on_output(place, insert)))
            continue
        for index, call in enumerate(program.calls):
            if slot in call.slots and index not in trial.fixed:
                found.append(Everywhere(fits(index), _on_input(call.slots.index(slot), insert)))
    for (index, slot), other in trial.sources.items():
        place = program.calls[index].slots.index(slot)
        made = program.made(other)
        if made is not None:
            where = program.calls[made].outputs.index(other)
            source, take = (
                fits(made),
                lambda args, kwargs, output, where=where: tensors_in(output)[where],
            )
        else:
            made = next(i for i, call in enumerate(program.calls) if other in call.slots)
            where = program.calls[made].slots.index(other)
            source, take = (
                fits(made),
                lambda args, kwargs, output, where=where: tensors_in((args, kwargs))[where],
            )
        if trial.entered is None:
            found.append(Everywhere(fits(index), _from_elsewhere(place), source, take))
            continue
        entered, site = trial.entered, program.calls[index].site

        def enters(path: str, fits=fits, index=index, entered=entered, site=site) -> bool:
            last = entered.rpartition(".")[2]
            return path.rpartition(".")[2] == last and fits(index)(
                site, program.calls[index].path if path == entered else path
            )

        found.append(Everywhere(lambda site, path: False, _unchanged, source, take, enters))
    return found


def _on_output(place: int, insert: Insert) -> Callable[..., Any]:
    def apply(function: Callable[..., Any], args: tuple, kwargs: dict, taken: Any) -> Any:
        del taken
        return _replaced(function(*args, **kwargs), place, insert)

    return apply


def _on_input(place: int, insert: Insert) -> Callable[..., Any]:
    def apply(function: Callable[..., Any], args: tuple, kwargs: dict, taken: Any) -> Any:
        del taken
        args, kwargs = _replaced((args, kwargs), place, insert)
        return function(*args, **kwargs)

    return apply


def _unchanged(function: Callable[..., Any], args: tuple, kwargs: dict, taken: Any) -> Any:
    del taken
    return function(*args, **kwargs)


def _from_elsewhere(place: int) -> Callable[..., Any]:
    def apply(function: Callable[..., Any], args: tuple, kwargs: dict, taken: Any) -> Any:
        args, kwargs = _replaced((args, kwargs), place, lambda tensor: taken)
        return function(*args, **kwargs)

    return apply


def _replaced(value: Any, place: int, insert: Insert) -> Any:
    """The value with one of the tensors in it put through a function."""
    count = iter(range(len(tensors_in(value))))
    return map_arrays(value, lambda _, t: insert(t) if next(count) == place else t, is_tensor)
