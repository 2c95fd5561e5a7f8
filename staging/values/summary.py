"""The outcome of a preflight as one JSON document, from which the table and the report are made.

Invariants: only JSON types; every text is one line that a terminal does not obey, and holds no query (I13).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from staging.values.capacity import in_words, reckon
from staging.values.checkpoints import possible_sizes
from staging.values.deployment import Deployment, Model
from staging.values.finding import Facts, Finding, Published
from staging.vocabulary.redaction import one_line

NOTE: Final = (
    "The bucket was asked with the credentials of this machine. Those of the pods may differ: the Job in"
    " deploy/preflight-job.yaml asks with theirs"
)
"""What no preflight on this machine can know."""


def summarise(
    deployment: Deployment, facts: Facts, findings: Sequence[Finding], name: str
) -> dict[str, Any]:
    """Sum up: `name` is that of the values file."""
    needed = reckon(deployment, facts.instance)
    return {
        "values": one_line(name),
        "chart": deployment.chart,
        "passed": not any(finding.severity == "error" for finding in findings),
        "models": [_model(model, facts, findings) for model in deployment.models],
        "capacity": {
            "instance": facts.instance.name,
            "gpu": facts.instance.gpu.name,
            "gpus_per_node": facts.instance.gpus,
            "gpus": needed.gpus,
            "pods": needed.pods,
            "nodes": needed.nodes,
            "free_gpus": needed.free,
            "nodes_for_updates": needed.updatable_nodes,
            "nodes_given": facts.nodes,
            "not_counted": [one_line(key) for key in needed.unknown],
            "lines": [one_line(line) for line in in_words(needed)],
        },
        "findings": [_finding(finding) for finding in findings],
        "note": NOTE,
    }


def _model(model: Model, facts: Facts, findings: Sequence[Finding]) -> dict[str, Any]:
    known = None if model.uri is None else facts.checkpoints.get(model.uri)
    there = known if isinstance(known, Published) else None
    sizes = None if there is None else possible_sizes(there)
    own = {finding.severity for finding in findings if finding.model == model.key}
    address, kind = model.entry.at("model"), model.entry.at("modelType")
    shown = str(model.uri) if model.uri is not None else address.written if address else ""
    return {
        "key": one_line(model.key),
        "deployment": one_line(model.deployment),
        "type": None if kind is None else one_line(kind.written),
        "gpus": model.gpus,
        "replicas": model.replicas,
        "uri": one_line(shown) or None,
        "id": None if there is None else there.id,
        "pinned": None if there is None else model.pin == there.id,
        "files": None if there is None else there.files,
        "total_size": None if there is None else there.total_size,
        "tensor_parallel": None if sizes is None else list(sizes),
        "state": next((one for one in ("error", "warning", "advice") if one in own), "ok"),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "code": finding.code,
        "cause": finding.cause,
        "model": None if finding.model is None else one_line(finding.model),
        "path": one_line(finding.path),
        "line": finding.line,
        "message": one_line(finding.message),
        "hint": one_line(finding.hint),
        "notes": [one_line(note) for note in finding.notes],
    }
