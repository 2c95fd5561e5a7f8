"""Every rule of a deployment has its section in docs/preflight.md, which is made from the rules."""

from __future__ import annotations

import re
from pathlib import Path

from staging.values.finding import Rule
from staging.values.rules import RULES

PAGE = Path(__file__).parents[2] / "docs" / "preflight.md"
CODES = {
    2: "2, usage",
    10: "10, or the code of what the store said",
    11: "11, integrity",
    17: "17, layout",
}


def section(rule: Rule) -> str:
    grave = (
        f"{rule.severity}, exit code {CODES[rule.code]}"
        if rule.severity == "error"
        else rule.severity
    )
    return f"""### `{rule.id}`

{_sentence(rule.reason)} ({grave})

- Fix: {rule.fix}
- Source: {rule.source}
"""


def _sentence(text: str) -> str:
    return text if re.match(r"[a-z]+[A-Z]", text) else text[0].upper() + text[1:]


def test_the_sections_are_those_of_the_rules() -> None:
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(r"<!-- rules: begin -->\n(.*)<!-- rules: end -->", text, re.DOTALL)
    assert found is not None
    wanted = "\n".join(map(section, RULES))
    assert found[1] == wanted, f"paste this between the marks:\n{wanted}"


def test_rules_are_told_apart_and_fit_a_line() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", rule.id)
        assert rule.code in CODES
        for text in (rule.reason, rule.fix, rule.source):
            assert text
            assert "\n" not in text
            assert not text.endswith(".")
        assert rule.look.__doc__
