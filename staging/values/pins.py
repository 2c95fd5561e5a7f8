"""Pins: a patch for each Deployment, and the ids as comments in the values file.

The charts have no field for the id of a checkpoint, so none is made up. What the init container reads is the
variable `MODEL_EXPECT_ID`, which a patch sets where the chart renders it; the comment above a model's `model`
keeps the id next to the URI that it belongs to, where people and `staging preflight` read it.

Invariants: only whole comment lines are added or replaced; every other line stays as it is, byte for byte,
and so does what the file says. Adding the same ids again changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

from staging.values.deployment import PIN_COMMENT, Deployment, pin_above, read_deployment
from staging.values.document import lines_of, read_values
from staging.vocabulary.errors import MalformedInput, UsageError

INIT_CONTAINER: Final = "model-downloader"
VARIABLE: Final = "MODEL_EXPECT_ID"


def pin_patch(deployment: str, identity: str) -> dict[str, Any]:
    """A strategic merge patch for the Deployment of this name that pins a checkpoint's id."""
    environment = [{"name": VARIABLE, "value": identity}]
    container = {"name": INIT_CONTAINER, "env": environment}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": deployment},
        "spec": {"template": {"spec": {"initContainers": [container]}}},
    }


def as_yaml(patches: Sequence[Mapping[str, Any]]) -> str:
    """Patches as a stream of YAML documents."""
    return yaml.safe_dump_all(patches, sort_keys=False, explicit_start=True)


def with_pins(text: str, deployment: Deployment, ids: Mapping[str, str], name: str) -> str:
    """The text of a values file with the ids of models, by key, as comments.

    `deployment` is what was read from this text. Raises UsageError for a model whose `model` shares its
    line with another one's, which would get two ids, and when a comment would change what the file says.
    """
    wanted: dict[int, str] = {}
    pins: dict[str, str] = {}
    for model in deployment.models:
        address = model.entry.at("model")
        identity = ids.get(model.key)
        if address is None or identity is None:
            continue
        pins[model.key] = identity
        if wanted.setdefault(address.line, identity) != identity:
            raise UsageError(
                f"{name}, line {address.line}: several models in one line cannot be pinned there",
                reference="pin-place",
                hint="write every model's fields on lines of their own",
            )
    lines = lines_of(text)
    for line in sorted(wanted, reverse=True):  # from the end, so that numbers above stay right
        _pin(lines, line, wanted[line])
    pinned = "".join(lines)
    if not _says_the_same(pinned, deployment, pins, name):
        raise UsageError(
            f"{name}: the ids have no place in it as comments without changing what it says",
            reference="pin-place",
            hint="write every model's fields on lines of their own",
        )
    return pinned


def _pin(lines: list[str], line: int, identity: str) -> None:
    at = lines[line - 1]
    # What is not indentation is a flow mapping or a list's dash: the comment goes above all the same.
    indent = at[: len(at) - len(at.lstrip(" \ufeff"))].replace("\ufeff", "")
    ending = at[len(at.rstrip("\r\n\x85\u2028\u2029")) :] or "\n"
    comment = f"{indent}{PIN_COMMENT}{identity}{ending}"
    existing = pin_above(lines, line)
    if existing is None:
        lines.insert(line - 1, comment)
    elif existing[1] != identity:
        old = lines[existing[0] - 1]
        lines[existing[0] - 1] = old.replace(existing[1], identity)


def _says_the_same(pinned: str, deployment: Deployment, pins: Mapping[str, str], name: str) -> bool:
    """Read the new text: it says what the old one does, and has the pins."""
    try:
        values = read_values(pinned.encode("utf-8"), name)
    except MalformedInput:  # a comment came to stand inside a text
        return False
    models = read_deployment(values, lines_of(pinned), name).models
    if any(model.pin != pins[model.key] for model in models if model.key in pins):
        return False
    before = [(value.path, value.written) for value in deployment.values.walk()]
    return before == [(value.path, value.written) for value in values.walk()]
