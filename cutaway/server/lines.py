"""Which names share an engine: a base and the adapters that stand beside it have its weights in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cutaway.errors import ModelError
from cutaway.models.adapted import base_of, is_adapter


@dataclass(frozen=True, slots=True)
class Line:
    """A base, the name under which it is served itself, if it is, and its ``adapters`` by name."""

    base: Path
    name: str | None
    adapters: Mapping[str, Path]

    @property
    def names(self) -> tuple[str, ...]:
        """All of its names."""
        return (*([self.name] if self.name is not None else ()), *self.adapters)

    @property
    def title(self) -> str:
        """What its engine is called."""
        return self.names[0]


def lines(places: Mapping[str, Path]) -> dict[str, Line]:
    """The line of each name. One whose base is not to be found is alone: why will be said when it is opened. Of two
    names for one folder the first is the base's."""
    bases = {name: _base(place) for name, place in places.items()}
    own: dict[Path, str] = {}
    for name, place in places.items():
        if bases[name] is None:
            own.setdefault(place.resolve(), name)
    out: dict[str, Line] = {}
    for name, place in places.items():
        base = bases[name]
        if base is None:
            first = own[place.resolve()] == name
            beside = [n for n, b in bases.items() if b == place.resolve()] if first else []
            out[name] = Line(place, name, {n: places[n] for n in beside})
        else:
            beside = [n for n, b in bases.items() if b == base]
            out[name] = Line(base, own.get(base), {n: places[n] for n in beside})
    return out


def _base(place: Path) -> Path | None:
    """What adapters stand beside; None for a model of its own, or where that is not on this machine."""
    try:
        return base_of(place).resolve() if is_adapter(place) else None
    except ModelError:
        return None
