"""How time grows: a small model, fitted to measured runs.

    CPU seconds      = start + byte * bytes + request * requests
    lock-held seconds  likewise
    wall             = start + the largest of    bytes / bandwidth
                                                 the rest of CPU / cores
                                                 the rest of lock-held
                                                 requests * latency / concurrency

The start is spent before and after the transfer and overlaps with nothing; the other terms overlap, and
the largest of them is what limits. It knows no contention, no slow start and no throttling: a lower bound
that good runs come close to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

_MULTIPART_FROM: Final = 5 * 1024 * 1024  # bytes; a smaller file is one request
_ROUND_TRIPS_A_FILE: Final = 4
"""Create and Complete, and a record that is written and deleted, beside the parts."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds: once, for each byte, for each request."""

    start: float
    byte: float
    request: float

    def transfer(self, size: float, requests: float) -> float:
        """Seconds beyond the start."""
        return self.byte * size + self.request * requests

    def seconds(self, size: float, requests: float) -> float:
        """Seconds in all."""
        return self.start + self.transfer(size, requests)


@dataclass(frozen=True, slots=True)
class Sample:
    """A measured run: bytes, requests, seconds."""

    size: float
    requests: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Box:
    """A machine and its way to S3: cores, bytes/s, seconds from request to answer, requests at once."""

    cores: float
    bandwidth: float
    latency: float
    concurrency: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds, and the term that decides them."""

    seconds: float
    limit: str


def requests_for(files: int, size: int, part_size: int) -> int:
    """Requests of an upload of `files` equal files, without the handful for the checkpoint as a whole."""
    each = -(-size // files)
    if each < _MULTIPART_FROM:
        return files
    parts = -(-each // part_size)
    return files * (parts + _ROUND_TRIPS_A_FILE)


def estimate(cpu: Cost, lock: Cost, box: Box, size: int, requests: int) -> Estimate:
    """How long a transfer takes on a box, and what limits it."""
    terms = {
        "bandwidth": size / box.bandwidth,
        "CPU": cpu.transfer(size, requests) / box.cores,
        "lock": lock.transfer(size, requests),
        "latency": requests * box.latency / box.concurrency,
    }
    limit = max(terms, key=lambda name: terms[name])
    return Estimate(cpu.start + terms[limit], limit)


def fit(samples: Iterable[Sample]) -> Cost:
    """Least squares with no negative cost, relative errors counting.

    Raises ValueError when the samples cannot tell the three apart.
    """
    known = [sample for sample in samples if sample.seconds > 0]
    columns: tuple[int, ...] = (0, 1, 2)
    while True:
        solution = _solve(known, columns)
        negative = [column for column, value in zip(columns, solution, strict=True) if value < 0]
        if not negative:
            found = dict(zip(columns, solution, strict=True))
            return Cost(*(found.get(column, 0.0) for column in range(3)))
        # Noise can make a small cost negative; then it is none.
        columns = tuple(column for column in columns if column not in negative[:1])


def _solve(samples: Sequence[Sample], columns: Sequence[int]) -> list[float]:
    """The costs of `columns` that fit best, by the normal equations of rows divided by their seconds."""
    scale = (1.0, 1e-9, 1e-3)  # GB and thousands of requests: numbers of one magnitude
    rows = []
    for sample in samples:
        row = (1.0, sample.size * scale[1], sample.requests * scale[2])
        rows.append([row[column] / sample.seconds for column in columns])
    count = len(columns)
    matrix = [
        [sum(row[i] * row[j] for row in rows) for j in range(count)] + [sum(row[i] for row in rows)]
        for i in range(count)
    ]
    for i in range(count):
        pivot = max(range(i, count), key=lambda r: abs(matrix[r][i]))
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        if abs(matrix[i][i]) < 1e-12:
            raise ValueError("the runs differ too little to tell bytes, requests and start apart")
        for r in range(count):
            if r != i:
                factor = matrix[r][i] / matrix[i][i]
                matrix[r] = [a - factor * b for a, b in zip(matrix[r], matrix[i], strict=True)]
    return [matrix[i][count] / matrix[i][i] * scale[columns[i]] for i in range(count)]
