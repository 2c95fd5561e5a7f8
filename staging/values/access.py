"""Rules of what pods are and may do: images, credentials, service account, security context."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from staging.values.deployment import Deployment, filled, is_blank, is_placeholder
from staging.values.document import Value
from staging.values.finding import Facts, Found, Rule, rule

ROLE_ANNOTATION: Final = "eks.amazonaws.com/role-arn"

_ROLE: Final = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]+")
_REGISTRY: Final = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]+)?(/[a-z0-9._/-]*[a-z0-9])?"
)
_STEP_4: Final = "Install on Amazon EKS, step 4"
_STEP_6: Final = "Install on Amazon EKS, step 6"
_INFERENCE: Final = "Model inference on EKS, Configure inference values"


@rule(
    "placeholder-unfilled",
    "error",
    reason="nothing in angle brackets is left to be filled in",
    fix="replace it, with the brackets",
    source="both guides: the examples hold placeholders",
)
def placeholder_unfilled(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """A placeholder of the guide's example, in a value or a key."""
    for value in deployment.values.walk():
        if value.text is not None and is_placeholder(value.text):
            yield Found(place=value, message=f"{value.text[:120]!r} is still to be filled in")
        for key, entry in value.entries.items():
            if is_placeholder(key):
                yield Found(place=entry, message=f"the key {key[:120]!r} is still to be filled in")


