"""The outcome of a preflight for people: lines on a terminal, and a page of HTML for a change request.

Both are made from the document of `staging.values.summary`.

Invariants of the page: one file, no script, nothing loaded from anywhere (a policy in the page forbids it);
every text is escaped; readable in light and in dark, on paper, and 400 pixels wide.
"""

from __future__ import annotations

import datetime
import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from staging import __version__
from staging.cli import quantity

_STYLE: Final = """
:root { color-scheme: light dark; --text: #1c2128; --dim: #57606a; --page: #ffffff; --card: #f6f8fa;
  --line: #d0d7de; --error: #b3202c; --warning: #8a5300; --advice: #0a5cb8; --ok: #1a7037; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --dim: #9da7b3; --page: #0f1419;
  --card: #181f27; --line: #3a424c; --error: #ff8182; --warning: #e3a63a; --advice: #75b6ff;
  --ok: #5bc77c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 3rem; background: var(--page);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; line-height: 1.3; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0; }
code { font: .9em/1.4 ui-monospace, monospace; }
.dim { color: var(--dim); }
.verdict { font-weight: 600; padding: .6rem .8rem; margin: 1rem 0; border: 1px solid currentColor;
  border-left-width: .4rem; border-radius: .3rem; }
.state { font-weight: 600; }
.error { color: var(--error); } .warning { color: var(--warning); }
.advice { color: var(--advice); } .ok { color: var(--ok); }
table { width: 100%; border-collapse: collapse; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem; overflow-wrap: break-word;
  border-bottom: 1px solid var(--line); }
td.wide { overflow-wrap: anywhere; }
tbody th { overflow-wrap: anywhere; min-width: 6rem; }
thead th { color: var(--dim); font-size: .85rem; font-weight: 600; }
td.wide code { display: block; }
.findings { list-style: none; padding: 0; margin: 0; }
.findings li { background: var(--card); border: 1px solid var(--line); border-radius: .3rem;
  padding: .6rem .8rem; margin: 0 0 .6rem; break-inside: avoid; }
a { color: inherit; }
:target { outline: 2px solid var(--advice); outline-offset: 2px; }
footer { margin-top: 2rem; border-top: 1px solid var(--line); padding-top: .6rem; font-size: .9rem; }
@media (max-width: 46rem) {
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  table, tbody, tr, th, td { display: block; border: 0; }
  tr { border: 1px solid var(--line); border-radius: .3rem; padding: .4rem .2rem; margin: 0 0 .6rem; }
  th, td { padding: .15rem .6rem; }
  td::before { content: attr(data-name) ": "; color: var(--dim); }
}
@media print { body { max-width: none; } }
"""

_COLUMNS: Final = (
    "Model",
    "State",
    "Type",
    "GPUs",
    "Replicas",
    "Splits over",
    "Size",
    "Checkpoint",
)


_HEAD: Final = (
    "model",
    "state",
    "type",
    "gpus",
    "replicas",
    "splits over",
    "size",
    "id",
    "checkpoint",
)
_SHORT: Final = len("sha256:") + 12


