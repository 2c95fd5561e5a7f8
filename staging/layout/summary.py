"""What a manifest tells of a model without its weights: the facts in its `layout` section.

    {"family": "LagunaForCausalLM", "weight_files": 1, "unread": 0,
     "tensors": 1234, "parameters": 33400000000, "weight_bytes": 66890000000, "dtypes": {"BF16": 66890000000},
     "tensor_parallel": {"possible": [1, 2, 4, 8], "depends": [], "limits": [...],
                         "weight_bytes_per_gpu": {"1": 66890000000, ...}, "notes": []}}

`family` is the first architecture in `config.json`, else null. `weight_files` counts those that a server
loads, `unread` those of them whose header could not be read: all other numbers are without these.
`parameters` counts elements as they are stored: eight packed 4-bit weights are one. `tensor_parallel` is
`{"unknown": "why"}` where nothing is known; `limits` are those of `staging.layout.parallel`, and
`weight_bytes_per_gpu` is empty unless all weights are there and read.

Invariants: the same files give the same summary, in the same order; only JSON types.
Not guaranteed: that a model server agrees; it is advice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from staging.formats.safetensors import total
from staging.layout.facts import CONFIG, MISTRAL_CONFIG, VENDOR_CONFIG, Facts
from staging.layout.inventory import Inventory
from staging.layout.parallel import Limit, Split
from staging.layout.policy import Policy
from staging.layout.rule import Finding

_LONGEST_NAME: Final = 200


def summarise(inventory: Inventory) -> Mapping[str, Any]:
    """Sum up an inventory for the manifest."""
    facts = Facts(inventory)
    weights = facts.loaded or facts.root_safetensors  # of adapters, where there is nothing else
    headers = [header for path in weights if (header := facts.header(path)) is not None]
    totals = total(headers)
    judged = facts.split or Split(None, _why_unknown(facts))
    return {
        "family": judged.architecture and judged.architecture[:_LONGEST_NAME],
        "weight_files": len(weights),
        "unread": len(weights) - len(headers),
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


def _why_unknown(facts: Facts) -> str:
    if CONFIG in facts.files:
        return "config.json could not be read"
    if VENDOR_CONFIG in facts.files:
        return "what config.yaml means is not published"
    if MISTRAL_CONFIG in facts.files:
        return "how a model described by params.json is split is not known here"
    return "there is no config.json"
