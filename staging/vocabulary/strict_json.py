"""JSON from a stranger: bounded, UTF-8, one reading.

The standard decoder lets the last of two equal keys win and reads `NaN`; both are refused here, so
that two readers of one document never see two documents (I3).
"""

from __future__ import annotations

import json
import math
from typing import Any, Final, NoReturn

MAX_DEPTH: Final = 64
"""Most objects and arrays inside each other: far below where decoders and encoders give up."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"duplicate key {key[:100]!r}")
        result[key] = value
    return result


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def loads(data: bytes, *, limit: int) -> Any:
    """Decode one JSON document of at most `limit` bytes.

    Raises ValueError for longer or malformed documents, duplicate keys, NaN, infinities and numbers
    that would become one, lone surrogates, and nesting deeper than `MAX_DEPTH`.
    """
    if len(data) > limit:
        raise ValueError(f"longer than {limit} bytes")
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=_object, parse_float=_float, parse_constant=_constant
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    _check_depth(value)
    if "\\u" in text:  # only an escape can smuggle in a lone surrogate
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _check_depth(value: Any) -> None:
    """What the decoder just managed to read, an encoder further down the stack may not write."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, (dict, list))
        ]
    if level:
        raise ValueError("nested too deeply")
