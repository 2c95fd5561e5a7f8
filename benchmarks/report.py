"""From a result document to tables, and the tables into `docs/benchmarks.md`.

A result is one JSON document, `benchmark-result/1`, with every single run in it. Tables are made from it
and nothing else, so a document can be rewritten from a result measured elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from benchmarks import merge
from benchmarks.contenders import OURS
from benchmarks.data import Case
from benchmarks.model import Box, Cost, Sample, estimate, fit, requests_for

SCHEMA: Final = "benchmark-result/1"
MIB: Final = 1024 * 1024
_DASH: Final = "–"
_BOXES: Final = (
    ("4 cores, 10 Gb/s", Box(4, 1.25e9, 0.03, 16)),
    ("16 cores, 25 Gb/s", Box(16, 3.125e9, 0.03, 40)),
    ("64 cores, 100 Gb/s", Box(64, 12.5e9, 0.03, 150)),
)
_JOBS: Final = (
    ("67 GB in 1 file", 1, 67_000_000_000),
    ("450 GB in 100 files", 100, 450_000_000_000),
    ("10 GB in 100,000 files", 100_000, 10_000_000_000),
)
_PART: Final = 16 * MIB
_HASHING: Final = ("s5cmd", "aws")
"""Who signs payloads with SHA-256 over plain HTTP."""
_FAST_SHA256: Final = 1.7
"""GB/s of one core with SHA extensions, as measured on an EPYC of 2022."""


@dataclass(frozen=True, slots=True)
class Row:
    """One contender in one case over one transport, over all its rounds."""

    case: str
    direction: str
    transport: str
    contender: str
    masked: bool
    size: int
    wall: tuple[float, float, float]
    cpu: tuple[float, float, float]
    peak: int
    requests: int
    server_cpu: float
    rounds: int
    wall_ratio: tuple[float, float, float] | None
    cpu_ratio: tuple[float, float, float] | None


def rows(result: Mapping[str, Any]) -> list[Row]:
    """All rows, in the order they were measured.

    Ratios are ours to theirs, round by round: each of theirs against ours of the same round.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for run in result["runs"]:
        name = (run["case"], run["direction"], run["transport"], run["contender"], run["masked"])
        groups.setdefault(name, []).append(run)
    found = []
    for (case, direction, transport, contender, masked), runs in groups.items():
        ours = {
            run["round"]: run for run in groups.get((case, direction, transport, OURS, masked), [])
        }
        pairs = [(ours[run["round"]], run) for run in runs if run["round"] in ours]
        compared = contender != OURS and pairs
        found.append(
            Row(
                case=case,
                direction=direction,
                transport=transport,
                contender=contender,
                masked=masked,
                size=runs[0]["size"],
                wall=_spread(run["wall"] for run in runs),
                cpu=_spread(_cpu(run) for run in runs),
                peak=max(run["peak"] for run in runs),
                requests=sum(runs[0]["requests"].values()),
                server_cpu=median(run["server_cpu"] for run in runs),
                rounds=len(runs),
                wall_ratio=_spread(a["wall"] / b["wall"] for a, b in pairs) if compared else None,
                cpu_ratio=_spread(_cpu(a) / _cpu(b) for a, b in pairs) if compared else None,
            )
        )
    return found


def tables(result: Mapping[str, Any]) -> dict[str, str]:
    """Markdown by the name of its place in the document."""
    measured = rows(result)
    titles = {(item["direction"], item["name"]): item for item in result["contenders"]}

    def table(direction: str, *, masked: bool = False) -> str:
        chosen = [
            row
            for row in measured
            if row.direction == direction and row.masked == masked and row.case != "start"
        ]
        return _comparison(chosen, titles, result)

    return {
        "machine": _machine(result),
        "upload": table("upload"),
        "download": table("download"),
        "sha-ni": table("upload", masked=True)
        if result["machine"]["sha_ni"]
        else _with_extensions(measured, titles, result),
        "again": _again(result),
        "refusal": _refusals(result),
        "server": _server(result),
        "model": _model(result, measured),
    }


def rewrite(text: str, parts: Mapping[str, str]) -> str:
    """The document with what is between `<!-- bench:NAME -->` and `<!-- bench:end -->` replaced.

    Raises ValueError when a place is missing.
    """
    for name, part in parts.items():
        pattern = rf"(<!-- bench:{re.escape(name)} -->\n).*?(<!-- bench:end -->)"
        text, count = re.subn(pattern, _between(part), text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"the document has {count} places for the table {name!r}")
    return text


