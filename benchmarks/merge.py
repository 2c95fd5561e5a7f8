"""Results of several runs of the benchmark as one: what was measured again replaces what was measured before.

A run of everything takes an hour that has to be quiet; one case that was disturbed is measured again alone.

Uploads run on somebody's machine and downloads in an image, so each direction may have a Python, an OpenSSL
and programs of its own.

Invariants: a comparison is never made of two runs: everything of one case, direction and transport comes from
the last result that has it; nor is a direction of two systems. Cases keep their order. Results of other
machines, sizes or options are refused.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.data import CASES

_SAME = ("schema", "cores", "scratch", "scale", "options")
_SAME_MACHINE = ("cpu", "cores", "memory", "sha_ni", "kernel")
_NAMES = [case.name for case in CASES]
_DIRECTIONS = ("upload", "download")
_MEASURED = ("runs", "again", "gil", "refusals")
"""Lists of runs; `refusals` are not in results of before they were measured."""

Result = Mapping[str, Any]


def merged(results: Sequence[Result]) -> Result:
    """One result of at least one. Raises ValueError when they are of different things."""
    result = functools.reduce(_over, results)
    return {
        **result,
        "cases": sorted(result["cases"], key=lambda case: _place(case["name"])),
        **{
            name: sorted(result[name], key=lambda item: _place(item["case"]))
            for name in _MEASURED
            if name in result
        },
    }


def systems(result: Result) -> Mapping[str, Mapping[str, Any]]:
    """What each direction that was measured ran on: `python`, `openssl`, `versions` of programs, `date`."""
    if "systems" in result:
        found: Mapping[str, Mapping[str, Any]] = result["systems"]
        return found
    machine = result["machine"]
    system = {name: machine[name] for name in ("python", "openssl", "date")}
    measured = {run["direction"] for run in result["runs"]}
    return {
        direction: {**system, "versions": result["versions"]}
        for direction in _DIRECTIONS
        if direction in measured
    }


def _over(old: Result, new: Result) -> Result:
    for name in _SAME:
        if old[name] != new[name]:
            raise ValueError(f"the results differ in {name!r}: {old[name]!r} and {new[name]!r}")
    for name in _SAME_MACHINE:
        if old["machine"][name] != new["machine"][name]:
            raise ValueError(f"the results are of two machines: {name!r} differs")
    before, after = systems(old), systems(new)
    stay = {run["direction"] for run in _kept(old["runs"], new["runs"])}
    for direction in stay & after.keys():
        if _differ(before[direction], after[direction]):
            raise ValueError(f"the results are of two systems, and both have {direction}s")
    return {
        **old,
        **new,
        "systems": {**before, **after},
        "seconds": old["seconds"] + new["seconds"],
        "contenders": _united(old["contenders"], new["contenders"], ("name", "direction")),
        "cases": _united(old["cases"], new["cases"], ("name",)),
        **{name: _replaced(old.get(name, []), new.get(name, [])) for name in _MEASURED},
    }


def _place(case: str) -> int:
    """Where a case stands among all, whenever it was measured; what is none of them comes first."""
    return _NAMES.index(case) if case in _NAMES else -1


def _differ(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two systems differ in more than the day."""
    return {**old, "date": ""} != {**new, "date": ""}


def _united(old: Sequence[Result], new: Sequence[Result], names: Sequence[str]) -> list[Result]:
    """Both, in the order of `old`; of those with equal values under `names` the new one."""
    found = {tuple(item[name] for name in names): item for item in (*old, *new)}
    return list(found.values())


def _replaced(old: Sequence[Result], new: Sequence[Result]) -> list[Result]:
    return [*_kept(old, new), *new]


def _kept(old: Sequence[Result], new: Sequence[Result]) -> list[Result]:
    """Of the old, what was not measured again."""
    again = {_subject(item) for item in new}
    return [item for item in old if _subject(item) not in again]


def _subject(item: Result) -> tuple[object, ...]:
    return item["case"], item["direction"], item["transport"], item.get("masked", False)
