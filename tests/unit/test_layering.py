"""Dependencies point one way, as the table in CONTRIBUTING.md says; the library reads and prints nothing.

The table and the imports must be equal: an arrow nobody needs any more is as wrong as a new one.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "staging").rglob("*.py"), *(ROOT / "downloader").rglob("*.py")])
SDK = {"awscrt", "boto3", "botocore", "s3transfer"}
EXCEPTIONS = {("staging/vocabulary/crc64.py", "awscrt.checksums")}
PROGRAMS = {"cli", "downloader"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def package(module: str) -> str | None:
    """The row of the table that a module belongs to; None for what is not ours."""
    parts = module.split(".")
    if parts[0] == "downloader":
        return "downloader"
    inside = parts[0] == "staging" and len(parts) > 1 and parts[1] != "__version__"
    return parts[1] if inside else None


def package_of(path: Path) -> str | None:
    return package(".".join(path.relative_to(ROOT).with_suffix("").parts))


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            # `from staging.cli import quantity` names a module as well.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        here = package_of(path)
        if here is None or here == "__init__":
            continue
        there = {package(module) for module in imports(path)} - {None, here}
        found.setdefault(here, set()).update(name for name in there if name is not None)
    return found


def table() -> dict[str, set[str]]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text = text.partition("<!-- layers: begin -->")[2].partition("<!-- layers: end -->")[0]
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|$", text, re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", allowed)) for name, allowed in rows}


def test_imports_are_those_of_the_table() -> None:
    assert arrows() == table()


def test_the_table_has_no_cycle() -> None:
    remaining = table()
    assert remaining
    while remaining:
        free = {name for name, allowed in remaining.items() if not allowed & remaining.keys()}
        assert free, f"a cycle among {sorted(remaining)}"
        for name in free:
            del remaining[name]


def test_only_the_wire_knows_an_sdk() -> None:
    found = []
    for path in SOURCES:
        for module in imports(path):
            allowed = any(
                name_of(path) == name and module.startswith(f"{exception}.")
                for name, exception in EXCEPTIONS
            )
            if module.split(".")[0] in SDK and package_of(path) != "wire" and not allowed:
                found.append(f"{name_of(path)}: {module}")
    assert found == []


def test_only_the_programs_choose_a_wire() -> None:
    found = [
        f"{name_of(path)}: {module}"
        for path in SOURCES
        for module in imports(path)
        if package(module) == "wire"
        and package_of(path) not in {"wire", *PROGRAMS}
        and not module.startswith("staging.wire.wire.")
    ]
    assert found == []


AMBIENT = {
    "os.environ",
    "os.environb",
    "os.getenv",
    "sys.argv",
    "sys.stdin",
    "sys.stdout",
    "sys.stderr",
}


def ambient(path: Path) -> list[str]:
    """Where a file looks at the environment, arguments or the terminal, or prints."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if text in AMBIENT or (isinstance(node, ast.Attribute) and node.attr == "isatty"):
            found.append(f"{name_of(path)}:{node.lineno}: {text}")
        if isinstance(node, ast.Name) and node.id in ("print", "input"):
            found.append(f"{name_of(path)}:{node.lineno}: {node.id}")
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "sys"):
            taken = {f"{node.module}.{alias.name}" for alias in node.names}
            found += [f"{name_of(path)}:{node.lineno}: {name}" for name in taken & AMBIENT]
    return found


def test_only_the_programs_read_the_environment_or_print() -> None:
    places = {package_of(path): ambient(path) for path in SOURCES}
    assert any(ambient(path) for path in SOURCES if package_of(path) in PROGRAMS)
    assert [
        place for path in SOURCES if package_of(path) not in PROGRAMS for place in ambient(path)
    ] == [], places


def test_threads_start_in_one_place_beside_the_heartbeat() -> None:
    starters = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "threading.Thread",
                "Thread",
                "ThreadPoolExecutor",
                "concurrent.futures.ThreadPoolExecutor",
            ):
                starters.add(name_of(path))
    assert starters == {
        "staging/transfer/scheduler.py",
        "staging/cli/progress.py",
        "downloader/halt.py",
    }


@pytest.mark.parametrize("module", ["downloader.program", "downloader.__main__"])
def test_the_downloader_starts_without_what_the_pod_has_not(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    loaded = set(process.stdout.split())
    assert "downloader" in loaded
    assert loaded & (SDK | {"tqdm"}) == set()