def costs(
    result: Mapping[str, Any], direction: str, transport: str
) -> tuple[Cost | None, Cost | None]:
    """CPU and lock-held costs of ours, fitted to its runs at full speed; None where there are too few."""
    paced = {case["name"] for case in result["cases"] if case.get("rate")}
    cpu = [
        Sample(run["size"], sum(run["requests"].values()), _cpu(run))
        for run in result["runs"]
        if (run["contender"], run["direction"], run["transport"], run["masked"])
        == (OURS, direction, transport, False)
        and run["case"] not in paced
    ]
    lock = [
        Sample(look["size"], look["requests"], look["held"])
        for look in result["gil"]
        if (look["direction"], look["transport"]) == (direction, transport)
    ]
    return _fitted(cpu), _fitted(lock)


def _fitted(samples: Sequence[Sample]) -> Cost | None:
    if len({(sample.size, sample.requests) for sample in samples}) < 3:
        return None
    try:
        return fit(samples)
    except ValueError:
        return None


def _comparison(
    chosen: Sequence[Row], titles: Mapping[tuple[str, str], Any], result: Mapping[str, Any]
) -> str:
    if not chosen:
        return "not measured in this run\n"
    cases = {case["name"]: case["title"] for case in result["cases"]}
    head = [
        "files",
        "",
        "who",
        "wall s",
        "CPU s",
        "GB/s",
        "peak MB",
        "ours/it: wall",
        "CPU",
        "runs",
    ]
    lines = []
    for row in chosen:
        title = titles[row.direction, row.contender]["title"]
        ours = row.contender == OURS
        lines.append(
            [
                cases[row.case],
                row.transport.upper(),
                f"**{title}**" if ours else title,
                _range(row.wall),
                _range(row.cpu),
                f"{row.size / row.wall[0] / 1e9:.2f}",
                f"{row.peak / 1e6:.0f}",
                _range(row.wall_ratio) if row.wall_ratio else "",
                _range(row.cpu_ratio) if row.cpu_ratio else "",
                str(row.rounds),
            ]
        )
    return _table(head, lines)


def _with_extensions(
    measured: Sequence[Row], titles: Mapping[tuple[str, str], Any], result: Mapping[str, Any]
) -> str:
    """Where the processor hashes slowly: what those who hash would cost on one that does not."""
    slow = result["machine"]["digests"]["sha256"]
    cases = {case["name"]: case["title"] for case in result["cases"]}
    chosen = [
        row
        for row in measured
        if (row.direction, row.transport) == ("upload", "http") and row.case != "start"
    ]
    ours = {row.case: row.cpu[0] for row in chosen if row.contender == OURS}
    lines = []
    for row in chosen:
        if row.contender not in _HASHING or row.case not in ours:
            continue
        corrected = row.cpu[0] - row.size / 1e9 * (1 / slow - 1 / _FAST_SHA256)
        lines.append(
            [
                cases[row.case],
                titles[row.direction, row.contender]["title"],
                f"{row.cpu[0]:.2f}",
                f"{corrected:.2f}",
                f"{ours[row.case] / corrected:.2f}",
            ]
        )
    head = ["files", "HTTP", "CPU s", "CPU s with SHA extensions", "ours/it then"]
    return _table(head, lines) if lines else "not measured in this run\n"


