"""Rules of how models are reached: hosts, load balancer, certificate, key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from staging.values.deployment import Deployment, filled, is_placeholder
from staging.values.document import Value
from staging.values.finding import Facts, Found, Rule, rule

_ALB: Final = "alb.ingress.kubernetes.io/"
_SCHEMES: Final = ("internet-facing", "internal")
_CERTIFICATE: Final = re.compile(
    r"arn:aws[a-z-]*:acm:[a-z0-9-]+:[0-9]{12}:certificate/[0-9A-Za-z-]+"
)
_HOST: Final = re.compile(
    r"([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\.)+[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
)
_LONGEST_HOST: Final = 253
_STEP_5: Final = "Install on Amazon EKS, step 5"
_STEP_6: Final = "Install on Amazon EKS, step 6"
_WAYS: Final = (("ingress", "ingressHost"), ("route", "routeHost"))


@rule(
    "host-missing",
    "error",
    reason="with ingress or route enabled every model has a host of its own",
    fix="set the hostname under which this model is reached",
    source=f"{_STEP_6}; Model inference on EKS, the table of fields",
)
def host_missing(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """A model that nobody could reach."""
    for way, field in _WAYS:
        if not deployment.is_on(way, "enabled"):
            continue
        for model in deployment.models:
            host = model.entry.at(field)
            if model.entry.entries and (host is None or (host.text == "")):
                message = f"{field} is missing, and {way}.enabled is true"
                yield Found(place=host or model.entry, message=message, model=model.key)


@rule(
    "host-invalid",
    "error",
    reason="a host is a name in DNS",
    fix="write the name alone, in small letters: no https://, no port, no path",
    source="Kubernetes, Ingress: the host of a rule is an RFC 1123 subdomain",
)
def host_invalid(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """A URL, an address with a port, capital letters."""
    for _, field in _WAYS:
        for model in deployment.models:
            host = model.entry.at(field)
            if host is None or host.text == "" or is_placeholder(host.text or ""):
                continue
            text = host.text or ""
            if len(text) > _LONGEST_HOST or not _HOST.fullmatch(text.removeprefix("*.")):
                message = f"{host.written[:150]!r} is no hostname"
                yield Found(place=host, message=message, model=model.key)


@rule(
    "host-repeated",
    "error",
    reason="every host leads to one model",
    fix="give every model a host of its own",
    source=f"{_STEP_6}: give every model a unique ingressHost",
)
def host_repeated(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """Two models under one host: the load balancer would send all requests to one of them."""
    for _, field in _WAYS:
        first: dict[str, str] = {}
        for model in deployment.models:
            host = model.told(field)
            if host is None:
                continue
            other = first.setdefault(host, model.key)
            if other != model.key:
                place = model.entry.at(field) or model.entry
                message = f"{field} {host[:150]} is also that of {other}"
                yield Found(place=place, message=message, model=model.key)


@rule(
    "host-unused",
    "warning",
    reason="a host has an effect when ingress or route is enabled",
    fix="enable it, or remove the host",
    source="Model inference on EKS, the table of fields",
)
def host_unused(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """A host without ingress or route."""
    for way, field in _WAYS:
        if deployment.is_on(way, "enabled"):
            continue
        for model in deployment.models:
            host = model.entry.at(field)
            if host is not None and host.text != "":
                path = ".".join(deployment.place(way, "enabled"))
                message = f"{field} has no effect: {path} is not true"
                yield Found(place=host, message=message, model=model.key)


@rule(
    "scheme-invalid",
    "error",
    reason="a load balancer is internet-facing or internal",
    fix="write internal or internet-facing",
    source="AWS Load Balancer Controller, Ingress annotations: scheme",
)
def scheme_invalid(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """A scheme that the controller refuses."""
    scheme = _annotation(deployment, "scheme")
    if scheme is None or scheme.data in _SCHEMES or is_placeholder(scheme.text or ""):
        return
    yield Found(place=scheme, message=f"{scheme.written[:80]!r} is no scheme of a load balancer")


@rule(
    "public-without-key",
    "warning",
    reason="models that the internet can reach ask for a key",
    fix="set authentication.secretName to the secret with the key, or the scheme to internal",
    source=_STEP_5,
)
def public_without_key(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """Everybody could use the models: the chart does not enforce a key."""
    scheme = _annotation(deployment, "scheme")
    if scheme is None or scheme.data != "internet-facing":
        return
    secret = deployment.setting("authentication", "secretName")
    if secret is None or secret.text is None or not secret.text.strip():
        yield Found(
            place=secret or scheme,
            message="the load balancer is internet-facing, and authentication.secretName is empty",
            path=".".join(deployment.place("authentication", "secretName")),
        )


@rule(
    "certificate-missing",
    "warning",
    reason="the load balancer is told its certificate",
    fix="set the annotation to the ARN of the certificate that covers all hosts",
    source=f"{_STEP_6}; AWS Load Balancer Controller, certificate discovery",
)
def certificate_missing(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """No certificate: the controller looks for one by the hosts' names, and fails when there is none."""
    annotations = deployment.setting("ingress", "annotations")
    if not _is_load_balancer(deployment) or _annotation(deployment, "certificate-arn") is not None:
        return
    place = annotations or deployment.nearest("ingress", "annotations")
    path = f'{".".join(deployment.place("ingress", "annotations"))}."{_ALB}certificate-arn"'
    yield Found(place=place, message="the load balancer has no certificate", path=path)


@rule(
    "certificate-invalid",
    "error",
    reason="a certificate is the ARN of one in ACM",
    fix="write arn:aws:acm:REGION:ACCOUNT:certificate/ID of the cluster's region; several with commas",
    source="AWS Load Balancer Controller, Ingress annotations: certificate-arn",
)
def certificate_invalid(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """An empty annotation, or the ARN of something else."""
    value = _annotation(deployment, "certificate-arn")
    if value is None or is_placeholder(value.text or ""):
        return
    arns = [arn.strip() for arn in (value.text or "").split(",")]
    if not all(map(_CERTIFICATE.fullmatch, arns)):
        message = f"{value.written[:150]!r} is not the ARN of a certificate"
        yield Found(place=value, message=message)


def _is_load_balancer(deployment: Deployment) -> bool:
    if not deployment.is_on("ingress", "enabled"):
        return False
    annotations = deployment.setting("ingress", "annotations")
    names = annotations.entries if annotations is not None else {}
    return filled(deployment.setting("ingress", "className")) == "alb" or any(
        name.startswith(_ALB) for name in names
    )


def _annotation(deployment: Deployment, name: str) -> Value | None:
    """An annotation for the load balancer; None where there is none, or no ingress."""
    if not deployment.is_on("ingress", "enabled"):
        return None
    return deployment.setting("ingress", "annotations", f"{_ALB}{name}")


RULES: Final[tuple[Rule, ...]] = (
    host_missing,
    host_invalid,
    host_repeated,
    host_unused,
    scheme_invalid,
    public_without_key,
    certificate_missing,
    certificate_invalid,
)
