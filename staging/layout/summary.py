"""What a manifest tells of a model without its weights: the facts in its `layout` section.

    {"family": "LagunaForCausalLM", "weight_files": 1, "unread": 0,
     "tensors": 1234, "parameters": 33400000000, "weight_bytes": 66890000000, "dtypes": {"BF16": 66890000000},
     "tensor_parallel": {"possible": [1, 2, 4, 8], "depends": [], "limits": [...],
                         "weight_bytes_per_gpu": {"1": 66890000000, ...}, "notes": []}}

`family` is the first architecture in `config.json`, else null. `parameters` counts elements as they are
stored: eight packed 4-bit weights are one. `tensor_parallel` is `{"unknown": "why"}` where nothing is known;
`limits` are those of `staging.layout.parallel`. `unread` weight files had no header that could be read: all
numbers are without them.

Invariants: the same files give the same summary, in the same order; only JSON types.
Not guaranteed: that a model server agrees; it is advice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from staging.formats.safetensors import SafetensorsHeader, total
from staging.layout.inventory import (
    INDEX_NAME,
    Inventory,
    directory_of,
    is_safetensors,
    json_object,
)
from staging.layout.parallel import Limit, Split, split
from staging.layout.policy import Policy
from staging.layout.rule import Finding

_CONFIG: Final = "config.json"
_VENDOR_CONFIG: Final = "config.yaml"
_MISTRAL_CONFIG: Final = "params.json"
_QUANTISATION: Final = "quantize_config.json"
_LONGEST_NAME: Final = 200


def summarise(inventory: Inventory) -> Mapping[str, Any]:
    """Sum up an inventory for the manifest."""
    paths = served_weights(inventory)
    found = (inventory.headers.get(path) for path in paths)
    headers = [header for header in found if isinstance(header, SafetensorsHeader)]
    totals = total(headers)
    config = json_object(inventory.documents, _CONFIG)
    if config is None:
        judged = Split(None, _why_unknown(inventory))
    else:
        whole = headers if len(headers) == len(paths) else ()
        judged = split(config, whole, quantisation=json_object(inventory.documents, _QUANTISATION))
    return {
        "family": judged.architecture and judged.architecture[:_LONGEST_NAME],
        "weight_files": len(paths),
        "unread": len(paths) - len(headers),
        "tensors": totals.tensors,
        "parameters": totals.elements,
        "weight_bytes": totals.data_bytes,
        "dtypes": dict(totals.dtypes),
        "tensor_parallel": _tensor_parallel(judged),
    }


def section(
    inventory: Inventory, policy: Policy | None, findings: Sequence[Finding]
) -> Mapping[str, Any]:
    """The `layout` section of a manifest; without a policy no rule was applied."""
    decided = {} if policy is None else policy.document()
    warnings = list(dict.fromkeys(finding.rule for finding in findings))
    return {
        "checked": policy is not None,
        "warnings": warnings,
        **decided,
        **summarise(inventory),
    }


def served_weights(inventory: Inventory) -> tuple[str, ...]:
    """Paths of the safetensors files that a server loads: those the index names, else all in the root.

    Weights in Mistral's format count only where there are no others: the two are one model written twice.
    """
    index = json_object(inventory.documents, INDEX_NAME)
    weight_map = index.get("weight_map") if index is not None else None
    if isinstance(weight_map, dict):
        named = {path for path in weight_map.values() if isinstance(path, str)}
        present = sorted(path for path in named if path in inventory.files)
        if present:
            return tuple(present)
    root = sorted(
        path for path in inventory.files if is_safetensors(path) and directory_of(path) == ""
    )
    usual = [path for path in root if not path.startswith("consolidated")]
    return tuple(usual or root)


def _tensor_parallel(judged: Split) -> dict[str, Any]:
    if judged.unknown is not None:
        return {"unknown": judged.unknown}
    return {
        "possible": list(judged.possible),
        "depends": list(judged.depends),
        "limits": [_limit(limit) for limit in judged.limits],
        "weight_bytes_per_gpu": {str(size): held for size, held in judged.weights.items()},
        "notes": list(judged.notes),
    }


def _limit(limit: Limit) -> dict[str, Any]:
    return {
        "rule": limit.rule,
        "field": limit.field,
        "value": limit.value,
        "excludes": list(limit.excludes),
        "certain": limit.certain,
        "message": limit.message,
        "source": limit.source,
    }


def _why_unknown(inventory: Inventory) -> str:
    if _CONFIG in inventory.files:
        return "config.json could not be read"
    if _VENDOR_CONFIG in inventory.files:
        return "what config.yaml means is not published"
    if _MISTRAL_CONFIG in inventory.files:
        return "how a model described by params.json is split is not known here"
    return "there is no config.json"
