"""What is meant by a component or a setting that is given where there is none: ``--topology Ring`` by Static with that
graph, ``--compressor TopK`` by an uplink.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from fedsim.experiment.config.described import Setting, aliases, catalogue, experiment_component
from fedsim.experiment.config.names import CATALOGUES

KINDS = (*CATALOGUES, "data")
USUAL = ("FedAvg", "EF14", "NNM", "TrimmedMean")
"""Components that stand for the others with the same setting."""
MOST = 3
"""Others that are named beside it, and places where something may be given."""
NEAR = 0.8
"""Likeness, from 0 to 1, of a mistyped name and one of another kind."""


def kinds_of(name: str) -> tuple[list[str], str]:
    """The kinds of the components with a name in any case, or the nearest one, and that name."""
    spelled = {each.lower(): each for kind in KINDS for each in (*catalogue(kind), *aliases(kind))}
    near = difflib.get_close_matches(name.lower(), spelled, n=1, cutoff=NEAR)
    if not near:
        return [], name
    found = spelled[near[0]]
    return [kind for kind in KINDS if found in catalogue(kind) or found in aliases(kind)], found


def kinds_with(target: type) -> list[str]:
    """The kinds whose method a class has; ``__call__`` says nothing."""
    methods = {name for base in target.__mro__ for name in vars(base)} - {"__call__"}
    return [kind for kind, of in CATALOGUES.items() if of.method in methods]


def flags_of(place: str, kinds: Collection[str], name: str) -> list[str]:
    """Flags that give a component of one of these kinds: inside one at this place, or else where it belongs, of which
    the algorithm comes last.
    """
    every = dict(sorted(places(experiment_component().settings).items(), key=lambda item: item[0] == "algorithm"))
    ways = _inside(place, place.rpartition(".")[2], kinds)
    ways = ways or [f"--{at}{{}}" for at, kind in every.items() if kind in kinds]
    ways = ways or [way for at, kind in every.items() for way in _inside(at, kind, kinds)]
    return [way.format(f" {name}") for way in ways[:MOST]]


def flags_with(settings: Mapping[str, Setting], key: str, lacking: str | None = None) -> list[str]:
    """Flags that give a setting of a component, with the component; another one at the place ``lacking``, whose own has
    no such setting, only where nothing else has it.
    """
    ways = {at: way for at, kind in places(settings).items() for way in _inside(at, kind, [key], plain=True)}
    found = [way for at, way in ways.items() if at != lacking] or list(ways.values())
    return [way.format("") for way in found[:MOST]]


def _inside(place: str, kind: str, settings: Collection[str], plain: bool = False) -> list[str]:
    """Flags of a component of this kind that has one of these settings, with the flag of that; {} is its value."""
    having: dict[str, list[str]] = {}
    for name, known in catalogue(kind).items():
        for key in known.settings.keys() & settings:
            if plain or not known.settings[key].plain:
                having.setdefault(key, []).append(name)
    if not having:
        return []
    key, names = max(having.items(), key=lambda item: len(item[1]))
    first, *others = usual_first(names)
    also = f" (or {', '.join(others[:MOST])}{', ...' * (len(others) > MOST)})" if others else ""
    return [f"--{place} {first} --{place}.{key}{{}}{also}"]


def usual_first(names: Collection[str]) -> list[str]:
    """These names, those of the usual components first."""
    return sorted(names, key=lambda name: USUAL.index(name) if name in USUAL else len(USUAL))


def settings_named(key: str, but: str) -> list[str]:
    """Settings of an experiment with a name, which was given for one of those at the place ``but``."""
    settings = experiment_component().settings
    found = [f"{owner}.{key}" for owner, each in settings.items() if each.only and key in each.only.settings]
    found += [
        f"{at}.{key}" for at, kind in places(settings).items()
        if at not in (but, "data") and any(key in known.settings for known in catalogue(kind).values())
    ]  # fmt: skip
    return [*([key] if key in settings and but else []), *found][:MOST]


def places(settings: Mapping[str, Setting]) -> dict[str, str]:
    """Places of components in these settings, and their kinds."""
    found: dict[str, str] = {}
    for key, setting in settings.items():
        if setting.only is not None:
            found |= {f"{key}.{below}": kind for below, kind in places(setting.only.settings).items()}
        elif not setting.plain and key in KINDS:
            found[key] = key
    return found
