"""Values files of both charts: each planted mistake gives its finding, and no other (I1: doubt is told).

The two files in `tests/golden/values` are the guides' examples, filled in. The bucket is a table of facts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from staging.layout.gpus import instances
from staging.layout.inventory import Inventory
from staging.layout.summary import summarise as summarise_layout
from staging.values.capacity import reckon
from staging.values.deployment import Deployment, read_deployment
from staging.values.document import lines_of, read_values
from staging.values.finding import Checkpoint, Facts, Finding, Published
from staging.values.rules import RULES, check
from staging.vocabulary.errors import NotFound, UsageError
from staging.vocabulary.location import S3Location

GOLDEN = Path(__file__).parents[1] / "golden" / "values"
ONE = "inference.yaml"
STACK = "inference-stack.yaml"
TRUSTED = "system:serviceaccount:poolside-models:inference"
ID = f"sha256:{'1' * 64}"
OTHER = f"sha256:{'2' * 64}"
ROLE = "arn:aws:iam::123456789012:role/inference-pod-role"
ALB = "alb.ingress.kubernetes.io"


def layout(weight_bytes: int = 60_000_000_000, **split: Any) -> dict[str, Any]:
    facts = {"possible": [1, 2, 4, 8], "depends": [], "limits": [], **split}
    return {"weight_bytes": weight_bytes, "tensor_parallel": facts}


def published(
    about: Mapping[str, Any] | None = None, *problems: str, identity: str = ID
) -> Published:
    return Published(identity, 4, 60_000_000_000, layout() if about is None else about, problems)


class Everything(dict[S3Location, Checkpoint]):
    """A bucket in which every prefix holds a checkpoint that serves, unless told otherwise."""

    def get(self, key: S3Location, default: Any = None) -> Any:
        return super().get(key, published())


def read(text: str, name: str = "values.yaml") -> Deployment:
    return read_deployment(read_values(text.encode(), name), lines_of(text), name)


def findings(
    text: str, bucket: Mapping[str, Checkpoint] | None = None, *, nodes: int | None = 2, **how: Any
) -> list[Finding]:
    known = Everything({S3Location.parse(uri): what for uri, what in (bucket or {}).items()})
    facts = Facts(known, instances()["p5e.48xlarge"], nodes, TRUSTED)
    return check(read(text), facts, **how)


def text_of(name: str) -> str:
    return (GOLDEN / name).read_text(encoding="utf-8")


def edited(name: str, *edits: tuple[str, str]) -> str:
    text = text_of(name)
    for before, after in edits:
        assert text.count(before) == 1, f"{before!r} stands {text.count(before)} times in {name}"
        text = text.replace(before, after)
    return text


M, XS, POINT = (f"s3://my-models/checkpoints/{key}" for key in ("laguna-m", "laguna-xs", "point"))
MISSING = NotFound(
    f"no published checkpoint at {XS}/: there is nothing under this prefix",
    reference="prefix-empty",
    hint=f"did you mean {M}/?",
    side="store",
)

# Where, the edits, the rule, what the finding's path ends with; then what the bucket holds, if that matters.
MISTAKES: list[tuple[str, list[tuple[str, str]], str, str, dict[str, Checkpoint]]] = [
    (
        ONE,
        [("models:\n  laguna-m:", "models: {}\nold:\n  laguna-m:")],
        "models-missing",
        "models",
        {},
    ),
    (
        STACK,
        [("  models:\n", "models:\n")],
        "models-missing",
        "inference.models",
        {},
    ),
    (ONE, [("  point:\n", "  Point_1:\n")], "model-key-invalid", "models.Point_1", {}),
    (ONE, [("  point:\n", f"  {'p' * 54}:\n")], "model-key-invalid", "p", {}),
    (ONE, [(f"    model: {XS}\n", "")], "model-uri-missing", "models.laguna-xs", {}),
    (
        ONE,
        [(f"model: {XS}\n", "model: /mnt/laguna-xs\n")],
        "model-uri-invalid",
        "laguna-xs.model",
        {},
    ),
    (ONE, [("    modelName: Point\n", "")], "model-name-missing", "models.point", {}),
    (
        STACK,
        [("modelType: agent_small", "modelType: agent-small")],
        "model-type-invalid",
        "modelType",
        {},
    ),
    (ONE, [("gpus: 4", "gpus: 3")], "gpus-invalid", "models.laguna-m.gpus", {}),
    (ONE, [("gpus: 4", 'gpus: "4"')], "gpus-invalid", "models.laguna-m.gpus", {}),
    (ONE, [("gpus: 4", "gpus: 4\n    replicas: two")], "replicas-invalid", "laguna-m.replicas", {}),
    (
        STACK,
        [("modelType: agent_small\n      gpus: 1", "modelType: agent_small\n      gpus: 2")],
        "tensor-parallel-missing",
        "laguna-xs.gpus",
        {},
    ),
    (
        STACK,
        [
            (
                "modelType: agent_small\n      gpus: 1",
                (
                    "modelType: agent_small\n      gpus: 2\n"
                    '      modelExtraArgs:\n        tensor-parallel-size: "4"'
                ),
            )
        ],
        "tensor-parallel-differs",
        "laguna-xs.modelExtraArgs.tensor-parallel-size",
        {},
    ),
    (
        ONE,
        [("gpus: 4", 'gpus: 4\n    modelExtraArgs:\n      tensor-parallel-size: "4"')],
        "tensor-parallel-given",
        "laguna-m.modelExtraArgs.tensor-parallel-size",
        {},
    ),
    (
        ONE,
        [("gpus: 4", "gpus: 4\n    modelExtraArgs: [--foo]")],
        "model-malformed",
        "modelExtraArgs",
        {},
    ),
    (ONE, [("gpus: 4", "gpu: 4")], "field-unknown", "models.laguna-m.gpu", {}),
    (ONE, [(f"model: {XS}\n", f"model: {POINT}/\n")], "prefix-shared", "models.point.model", {}),
    (ONE, [], "checkpoint-unavailable", "models.laguna-xs.model", {XS: MISSING}),
    (
        ONE,
        [],
        "checkpoint-incomplete",
        "models.laguna-m.model",
        {M: published(None, "model.safetensors is missing")},
    ),
    (
        ONE,
        [(f"    model: {XS}\n", f"    # checkpoint id: {OTHER}\n    model: {XS}\n")],
        "id-differs",
        "models.laguna-xs.model",
        {},
    ),
    (
        ONE,
        [],
        "split-impossible",
        "models.laguna-m.gpus",
        {M: published(layout(possible=[1, 2]))},
    ),
    (
        ONE,
        [],
        "split-depends",
        "models.laguna-m.gpus",
        {M: published(layout(possible=[1, 2], depends=[4]))},
    ),
    (
        ONE,
        [],
        "weights-too-large",
        "models.point.gpus",
        {POINT: published(layout(450_000_000_000))},
    ),
    (
        ONE,
        [("certificate/0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", "certificate/<id>")],
        "placeholder-unfilled",
        'certificate-arn"',
        {},
    ),
    (
        ONE,
        [(f"model: {XS}\n", "model: s3://<bucket>/xs\n")],
        "placeholder-unfilled",
        "xs.model",
        {},
    ),
    (
        ONE,
        [("ingressHost: point.example.com", "ingressHost: <host>")],
        "placeholder-unfilled",
        "Host",
        {},
    ),
    (ONE, [("  point:\n", "  <key>:\n")], "placeholder-unfilled", "models.<key>", {}),
    (STACK, [("  enabled: true\n", "  enabled: false\n")], "inference-disabled", "enabled", {}),
    (
        ONE,
        [("  registry: 123456789012.dkr.ecr.us-east-2.amazonaws.com\n", '  registry: ""\n')],
        "registry-missing",
        "image.registry",
        {},
    ),
    (
        ONE,
        [("  registry: 1234", "  registry: https://1234")],
        "registry-invalid",
        "image.registry",
        {},
    ),
    (
        STACK,
        [
            (
                (
                    'inference-extproc:\n  image:\n    registry: "123456789012.dkr.ecr.us-east-2'
                    '.amazonaws.com/poolside"\n'
                ),
                "",
            )
        ],
        "extproc-registry-missing",
        "inference-extproc.image.registry",
        {},
    ),
    (
        ONE,
        [(f"    eks.amazonaws.com/role-arn: {ROLE}\n", "    team: inference\n")],
        "credentials-missing",
        "serviceAccount.annotations",
        {},
    ),
    (
        ONE,
        [("\nauthentication:", "\ns3:\n  secretName: keys\nauthentication:")],
        "credentials-both",
        "s3.secretName",
        {},
    ),
    (ONE, [(ROLE, "arn:aws:iam::123456789012:policy/pods")], "role-arn-invalid", 'role-arn"', {}),
    (
        ONE,
        [("create: true", "create: false")],
        "service-account-unnamed",
        "serviceAccount.create",
        {},
    ),
    (
        ONE,
        [("create: true", "create: true\n  name: vllm")],
        "service-account-differs",
        "serviceAccount.name",
        {},
    ),
    (
        ONE,
        [("fullnameOverride: inference", "fullnameOverride: vllm")],
        "service-account-differs",
        "Override",
        {},
    ),
    (
        STACK,
        [("  fullnameOverride: inference\n", "")],
        "fullname-missing",
        "inference.fullnameOverride",
        {},
    ),
    (
        STACK,
        [("      runAsUser: 10003\n", "")],
        "pod-security-incomplete",
        "podSecurityContext",
        {},
    ),
    (
        ONE,
        [("runAsUser: 10003", "runAsUser: 0")],
        "pod-security-incomplete",
        "podSecurityContext",
        {},
    ),
    (ONE, [("    ingressHost: point.example.com\n", "")], "host-missing", "models.point", {}),
    (
        ONE,
        [("ingressHost: point.example", "ingressHost: https://point.example")],
        "host-invalid",
        "models.point.ingressHost",
        {},
    ),
    (
        ONE,
        [("ingressHost: point.example.com", "ingressHost: laguna-m.example.com")],
        "host-repeated",
        "models.point.ingressHost",
        {},
    ),
    (
        STACK,
        [
            (
                "completion\n      gpus: 1",
                "completion\n      gpus: 1\n      routeHost: point.example.com",
            )
        ],
        "host-unused",
        "inference.models.point.routeHost",
        {},
    ),
    (ONE, [("scheme: internet-facing", "scheme: public")], "scheme-invalid", 'scheme"', {}),
    (
        ONE,
        [("secretName: vllm-auth", 'secretName: ""')],
        "public-without-key",
        "authentication.secretName",
        {},
    ),
    (
        ONE,
        [
            (
                (
                    f"    {ALB}/certificate-arn: arn:aws:acm:us-east-2:123456789012:certificate/"
                    "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9\n"
                ),
                "",
            )
        ],
        "certificate-missing",
        'certificate-arn"',
        {},
    ),
    (
        ONE,
        [("arn:aws:acm:us-east-2", "arn:aws:iam:us-east-2")],
        "certificate-invalid",
        'certificate-arn"',
        {},
    ),
    (ONE, [("gpus: 4", "gpus: 4\n    replicas: 4")], "nodes-too-few", "models", {}),
    (ONE, [("gpus: 4", "gpus: 4\n    replicas: 3")], "update-blocked", "models.laguna-m.gpus", {}),
]


@pytest.mark.parametrize("name", [ONE, STACK])
def test_the_guides_examples_pass(name: str) -> None:
    assert findings(text_of(name)) == []


def identity(mistake: Any) -> str:
    return str(mistake[2])


@pytest.mark.parametrize("mistake", MISTAKES, ids=identity)
def test_a_planted_mistake_gives_exactly_its_finding(mistake: Any) -> None:
    name, edits, rule, path, bucket = mistake
    text = edited(name, *edits)
    found = findings(text, bucket)
    assert [finding.rule for finding in found] == [rule], found
    (finding,) = found
    assert finding.path.endswith(path), finding
    assert finding.hint
    assert 1 <= finding.line <= len(text.splitlines())
    assert "\n" not in finding.message + finding.hint


def test_every_rule_has_a_mistake() -> None:
    planted = {rule for _, _, rule, _, _ in MISTAKES}
    # The guides' GPU counts all fit on their nodes; it takes another type of node.
    assert {rule.id for rule in RULES} - planted == {"gpus-exceed-node"}
    assert len(planted) > 25


def test_more_gpus_than_a_node_has() -> None:
    deployment = read(edited(ONE, ("gpus: 4", "gpus: 8")))
    facts = Facts(Everything(), instances()["g6.12xlarge"], None, TRUSTED)
    (found,) = (one for one in check(deployment, facts) if one.rule != "weights-too-large")
    assert (found.rule, found.model) == ("gpus-exceed-node", "laguna-m")


def test_a_finding_says_where_what_and_how_grave() -> None:
    text = text_of(ONE)
    (found,) = findings(text, {XS: MISSING})
    assert found == Finding(
        rule="checkpoint-unavailable",
        severity="error",
        code=10,
        path="models.laguna-xs.model",
        line=text[: text.index(f"model: {XS}\n")].count("\n") + 1,
        message=MISSING.message,
        hint=f"did you mean {M}/?",
        model="laguna-xs",
        cause="prefix-empty",
    )


def test_what_lies_in_a_model_is_about_the_model() -> None:
    (found,) = findings(edited(ONE, (f"model: {XS}\n", "model: s3://<bucket>/xs\n")))
    assert (found.rule, found.model) == ("placeholder-unfilled", "laguna-xs")


def test_errors_come_first_and_strict_makes_errors_of_warnings() -> None:
    text = edited(
        ONE, ("secretName: vllm-auth", 'secretName: ""'), ("modelType: completion", "modelType: x")
    )
    assert [one.severity for one in findings(text)] == ["error", "warning"]
    assert [one.severity for one in findings(text, strict=True)] == ["error", "error"]
    assert [one.rule for one in findings(text, strict=True)] == [
        "public-without-key",
        "model-type-invalid",
    ]
    advised = {M: published(layout(possible=[1, 2], depends=[4]))}
    assert [one.severity for one in findings(text_of(ONE), advised, strict=True)] == ["advice"]
    assert findings(text, ignore={"public-without-key", "model-type-invalid"}) == []


@pytest.mark.parametrize(
    "edits",
    [
        # Ways that are right as well.
        [("create: true", "create: false\n  name: inference")],
        [
            (
                "create: true\n  annotations:\n",
                "create: false\n  name: inference\nother:\n  annotations:\n",
            ),
        ],
        [
            (f"    eks.amazonaws.com/role-arn: {ROLE}\n", "    team: a\n"),
            ("\nauthentication:", "\ns3:\n  secretName: aws-credentials\nauthentication:"),
            ("fullnameOverride: inference", "fullnameOverride: vllm"),
        ],
        [
            ("scheme: internet-facing", "scheme: internal"),
            ("secretName: vllm-auth", 'secretName: ""'),
        ],
        [("  laguna-m:\n", "  old: null\n  laguna-m:\n")],
        [("modelName: Point", "modelName: Point\n    replicas: 0")],
        [("modelName: Point", "modelName: Point\n    priorityClassName: high")],
        [(f"    model: {XS}\n", f"    # checkpoint id: {ID}\n    # ours\n    model: {XS}\n")],
        [("    modelType: agent\n", "")],
    ],
)
def test_other_ways_that_are_right(edits: list[tuple[str, str]]) -> None:
    assert findings(edited(ONE, *edits)) == []


def test_openshift_gives_users_and_routes() -> None:
    text = edited(
        ONE,
        ("  runAsUser: 10003\n", ""),
        ("ingress:\n  enabled: true", "route:\n  enabled: true\ningress:\n  enabled: false"),
    ).replace("ingressHost", "routeHost")
    assert findings(text) == []


@pytest.mark.parametrize("section", ["nothing", "unknown", "malformed"])
def test_what_is_not_known_about_a_model_is_no_finding(section: str) -> None:
    about: dict[str, Any] = {
        "nothing": {},
        "unknown": {"tensor_parallel": {"unknown": "what config.yaml means is not published"}},
        "malformed": {"weight_bytes": "many", "tensor_parallel": {"possible": ["1"]}},
    }[section]
    assert findings(text_of(ONE), {M: published(about)}) == []


def test_the_reason_of_a_limit_is_told() -> None:
    limit = {"excludes": [4, 8], "message": "num_attention_heads is 6"}
    (found,) = findings(text_of(ONE), {M: published(layout(possible=[1, 2], limits=[limit]))})
    assert found.message == "cannot be cut over 4 GPUs: num_attention_heads is 6"
    assert found.hint == "possible are: 1, 2"


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("replicaCount: 1\n", "chart-unknown"),
        ("models:\n  a: {}\ninference:\n  models:\n    b: {}\n", "chart-ambiguous"),
    ],
)
def test_files_for_other_charts_are_refused(text: str, reference: str) -> None:
    with pytest.raises(UsageError) as refused:
        read(text)
    assert refused.value.reference == reference
    assert "values.yaml" in refused.value.message


# Capacity


@pytest.mark.parametrize(
    ("replicas", "nodes", "free", "updatable"),
    [(1, 1, 2, 2), (2, 2, 6, 2), (3, 2, 2, 3), (4, 3, 6, 3), (8, 5, 6, 5)],
)
def test_nodes_that_are_enough(replicas: int, nodes: int, free: int, updatable: int) -> None:
    deployment = read(edited(ONE, ("gpus: 4", f"gpus: 4\n    replicas: {replicas}")))
    needed = reckon(deployment, instances()["p5e.48xlarge"])
    assert (needed.gpus, needed.pods) == (4 * replicas + 2, replicas + 2)
    assert (needed.nodes, needed.free, needed.updatable_nodes) == (nodes, free, updatable)


def every_packing(pods: list[int], nodes: list[int]) -> Iterator[bool]:
    """Whether pods fit, by trying every place."""
    if not pods:
        yield True
        return
    for number, free in enumerate(nodes):
        if pods[0] <= free:
            rest = [*nodes]
            rest[number] -= pods[0]
            yield from every_packing(pods[1:], rest)


@pytest.mark.parametrize("pods", [[4, 1, 1], [8, 4, 4, 2], [4, 4, 4, 2, 1, 1], [2] * 5, [1, 8, 1]])
def test_the_number_of_nodes_is_the_least(pods: list[int]) -> None:
    models = "".join(
        f"  m{number}:\n    model: s3://bucket/m{number}\n    gpus: {gpus}\n"
        for number, gpus in enumerate(pods)
    )
    needed = reckon(read(f"models:\n{models}"), instances()["p5e.48xlarge"]).nodes
    assert any(every_packing(pods, [8] * needed))
    assert not any(every_packing(pods, [8] * (needed - 1)))


# What the upload wrote


def test_the_summary_in_manifests_is_understood() -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "num_hidden_layers": 2,
    }
    inventory = Inventory({"config.json": 200}, {}, {"config.json": config})
    section = json.loads(json.dumps(summarise_layout(inventory)))
    assert section["tensor_parallel"]["possible"] == [1, 2]
    (found,) = findings(text_of(ONE), {M: published(section)})
    assert (found.rule, found.hint) == ("split-impossible", "possible are: 1, 2")
    assert found.message.startswith("cannot be cut over 4 GPUs: num_attention_heads is 6")
