"""JSON from a stranger: bounded, UTF-8, one reading.

The standard decoder lets the last of two equal keys win and reads `NaN`; both are refused here, so
that two readers of one document never see two documents (I3).
"""

from __future__ import annotations

import json
from typing import Any, NoReturn


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"duplicate key {key[:100]!r}")
        result[key] = value
    return result


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def loads(data: bytes, *, limit: int) -> Any:
    """Decode one JSON document of at most `limit` bytes.

    Raises ValueError for longer or malformed documents, duplicate keys, NaN and infinities, lone
    surrogates and nesting too deep for the decoder.
    """
    if len(data) > limit:
        raise ValueError(f"longer than {limit} bytes")
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
        if "\\u" in text:  # only an escape can smuggle in a lone surrogate
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value
