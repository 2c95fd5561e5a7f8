"""docs/troubleshooting.md has every cause that can stop a pod, every exit code, and no dead link."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
TROUBLE = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
SCRIPTING = (DOCS / "scripting.md").read_text(encoding="utf-8")

NEVER_IN_A_POD = {
    # what only `staging` meets: sources, Hubs, URLs, uploads, its own questions
    *("hub-denied", "hub-not-found", "nothing-published", "permissions-missing", "source"),
    *("upload-gone", "url-denied", "url-expired", "not-answered", "values-file"),
}


def references() -> dict[str, set[int]]:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| ([\d, ]+) \|", SCRIPTING, re.MULTILINE)
    return {name: {int(code) for code in codes.split(",")} for name, codes in rows}


def sections() -> dict[int, str]:
    """What stands under the heading of an exit code."""
    parts = re.split(r"^### ([\d, ]+): .*$", TROUBLE, flags=re.MULTILINE)
    return {
        int(code): re.split(r"^##", text, maxsplit=1, flags=re.MULTILINE)[0]
        for codes, text in zip(parts[1::2], parts[2::2], strict=True)
        for code in codes.split(", ")
    }


@pytest.mark.parametrize("code", [10, 12, 14, 18])
def test_every_reference_that_a_pod_can_meet_is_there(code: int) -> None:
    known = {name for name, codes in references().items() if code in codes}
    assert known - NEVER_IN_A_POD
    listed = set(re.findall(r"^\| (`.*?) \|", sections()[code], re.MULTILINE))
    named = {name for row in listed for name in re.findall(r"`([a-z0-9-]+)`", row)}
    assert sorted(known - NEVER_IN_A_POD - named) == []


def test_no_reference_is_listed_under_a_code_it_does_not_have() -> None:
    known = references()
    for code, text in sections().items():
        for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE):
            for name in re.findall(r"`([a-z0-9-]+)`", row):
                # 13 and 18 share a table
                assert known[name] & ({13, 18} if code in (13, 18) else {code}), name


def test_what_never_happens_in_a_pod_is_known_at_all() -> None:
    assert sorted(NEVER_IN_A_POD - references().keys()) == []


def test_every_exit_code_has_its_line() -> None:
    codes = re.findall(r"^\| (\d+) \| \d+\.\d+ \|", SCRIPTING, re.MULTILINE)
    table = TROUBLE.partition("| code | at 3 a.m. |")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| (\d+) \|", table, re.MULTILINE)
    # A hang-up or Ctrl-C reaches no pod; a kill is no exit code of ours.
    assert {*codes} - {"129", "130"} == {*rows} - {"137"}


def anchors(text: str) -> set[str]:
    """The names of the headings, as GitHub makes them."""
    headings = re.findall(r"^#{1,6} (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "document", ["docs/troubleshooting.md", "docs/kubernetes.md", "deploy/README.md"]
)
def test_links_lead_to_headings(document: str) -> None:
    path = DOCS.parent / document
    links = re.findall(r"\]\(([^)#\s]*)#([^)\s]*)\)", path.read_text(encoding="utf-8"))
    assert links or document != "docs/troubleshooting.md"
    for target, anchor in links:
        other = path if not target else path.parent / target
        assert anchor in anchors(other.read_text(encoding="utf-8")), (target, anchor)


@pytest.mark.parametrize(
    "symptom",
    [
        "`Pending`",
        "`Init:Error`",
        "`AccessDenied`",
        "the ingress has no address",
        "5xx from the load balancer",
        "ImagePullBackOff",
        'no endpoints available for service "aws-load-balancer-webhook-service"',
        "the prefix holds a `.tar`",
        "a prefix that is empty",
    ],
)
def test_the_symptoms_of_the_vendors_guide_are_there(symptom: str) -> None:
    table = TROUBLE.partition("## What you see")[2].partition("\n### ")[0]
    assert symptom in table
