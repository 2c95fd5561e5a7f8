"""Sizes and times as people write and read them: units are required, output is decimal."""

from __future__ import annotations

import datetime
import re
from typing import Any, Final

import click

_UNITS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AGE: Final = re.compile(r"(\d+) ?([smhd])")
_AGE_DIGITS: Final = 6
_SPAN: Final = re.compile(r"(?:(\d{1,4})d)?(?:(\d{1,5})h)?(?:(\d{1,6})m)?(?:(\d{1,7})s)?")
_TEXT: Final = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT])(iB|i|B)?", re.IGNORECASE)


class Size(click.ParamType[int]):
    """A number of bytes with a unit: `64MiB`, `64Mi` and `64M` are 2^20, `64MB` is 10^6 bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the size in bytes, or fail as click does."""
        if isinstance(value, int):
            return value
        match = _TEXT.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a size with a unit, such as 64MiB or 2GB", param, ctx)
        base = 1000 if (match[3] or "").upper() == "B" else 1024
        return int(float(match[1]) * base ** _UNITS[match[2].upper()])


class Age(click.ParamType[datetime.timedelta]):
    """A time span with a unit: `0s`, `30m`, `24h`, `7d`."""

    name = "age"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime.timedelta:
        """Return the time span, or fail as click does."""
        match = _AGE.fullmatch(str(value).strip())
        if match is None or len(match[1]) > _AGE_DIGITS:
            self.fail(f"{value!r} is not a time span with a unit, such as 30m or 24h", param, ctx)
        return datetime.timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


class Duration(click.ParamType[float]):
    """A time span of one or several units, the largest first: `30m`, `1h30m`, `90s`. Never none at all."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the seconds, or fail as click does."""
        if isinstance(value, float):
            return value
        match = _SPAN.fullmatch(str(value).strip())
        seconds = 0
        if match is not None:
            units = zip(match.groups(), (86400, 3600, 60, 1), strict=True)
            seconds = sum(int(count) * unit for count, unit in units if count is not None)
        if not seconds:
            self.fail(f"{value!r} is not a time span with units, such as 30m or 1h30m", param, ctx)
        return float(seconds)


def size(count: int | float) -> str:
    """A number of bytes for people: `67.3 GB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def duration(seconds: float) -> str:
    """A time span for people: `12 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def retries(count: int) -> str:
    """A number of repeated requests for people: `no retries`, `1 retry`, `2 retries`."""
    return {0: "no retries", 1: "1 retry"}.get(count, f"{count} retries")
