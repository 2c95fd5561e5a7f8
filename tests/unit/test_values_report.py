"""The report of a preflight: whole HTML, escaped, with nothing from elsewhere; and in a browser (I13).

The test in a browser is skipped where there is no Chromium.
"""

from __future__ import annotations

import datetime
import html.parser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from staging.cli.report import report
from staging.layout.gpus import instances
from staging.values.deployment import read_deployment
from staging.values.document import lines_of, read_values
from staging.values.finding import Facts, Published
from staging.values.rules import check
from staging.values.summary import summarise
from staging.vocabulary.errors import NotFound
from staging.vocabulary.location import S3Location

GOLDEN = Path(__file__).parents[1] / "golden" / "values" / "inference.yaml"
NOW = datetime.datetime(2026, 11, 22, 20, 15, tzinfo=datetime.UTC)
EVIL = "<script>alert('x')</script>&\"onload=\"x"
VOID = {"meta"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def summary(*edits: tuple[str, str]) -> dict[str, Any]:
    text = GOLDEN.read_text(encoding="utf-8")
    for before, after in edits:
        assert before in text
        text = text.replace(before, after)
    deployment = read_deployment(
        read_values(text.encode(), "values.yaml"), lines_of(text), "values.yaml"
    )
    layout = {"tensor_parallel": {"possible": [1, 2, 4, 8], "depends": []}}
    there = Published(f"sha256:{'5' * 64}", 40, 225_000_000_000, layout)
    missing = NotFound("nothing there", reference="prefix-empty", hint="did you mean another?")
    checkpoints = {model.uri: there for model in deployment.models if model.uri is not None}
    facts = Facts(
        {**checkpoints, S3Location.parse("s3://my-models/checkpoints/laguna-xs"): missing},
        instances()["p5e.48xlarge"],
        1,
        "system:serviceaccount:poolside-models:inference",
    )
    return summarise(deployment, facts, check(deployment, facts), "values.yaml")


class Page(html.parser.HTMLParser):
    """Tags that are balanced, ids, links, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def values(self, name: str) -> list[str]:
        return [value for _, found, value in self.attributes if found == name]


def test_a_page_is_whole_and_loads_nothing() -> None:
    text = report(summary(), now=NOW)
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>\n")
    assert page.tags.count("h1") == page.tags.count("title") == 1
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(page.tags)
    assert page.values("src") == []
    assert not re.search(r"url\(|@import|https?://", text)
    assert "default-src 'none'; style-src 'unsafe-inline'" in page.values("content")
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_links_lead_somewhere_and_ids_are_unique() -> None:
    page = Page(report(summary(), now=NOW))
    identities = page.values("id")
    assert len(identities) == len(set(identities))
    assert page.values("href") == ["#model-2", "#model-1"]
    assert all(link.removeprefix("#") in identities for link in page.values("href"))


def test_what_is_told_is_there() -> None:
    page = Page(report(summary(), now=NOW))
    for expected in (
        "Preflight of values.yaml",
        "checked 2026-11-22 20:15 UTC",
        "Not ready to be deployed: 1 error, 1 warning",
        "nothing there",
        "did you mean another?",
        "rule checkpoint-unavailable, prefix-empty",
        f"sha256:{'5' * 64}",
        "225.0\N{NO-BREAK SPACE}GB",
        "1, 2, 4, 8",
        "6 GPUs in 3 pods: 1 node of p5e.48xlarge (8 H200) when packed well, 2 GPUs left",
        "deploy/preflight-job.yaml",
    ):
        assert expected in page.text, expected


def test_text_of_the_values_file_is_escaped() -> None:
    quoted = EVIL.replace("'", "''")
    about = summary(
        ("modelType: agent\n", f"modelType: '{quoted}'\n"), ("  point:\n", f"  '{quoted}':\n")
    )
    about["values"] = EVIL
    text = report(about, now=NOW)
    page = Page(text)
    assert "<script" not in text
    assert page.text.count(EVIL) >= 4
    assert "onload" not in [name for _, name, _ in page.attributes]


def test_colours_can_be_read() -> None:
    """Every colour of text has a contrast of 4.5 to the page and to cards, in light and in dark."""
    style = report(summary(), now=NOW)
    light, dark = (
        dict(re.findall(r"--(\w+): #([0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    )
    assert light.keys() == dark.keys()
    for colours in (light, dark):
        for text in ("text", "dim", "error", "warning", "advice", "ok"):
            for ground in ("page", "card"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def contrast(first: str, second: str) -> float:
    """As WCAG 2 has it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_a_browser_takes_the_page_as_it_is(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(report(summary(), now=NOW), encoding="utf-8")
    assert CHROMIUM is not None
    process = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--disable-dev-shm-usage", "--window-size=400,900", "--enable-logging=stderr"),
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert "CONSOLE" not in process.stderr  # nothing that the policy had to refuse
    assert Page(process.stdout).text.split() == Page(page.read_text(encoding="utf-8")).text.split()
