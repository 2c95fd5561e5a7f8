"""What a values file deploys: which chart it is for, its models, and where the chart keeps its settings.

Two charts are known, by the keys that their guides name:

    inference         models under `models`, everything else at the top
    inference-stack   an umbrella: models under `inference.models`, shared settings under `global.inference`

Invariants: nothing is guessed. What is missing, unreadable or still a `<placeholder>` is None here; the
rules say so.
Not guaranteed: the charts' own defaults, which are not published beyond those in the guides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from staging.values.document import Value
from staging.vocabulary.errors import UsageError
from staging.vocabulary.location import S3Location

Chart = Literal["inference", "inference-stack"]

GPU_COUNTS: Final = (1, 2, 4, 8)
"""GPUs per replica that the server supports, as the guide lists them."""

_PLACEHOLDER: Final = re.compile(r"<[A-Za-z][A-Za-z0-9 _./-]*>")
_PIN: Final = re.compile(r"\s*# checkpoint id: (sha256:[0-9a-f]{64})\s*")
_SHARED: Final = ("image", "podSecurityContext")  # set once for all under global.inference

PIN_COMMENT: Final = "# checkpoint id: "
"""How the comment begins that keeps a model's pin, in the line above its `model`."""


@dataclass(frozen=True, slots=True)
class Model:
    """An entry of `models`. What is missing takes the chart's default; what cannot be read is None."""

    key: str
    entry: Value
    uri: S3Location | None
    gpus: int | None
    replicas: int | None
    pin: str | None

    @property
    def deployment(self) -> str:
        """The name that its Deployment and Service have."""
        return f"inference-{self.key}"

    @property
    def total_gpus(self) -> int | None:
        """GPUs of all replicas."""
        return None if self.gpus is None or self.replicas is None else self.gpus * self.replicas

    def told(self, field: str) -> str | None:
        """The text of a field; None where it is missing, empty, no text, or to be filled in."""
        return filled(self.entry.at(field))


@dataclass(frozen=True, slots=True)
class Deployment:
    """A values file, read as the chart reads it."""

    chart: Chart
    values: Value
    models: tuple[Model, ...]

    @property
    def models_path(self) -> tuple[str, ...]:
        """The keys below which the models are."""
        return ("models",) if self.chart == "inference" else ("inference", "models")

    def key_above(self, path: tuple[str, ...]) -> str | None:
        """The key of the model that a path lies in; None for one outside."""
        above = self.models_path
        if path[: len(above)] != above or len(path) == len(above):
            return None
        return path[len(above)]

    def place(self, *keys: str) -> tuple[str, ...]:
        """Where this chart has a setting of the chart `inference`."""
        if self.chart == "inference":
            return keys
        return ("global", "inference", *keys) if keys[0] in _SHARED else ("inference", *keys)

    def setting(self, *keys: str) -> Value | None:
        """A setting of the chart `inference`, wherever this chart has it."""
        found = self.values.at(*self.place(*keys))
        if found is None and self.chart == "inference-stack":
            found = self.values.at("inference", *keys)
        return found

    def nearest(self, *keys: str) -> Value:
        """The setting, or the closest one above it that is there: the place to show."""
        place = self.place(*keys)
        for count in range(len(place), 0, -1):
            found = self.values.at(*place[:count])
            if found is not None:
                return found
        return self.values

    def is_on(self, *keys: str) -> bool:
        """True for a setting that is `true`."""
        value = self.setting(*keys)
        return value is not None and value.data is True


def read_deployment(values: Value, lines: list[str], name: str) -> Deployment:
    """Recognise the chart. `lines` are the file's, for the pins in comments. Raises UsageError."""
    umbrella, standalone = values.at("inference", "models"), values.at("models")
    if umbrella is not None and standalone is not None:
        raise UsageError(
            f"{name} has models in two places: `models` in line {standalone.line} and"
            f" `inference.models` in line {umbrella.line}",
            reference="chart-ambiguous",
            hint="the chart `inference` reads the first, `inference-stack` the second: keep one",
        )
    found = umbrella if umbrella is not None else standalone
    is_umbrella = _is_umbrella(values)
    if found is None and not is_umbrella and "models" not in values.entries:
        raise UsageError(
            f"{name} is for none of the charts known here: there is neither `models`, as the chart"
            " `inference` has it, nor `inference.models`, as `inference-stack` does",
            reference="chart-unknown",
            hint="give the file that goes to `helm install -f`, with the models in it",
        )
    chart: Chart = "inference-stack" if is_umbrella else "inference"
    own = umbrella if is_umbrella else standalone
    entries = {} if own is None else own.entries
    # Null takes a model away that the chart's own values have.
    present = {key: entry for key, entry in entries.items() if entry.data is not None}
    models = tuple(_model(key, entry, lines) for key, entry in present.items())
    return Deployment(chart, values, models)


def is_placeholder(text: str) -> bool:
    """True for text that still has something in angle brackets to be filled in."""
    return _PLACEHOLDER.search(text) is not None


def is_blank(value: Value | None) -> bool:
    """True for a value that is missing, or nothing but space."""
    return value is None or (value.text is not None and not value.text.strip())


def filled(value: Value | None) -> str | None:
    """The text of a value; None where it is missing, blank, no text, or still to be filled in."""
    if value is None or value.text is None or is_blank(value) or is_placeholder(value.text):
        return None
    return value.text


def pin_above(lines: list[str], line: int) -> tuple[int, str] | None:
    """The pin in the comments right above a line (from 1): its own line, and the id."""
    above = line - 1
    while above >= 1 and lines[above - 1].lstrip().startswith("#"):
        match = _PIN.fullmatch(lines[above - 1])
        if match is not None:
            return above, match[1]
        above -= 1
    return None


def _is_umbrella(values: Value) -> bool:
    return any(
        name in values.entries for name in ("inference", "inference-extproc", "inference-envoy")
    )


def _model(key: str, entry: Value, lines: list[str]) -> Model:
    address = entry.at("model")
    pin = None if address is None else pin_above(lines, address.line)
    return Model(
        key,
        entry,
        _location(filled(address)),
        _count(entry.at("gpus"), GPU_COUNTS),
        _count(entry.at("replicas"), None),
        None if pin is None else pin[1],
    )


def _location(text: str | None) -> S3Location | None:
    if text is None:
        return None
    try:
        return S3Location.parse(text)
    except UsageError:  # a rule tells why
        return None


def _count(value: Value | None, allowed: tuple[int, ...] | None) -> int | None:
    if value is None:
        return 1
    count = value.data
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        return None
    return count if allowed is None or count in allowed else None