def table(summary: Mapping[str, Any]) -> Iterator[str]:
    """Everything, as lines: the models as a table, what they take, and what was found."""
    yield f"{summary['values']}: chart {summary['chart']}, {_count(len(summary['models']), 'model')}"
    rows = [_HEAD, *map(_row, summary["models"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row in rows:
        yield "  ".join(
            f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)
        ).rstrip()
    yield from summary["capacity"]["lines"]
    yield from told(summary)
    yield summary["note"]


def told(summary: Mapping[str, Any]) -> Iterator[str]:
    """What was found, as lines."""
    for finding in summary["findings"]:
        rule = finding["rule"] + (f", {finding['cause']}" if finding["cause"] else "")
        yield (
            f"{finding['severity']}: {finding['path']}, line {finding['line']}:"
            f" {finding['message']} [{rule}]"
        )
        yield f"  hint: {finding['hint']}"
        for note in finding["notes"]:
            yield f"  {note}"


def _row(model: Mapping[str, Any]) -> tuple[str, ...]:
    identity = "-" if model["id"] is None else model["id"][:_SHORT]
    return (
        model["key"],
        model["state"],
        model["type"] or "-",
        _number(model["gpus"]),
        _number(model["replicas"]),
        _sizes(model["tensor_parallel"]),
        _size(model["total_size"]),
        f"{identity} pinned" if model["pinned"] else identity,
        model["uri"] or "-",
    )


def report(summary: Mapping[str, Any], *, now: datetime.datetime | None = None) -> str:
    """The page for the document that `staging.values.summary` makes. `now` is when it was made, in UTC."""
    made = now or datetime.datetime.now(datetime.UTC)
    return "\n".join(_page(summary, f"{made:%Y-%m-%d %H:%M} UTC")) + "\n"


def _page(summary: Mapping[str, Any], made: str) -> Iterator[str]:
    title = _text(f"Preflight of {summary['values']}")
    yield "<!DOCTYPE html>"
    yield '<html lang="en">'
    yield "<head>"
    yield '<meta charset="utf-8">'
    yield (
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    )
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield '<meta name="color-scheme" content="light dark">'
    yield f"<title>{title}</title>"
    yield f"<style>{_STYLE}</style>"
    yield "</head>"
    yield "<body>"
    yield "<header>"
    yield f"<h1>{title}</h1>"
    yield f'<p class="dim">Chart <code>{_text(summary["chart"])}</code>, checked {_text(made)}</p>'
    yield "</header>"
    yield "<main>"
    yield _verdict(summary)
    yield from _findings(
        summary["findings"],
        {model["key"]: number for number, model in enumerate(summary["models"], 1)},
    )
    yield from _models(summary["models"])
    yield '<section id="capacity">'
    yield "<h2>Capacity</h2>"
    for line in summary["capacity"]["lines"]:
        yield f"<p>{_text(line)}</p>"
    yield "</section>"
    yield "</main>"
    yield "<footer>"
    yield f"<p>{_text(summary['note'])}</p>"
    yield f'<p class="dim">Made by staging {_text(__version__)}</p>'
    yield "</footer>"
    yield "</body>"
    yield "</html>"


def _verdict(summary: Mapping[str, Any]) -> str:
    counts = [
        (kind, sum(finding["severity"] == kind for finding in summary["findings"]))
        for kind in ("error", "warning", "advice")
    ]
    told = ", ".join(_count(number, kind) for kind, number in counts if number) or "no findings"
    kind, word = ("ok", "Ready") if summary["passed"] else ("error", "Not ready")
    return f'<p class="verdict {kind}">{word} to be deployed: {_text(told)}</p>'


def _findings(findings: list[Mapping[str, Any]], numbers: Mapping[str, int]) -> Iterator[str]:
    if not findings:
        return
    yield '<section id="findings">'
    yield "<h2>Findings</h2>"
    yield '<ul class="findings">'
    for finding in findings:
        kind = _text(finding["severity"])
        rule = finding["rule"] + (f", {finding['cause']}" if finding["cause"] else "")
        number = numbers.get(finding["model"])
        model = f', <a href="#model-{number}">{_text(finding["model"])}</a>' if number else ""
        yield "<li>"
        yield f'<p><span class="state {kind}">{kind.capitalize()}</span>: {_text(finding["message"])}</p>'
        yield f"<p>Hint: {_text(finding['hint'])}</p>"
        for note in finding["notes"]:
            yield f"<p>{_text(note)}</p>"
        yield (
            f'<p class="dim">Line {finding["line"]}, <code>{_text(finding["path"])}</code>{model},'
            f" rule <code>{_text(rule)}</code></p>"
        )
        yield "</li>"
    yield "</ul>"
    yield "</section>"


def _models(models: list[Mapping[str, Any]]) -> Iterator[str]:
    if not models:
        return
    yield '<section id="models">'
    yield "<h2>Models</h2>"
    yield "<table>"
    head = "".join(f'<th scope="col">{name}</th>' for name in _COLUMNS)
    yield f"<thead><tr>{head}</tr></thead>"
    yield "<tbody>"
    for number, model in enumerate(models, 1):
        state = _text(model["state"])
        cells = (
            f'<span class="state {state}">{state}</span>',
            _text(model["type"] or "-"),
            _number(model["gpus"]),
            _number(model["replicas"]),
            _sizes(model["tensor_parallel"]),
            _size(model["total_size"]).replace(" ", "\N{NO-BREAK SPACE}"),
        )
        yield f'<tr id="model-{number}">'
        yield f'<th scope="row">{_text(model["key"])}</th>'
        for name, cell in zip(_COLUMNS[1:], cells, strict=False):
            yield f'<td data-name="{name}">{cell}</td>'
        pinned = " (pinned)" if model["pinned"] else ""
        identity = f"<code>{_text(model['id'])}{pinned}</code>" if model["id"] else ""
        place = f"<code>{_text(model['uri'] or '-')}</code>"
        yield f'<td class="wide" data-name="Checkpoint">{place}{identity}</td>'
        yield "</tr>"
    yield "</tbody>"
    yield "</table>"
    yield "</section>"


def _text(text: str) -> str:
    return html.escape(text)


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _sizes(sizes: Sequence[int] | None) -> str:
    return "unknown" if sizes is None else ", ".join(map(str, sizes)) or "none"


def _size(size: int | None) -> str:
    return "-" if size is None else quantity.size(size)


def _count(number: int, noun: str) -> str:
    if noun == "advice":
        return f"{number} piece{'' if number == 1 else 's'} of advice"
    return f"{number} {noun}{'' if number == 1 else 's'}"