def _machine(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    speeds = ", ".join(f"{name} {speed:g}" for name, speed in machine["digests"].items())
    cores = result["cores"]
    pinned = (
        f"server on {_cores(cores['server'])}, clients on {_cores(cores['client'])}"
        if cores["server"]
        else "not pinned"
    )
    lines = [
        ["processor", f"{machine['cpu']}, {machine['cores']} cores ({pinned})"],
        ["SHA extensions", "yes" if machine["sha_ni"] else "no"],
        ["memory", f"{machine['memory'] / 1e9:.0f} GB; data in {result['scratch']}"],
        ["digests, GB/s per core", speeds],
        ["kernel", f"Linux {machine['kernel']}"],
        *_systems(merge.systems(result)),
        ["our options", result["options"] or "none beyond `--memory 192M`"],
        ["scale", f"{result['scale']:g}"],
    ]
    return _table(["", ""], lines)


def _systems(systems: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """What differs between the directions, in a line for each of them; what does not, in one."""
    texts: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "system": lambda system: f"Python {system['python']}, {system['openssl']}",
        "programs": lambda system: "; ".join(f"{k}: {v}" for k, v in system["versions"].items()),
        "measured": lambda system: str(system["date"]),
    }
    lines = []
    for name, text in texts.items():
        by_direction = {direction: text(system) for direction, system in systems.items()}
        if len(set(by_direction.values())) == 1:
            lines.append([name, *set(by_direction.values())])
        else:
            lines += [[f"{name}, {direction}s", told] for direction, told in by_direction.items()]
    return lines


def _again(result: Mapping[str, Any]) -> str:
    if not result["again"]:
        return "not measured in this run\n"
    cases = {case["name"]: case["title"] for case in result["cases"]}
    lines = [
        [
            cases[run["case"]],
            run["direction"],
            f"{run['wall']:.2f}",
            str(sum(run["requests"].values())),
            _size(run["sent"] if run["direction"] == "download" else run["received"]),
        ]
        for run in result["again"]
    ]
    return _table(["files", "", "wall s", "requests", "bytes moved"], lines)


def _refusals(result: Mapping[str, Any]) -> str:
    """What it took to look at a prefix, by mistake; results of before this was measured have none."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for run in result.get("refusals", []):
        groups.setdefault((run["case"], run["program"], run["transport"]), []).append(run)
    lines = [
        [
            case,
            program,
            transport.upper(),
            f"`{runs[0]['reference']}`" if runs[0]["reference"] else "passes",
            _range(_spread(run["wall"] for run in runs)),
            _range(_spread(_cpu(run) for run in runs)),
            f"{median(sum(run['requests'].values()) for run in runs):.0f}",
            _size(round(median(run["sent"] for run in runs))),
            str(len(runs)),
        ]
        for (case, program, transport), runs in groups.items()
    ]
    head = ["wrong", "who", "", "ends with", "wall s", "CPU s", "requests", "bytes read", "runs"]
    return _table(head, lines) if lines else "not measured in this run\n"


def _server(result: Mapping[str, Any]) -> str:
    lines = [
        [
            transport.upper(),
            f"{speeds['upload'] / 1e9:.1f}",
            f"{speeds['download'] / 1e9:.1f}",
            f"{speeds['requests']:,.0f}",
            f"{_busiest(result, transport):.0%}",
        ]
        for transport, speeds in result["ceiling"].items()
    ]
    head = ["", "upload GB/s", "download GB/s", "requests/s", "busiest in any row"]
    return _table(head, lines)


def _busiest(result: Mapping[str, Any], transport: str) -> float:
    """The largest share of the server's cores that it used in any run of more than a second."""
    cores = max(1, len(result["cores"]["server"]))
    shares = [
        run["server_cpu"] / run["wall"] / cores
        for run in result["runs"]
        if run["transport"] == transport and run["wall"] > 1
    ]
    return max(shares, default=0.0)


def _model(result: Mapping[str, Any], measured: Sequence[Row]) -> str:
    costs_head = [
        "ours",
        "",
        "start s",
        "CPU s/GB",
        "CPU ms/request",
        "lock s/GB",
        "lock ms/request",
    ]
    costs_head.append("one process, GB/s")
    lines, predictions = [], []
    for direction in ("upload", "download"):
        for transport in ("http", "https"):
            cpu, lock = costs(result, direction, transport)
            if cpu is None:
                continue
            lines.append(
                [
                    direction,
                    transport.upper(),
                    f"{cpu.start:.2f}",
                    f"{cpu.byte * 1e9:.3f}",
                    f"{cpu.request * 1e3:.2f}",
                    f"{lock.byte * 1e9:.3f}" if lock else _DASH,
                    f"{lock.request * 1e3:.2f}" if lock else _DASH,
                    f"{1e-9 / lock.byte:.1f}" if lock and lock.byte else _DASH,
                ]
            )
            if lock and transport == "https":
                predictions += _predictions(direction, cpu, lock)
    if not lines:
        return "not measured in this run\n"
    text = _table(costs_head, lines)
    if predictions:
        head = ["", *(name for name, _ in _BOXES)]
        text += "\nSeconds over HTTPS by the model, and what limits:\n\n" + _table(
            head, predictions
        )
    return text


def _predictions(direction: str, cpu: Cost, lock: Cost) -> list[list[str]]:
    lines = []
    for name, files, size in _JOBS:
        requests = requests_for(files, size, _PART)
        cells = [estimate(cpu, lock, box, size, requests) for _, box in _BOXES]
        lines.append(
            [f"{direction}, {name}", *(f"{cell.seconds:,.0f} ({cell.limit})" for cell in cells)]
        )
    return lines


def case_document(case: Case) -> dict[str, Any]:
    """A case, for JSON."""
    return {
        "name": case.name,
        "title": case.title,
        "count": case.count,
        "size": case.size,
        "rate": case.rate,
    }


def _cpu(run: Mapping[str, Any]) -> float:
    return float(run["user"] + run["system"])


def _spread(values: Any) -> tuple[float, float, float]:
    """Median, least, most."""
    known = sorted(values)
    return median(known), known[0], known[-1]


def _range(spread: tuple[float, float, float]) -> str:
    middle, least, most = spread
    return f"{middle:.2f} ({least:.2f}{_DASH}{most:.2f})"


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


def _cores(cores: Sequence[int]) -> str:
    return f"core {cores[0]}" if len(cores) == 1 else f"cores {cores[0]}{_DASH}{cores[-1]}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, rule, *lines])


def _between(part: str) -> Callable[[re.Match[str]], str]:
    return lambda match: match[1] + part + match[2]
