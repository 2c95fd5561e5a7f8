"""Patterns against a plain, slow reading of the same rules (I14)."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from staging.source.selection import Pattern

NAMES = st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=5)
GLOBS = st.lists(
    st.one_of(st.just("**"), st.text("ab.*?", min_size=1, max_size=4)), min_size=1, max_size=5
)


def component_matches(glob: str, name: str) -> bool:
    if not glob:
        return not name
    if glob[0] == "*":
        return any(component_matches(glob[1:], name[at:]) for at in range(len(name) + 1))
    return bool(name) and glob[0] in ("?", name[0]) and component_matches(glob[1:], name[1:])


def matches(globs: list[str], names: list[str]) -> bool:
    if not globs:
        return not names
    if globs == ["**"]:
        return bool(names)
    if globs[0] == "**":
        return any(matches(globs[1:], names[at:]) for at in range(len(names) + 1))
    return bool(names) and component_matches(globs[0], names[0]) and matches(globs[1:], names[1:])


def is_pattern(globs: list[str]) -> bool:
    return not any(glob in (".", "..") or ("**" in glob and glob != "**") for glob in globs)


@settings(deadline=None, max_examples=1000)
@given(GLOBS.filter(is_pattern), NAMES)
def test_patterns_match_as_the_rules_say(globs: list[str], names: list[str]) -> None:
    assert Pattern("/".join(globs)).matches("/".join(names)) == matches(globs, names)


@settings(deadline=None, max_examples=300)
@given(GLOBS.filter(is_pattern), NAMES)
def test_a_slash_at_the_end_is_everything_below(globs: list[str], names: list[str]) -> None:
    assert Pattern("/".join(globs) + "/").matches("/".join(names)) == matches([*globs, "**"], names)