@rule(
    "inference-disabled",
    "warning",
    reason="a chart that is switched off deploys no models",
    fix="set inference.enabled to true",
    source=_INFERENCE,
)
def inference_disabled(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """The subchart is off, and has models."""
    enabled = deployment.values.at("inference", "enabled")
    if deployment.models and enabled is not None and enabled.data is False:
        yield Found(place=enabled, message="inference.enabled is false: no model is deployed")


@rule(
    "registry-missing",
    "error",
    reason="the images come from the registry that they were uploaded to",
    fix="set it to the registry, such as 123456789012.dkr.ecr.us-east-2.amazonaws.com",
    source="Install on Amazon EKS, step 2; Model inference on EKS, Configure inference values",
)
def registry_missing(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """No registry for the server's image."""
    registry = deployment.setting("image", "registry")
    if is_blank(registry):
        path = ".".join(deployment.place("image", "registry"))
        place = registry or deployment.nearest("image", "registry")
        yield Found(place=place, message=f"{path} is missing: images would not be found", path=path)


@rule(
    "registry-invalid",
    "error",
    reason="a registry is a host, and a path where there is one",
    fix="write it without https://, image name and tag",
    source="Install on Amazon EKS, step 2",
)
def registry_invalid(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """A URL, an image, capital letters in the path."""
    for registry in (
        deployment.setting("image", "registry"),
        deployment.values.at("inference-extproc", "image", "registry"),
    ):
        if registry is None or is_blank(registry) or is_placeholder(registry.text or ""):
            continue
        if registry.text is None or not _REGISTRY.fullmatch(registry.text):
            yield Found(place=registry, message=f"{registry.written[:150]!r} is no registry")


@rule(
    "extproc-registry-missing",
    "error",
    reason="the external processor does not inherit the registry of global.inference",
    fix="set inference-extproc.image.registry too, to the same registry",
    source="Model inference on EKS, Configure container images for a private registry",
)
def extproc_registry_missing(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """No registry for the second image of the umbrella chart."""
    values = deployment.values
    enabled = values.at("inference-extproc", "enabled")
    if deployment.chart == "inference" or (enabled is not None and enabled.data is False):
        return
    registry = values.at("inference-extproc", "image", "registry")
    if is_blank(registry):
        place = (
            registry or values.at("inference-extproc", "image") or values.at("inference-extproc")
        )
        yield Found(
            place=place or values,
            message="inference-extproc.image.registry is missing: its image would not be found",
            path="inference-extproc.image.registry",
        )


@rule(
    "credentials-missing",
    "error",
    reason="pods get to the bucket by a role or by a secret",
    fix=f'set serviceAccount.annotations."{ROLE_ANNOTATION}" to the role, or s3.secretName to the secret',
    source=_STEP_4,
)
def credentials_missing(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """Neither of the two ways. An account that exists already may have its role annotated there."""
    role, secret = _role(deployment), deployment.setting("s3", "secretName")
    if not is_blank(role) or not is_blank(secret) or _is_own_account(deployment):
        return
    yield Found(
        place=role or secret or deployment.nearest("serviceAccount", "annotations"),
        message="there is neither a role for the service account nor a secret with keys",
    )


@rule(
    "credentials-both",
    "warning",
    reason="a role and keys exclude each other: the keys win",
    fix="remove s3.secretName when the role is meant",
    source="docs/scripting.md: identity-fallback",
)
def credentials_both(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """Both ways."""
    secret = deployment.setting("s3", "secretName")
    if secret is not None and not is_blank(secret) and not is_blank(_role(deployment)):
        message = "there is a role for the service account and a secret with keys: the keys win"
        yield Found(place=secret, message=message)


@rule(
    "role-arn-invalid",
    "error",
    reason="the annotation is the ARN of a role",
    fix="write it as arn:aws:iam::ACCOUNT:role/NAME, with the 12 digits of the account",
    source=_STEP_4,
)
def role_arn_invalid(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """Something else, such as the ARN of a policy."""
    role = _role(deployment)
    if role is None or is_blank(role) or is_placeholder(role.text or ""):
        return
    if role.text is None or not _ROLE.fullmatch(role.text):
        yield Found(place=role, message=f"{role.written[:150]!r} is not the ARN of a role")


@rule(
    "service-account-unnamed",
    "error",
    reason="a service account that the chart does not make has a name",
    fix="set serviceAccount.name to the account that exists, such as inference",
    source=f"{_STEP_4}: create the role and service account with eksctl",
)
def service_account_unnamed(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """`create: false` alone: pods would run as the namespace's default account."""
    create = deployment.setting("serviceAccount", "create")
    name = deployment.setting("serviceAccount", "name")
    if create is not None and _is_own_account(deployment) and is_blank(name):
        message = "serviceAccount.create is false and serviceAccount.name is missing"
        yield Found(place=create, message=message)


@rule(
    "service-account-differs",
    "error",
    reason="the service account is the one that the role trusts",
    fix="give the account the name in the role's trust policy; --trust names another one",
    source=f"{_STEP_4}: the trust policy's sub",
)
def service_account_differs(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """Pods would be denied the role: `AccessDenied` in the init container."""
    place = deployment.setting("serviceAccount", "name")
    if place is None and not _is_own_account(deployment):
        place = deployment.setting("fullnameOverride")
    name = filled(place)
    trusted = facts.trusted.rpartition(":")[2]
    if place is None or name is None or name == trusted or not _takes_role(deployment):
        return
    message = f"the service account is called {name[:80]!r}, the role trusts {facts.trusted}"
    yield Found(place=place, message=message)


@rule(
    "fullname-missing",
    "warning",
    reason="fullnameOverride gives the service account the name that the role trusts",
    fix="set fullnameOverride to inference, or serviceAccount.name",
    source=_STEP_6,
)
def fullname_missing(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """The account would be called as the release is, whatever that is."""
    if _is_own_account(deployment) or not _takes_role(deployment):
        return
    names = (deployment.setting("serviceAccount", "name"), deployment.setting("fullnameOverride"))
    if all(map(is_blank, names)):
        path = ".".join(deployment.place("fullnameOverride"))
        yield Found(
            place=names[1] or deployment.nearest("fullnameOverride"),
            message=f"{path} is missing: the release's name decides what the service account is called",
            path=path,
        )


@rule(
    "pod-security-incomplete",
    "error",
    reason="podSecurityContext is whole: the chart replaces the block and does not merge it",
    fix="set runAsNonRoot: true, runAsUser: 10003 and seccompProfile.type: RuntimeDefault together",
    source=_INFERENCE,
)
def pod_security_incomplete(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """Pods that Kubernetes refuses to start, or that lose what the rest of the block gave them."""
    block = deployment.setting("podSecurityContext")
    if block is None and deployment.is_on("route", "enabled"):
        return  # OpenShift gives a user by itself
    missing = []
    non_root = block.at("runAsNonRoot") if block is not None else None
    if non_root is None or non_root.data is not True:
        missing.append("runAsNonRoot: true")
    user = block.at("runAsUser") if block is not None else None
    if not deployment.is_on("route", "enabled") and not _is_user(user):
        missing.append("runAsUser (not 0)")
    profile = block.at("seccompProfile", "type") if block is not None else None
    if is_blank(profile):
        missing.append("seccompProfile.type")
    if missing:
        path = ".".join(deployment.place("podSecurityContext"))
        yield Found(
            place=block or deployment.nearest("podSecurityContext"),
            message=f"{path} lacks {', '.join(missing)}",
            path=path,
        )


def _role(deployment: Deployment) -> Value | None:
    return deployment.setting("serviceAccount", "annotations", ROLE_ANNOTATION)


def _is_own_account(deployment: Deployment) -> bool:
    create = deployment.setting("serviceAccount", "create")
    return create is not None and create.data is False


def _takes_role(deployment: Deployment) -> bool:
    if not is_blank(_role(deployment)):
        return True
    return _is_own_account(deployment) and is_blank(deployment.setting("s3", "secretName"))


def _is_user(value: Value | None) -> bool:
    if value is None:
        return False
    if is_placeholder(value.text or ""):
        return True
    return isinstance(value.data, int) and not isinstance(value.data, bool) and value.data > 0


RULES: Final[tuple[Rule, ...]] = (
    placeholder_unfilled,
    inference_disabled,
    registry_missing,
    registry_invalid,
    extproc_registry_missing,
    credentials_missing,
    credentials_both,
    role_arn_invalid,
    service_account_unnamed,
    service_account_differs,
    fullname_missing,
    pod_security_incomplete,
)
