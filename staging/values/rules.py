"""All rules of a deployment, and their application."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Final

from staging.values import access, capacity, checkpoints, exposure, models
from staging.values.deployment import Deployment
from staging.values.finding import Facts, Finding, Rule

RULES: Final[tuple[Rule, ...]] = (
    *models.RULES,
    *checkpoints.RULES,
    *access.RULES,
    *exposure.RULES,
    *capacity.RULES,
)
"""Every rule. Their ids are part of the interface and keep their meaning."""

_ORDER: Final = {"error": 0, "warning": 1, "advice": 2}


def check(
    deployment: Deployment,
    facts: Facts,
    *,
    ignore: Collection[str] = (),
    strict: bool = False,
) -> list[Finding]:
    """Apply all rules but those to `ignore`; errors first, otherwise in the order of the file.

    `strict` makes errors of warnings; advice stays advice.
    """
    findings = [
        finding
        for one in RULES
        if one.id not in ignore
        for finding in one.findings(deployment, facts)
    ]
    if strict:
        findings = [
            dataclasses.replace(finding, severity="error")
            if finding.severity == "warning"
            else finding
            for finding in findings
        ]
    return sorted(findings, key=lambda finding: (_ORDER[finding.severity], finding.line))
