"""What a pod is given to identify itself with, and why that is refused. No SDK, no request.

A service account gets its role by IRSA (a token in a file, which STS takes for the role's credentials) or by
Pod Identity (an agent on the node gives them). The rest is up to botocore's chain of providers, which asks,
in this order: access keys in the environment; a profile with a role; the web identity; other kinds of
profile; the container's agent; the instance. What that comes to:

    access keys set as well                the keys win, without a word
    role without a token file              goes on down the chain, to the node's role, without a word
    token file without a role              an error at once
    token file missing, unreadable         an error at the first request
    token file empty                       an error at the first request
    STS denies, cannot be reached          an error at the first request; the chain is not gone on with
    the agent does not answer              an error at once

The two that come without a word are what `staging.wire.identity.principal` refuses. A token is read for what
it claims, never verified, never kept (the kubelet replaces the file) and never shown (I13).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from staging.vocabulary.errors import AccessDenied, StagingError, StoreUnavailable, finding
from staging.vocabulary.redaction import one_line
from staging.wire.wire import WireError

ASSUME: Final = "AssumeRoleWithWebIdentity"

_AUDIENCES: Final = ("sts.amazonaws.com", "sts.amazonaws.com.cn")
_EXPECTED: Final = "system:serviceaccount:poolside-models:inference"
"""Whom the trust policy of the vendor's guide names."""

_MOST: Final = 64 * 1024  # bytes of a token
_ROLE: Final = re.compile(r"arn:([a-z-]+):iam::(\d{12}):role/(.+)")
_STS: Final = re.compile(
    r"https?://(?:vpce-[a-z0-9-]+\.)?sts(?:-fips)?(?:\.[a-z0-9-]+)?(?:\.vpce)?\.(?:amazonaws\.com|api\.aws)"
)
"""Where STS is: of the whole world, of a region, by an endpoint of a VPC."""

_ANNOTATION: Final = "eks.amazonaws.com/role-arn"
_FRESH: Final = (
    "the kubelet renews it: delete the pod to have it made anew, and check the node's clock"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """What an environment says about identity; None and False for what it does not mention."""

    role_arn: str | None = None
    token_file: str | None = None
    container_agent: bool = False
    access_key: bool = False
    profile: str | None = None
    in_kubernetes: bool = False
    sts_endpoint: str | None = None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """Read it from environment variables. An empty one counts as not set, as it does for botocore."""
        return cls(
            role_arn=environment.get("AWS_ROLE_ARN") or None,
            token_file=environment.get("AWS_WEB_IDENTITY_TOKEN_FILE") or None,
            container_agent=bool(
                environment.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
                or environment.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
            ),
            access_key=bool(environment.get("AWS_ACCESS_KEY_ID")),
            profile=environment.get("AWS_PROFILE") or None,
            in_kubernetes=bool(environment.get("KUBERNETES_SERVICE_HOST")),
            sts_endpoint=environment.get("AWS_ENDPOINT_URL_STS") or None,
        )

    @property
    def web_identity(self) -> bool:
        """Whether there is a sign of IRSA, whole or not."""
        return self.role_arn is not None or self.token_file is not None


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says of whoever holds it. `expires` is in seconds since the epoch."""

    issuer: str
    subject: str
    audience: tuple[str, ...]
    expires: float | None

    @property
    def account(self) -> tuple[str, str] | None:
        """Namespace and name of the service account, if it is one."""
        parts = self.subject.split(":")
        is_one = len(parts) == 4 and parts[:2] == ["system", "serviceaccount"]
        return (parts[2], parts[3]) if is_one else None


def read_claims(path: str) -> Claims:
    """Read a token's file as it is now. Raises AccessDenied (`web-identity-token`)."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST + 1)
    except FileNotFoundError as error:
        raise _unusable(
            f"the web identity token {path!r} is not there",
            "the pod was made before its service account had a role, or the token's volume is not mounted in"
            f" this container: check the annotation {_ANNOTATION}, then delete the pod to have it made anew",
        ) from error
    except OSError as error:
        raise _unusable(
            f"the web identity token {path!r} cannot be read by user {os.geteuid()}:"
            f" {os.strerror(error.errno or 0)}",
            "set securityContext.fsGroup in the pod: then the token is readable for that group",
        ) from error
    if not data.strip():
        raise _unusable(f"the web identity token {path!r} is empty", _FRESH)
    claims = _claims(data) if len(data) <= _MOST else None
    if claims is None:
        raise _unusable(
            f"the file {path!r} holds no web identity token",
            "AWS_WEB_IDENTITY_TOKEN_FILE must name the token that the kubelet writes: leave it to the"
            f" annotation {_ANNOTATION}",
        )
    return claims


def require_whole(offered: Offered) -> None:
    """Raise AccessDenied unless IRSA, where there is a sign of it, has all it needs."""
    if not offered.web_identity:
        return
    if offered.token_file is None:
        raise AccessDenied(
            f"AWS_ROLE_ARN names {_shown(offered.role_arn)}, but there is no AWS_WEB_IDENTITY_TOKEN_FILE:"
            " requests would be made as somebody else, most likely as the node",
            reference="identity-fallback",
            hint=f"do not set AWS_ROLE_ARN by hand: annotate the service account with {_ANNOTATION}, and"
            " delete the pod to have it made anew, with both variables and the token",
            side="local",
        )
    if offered.role_arn is None:
        raise _unusable(
            "AWS_WEB_IDENTITY_TOKEN_FILE is set, but there is no AWS_ROLE_ARN",
            f"annotate the service account with {_ANNOTATION}, and delete the pod to have it made anew",
        )
    read_claims(offered.token_file)


def explained(error: StagingError, offered: Offered, *, now: float) -> StagingError:
    """The error, or a better one where STS stood in the way: with who asked for what, and what must allow it.

    `now` is in seconds since the epoch. The token is looked at as it is now.
    """
    wire = _wire_error(error)
    if wire is None or offered.token_file is None:
        return error
    role = _shown(offered.role_arn)
    better: StagingError
    if wire.cause == "connection" and _is_about_sts(wire.message, offered):
        own = (
            "check AWS_ENDPOINT_URL_STS, which says where STS is; " if offered.sts_endpoint else ""
        )
        better = StoreUnavailable(
            f"STS cannot be reached, which has to give the credentials of {role}: {wire.message}",
            reference="sts-connection",
            hint=f"{own}a cluster without a way to the internet needs a VPC endpoint for STS that pods may"
            " reach (com.amazonaws.REGION.sts), and AWS_STS_REGIONAL_ENDPOINTS=regional",
            side="store",
        )
    elif wire.operation == ASSUME and wire.status is not None and wire.status < 500:
        try:
            claims = read_claims(offered.token_file)
        except AccessDenied as unreadable:
            better = unreadable
        else:
            better = _refused_by_sts(wire, offered, claims, now)
    else:
        return error
    better.__cause__ = error
    better.document = _with_finding_replaced(error, better)
    for note in getattr(error, "__notes__", ()):
        better.add_note(note)
    return better


def _is_about_sts(message: str, offered: Offered) -> bool:
    """Whether it is STS that a message about a connection names."""
    if _STS.search(message):
        return True
    own = (offered.sts_endpoint or "").rstrip("/")
    return bool(own) and re.search(re.escape(own) + r"(?![\w.:-])", message) is not None


def _refused_by_sts(wire: WireError, offered: Offered, claims: Claims, now: float) -> StagingError:
    role, said = _shown(offered.role_arn), f"{wire.code}: {wire.message}"
    expires = now if claims.expires is None else claims.expires
    if wire.code == "ExpiredTokenException" or expires < now:
        ago = f" {(now - expires) / 60:.0f} minutes ago" if expires < now else ""
        return _unusable(
            f"STS did not take the web identity token of {_shown(claims.subject)}, which expired{ago}:"
            f" {said}",
            _FRESH,
        )
    if wire.code == "InvalidIdentityToken" and "provider" in wire.message.casefold():
        return AccessDenied(
            f"the account of {role} does not know this cluster's identity provider {_shown(claims.issuer)}:"
            f" {said}",
            reference="trust-policy",
            hint="create the IAM OIDC provider: `eksctl utils associate-iam-oidc-provider --cluster CLUSTER"
            " --approve`",
            side="store",
        )
    if not set(claims.audience) & set(_AUDIENCES):
        return _unusable(
            f"the web identity token is meant for {', '.join(map(_shown, claims.audience)) or 'nobody'}, not"
            f" for STS: {said}",
            f"leave the token to the annotation {_ANNOTATION}, or project it with the audience"
            f" {_AUDIENCES[0]}",
        )
    if wire.code != "AccessDenied":
        return AccessDenied(
            f"STS does not give {_shown(claims.subject)} the role {role}: {said}",
            reference="trust-policy",
            hint=f"check the role's ARN in the annotation {_ANNOTATION}, and its trust policy",
            side="store",
        )
    better = AccessDenied(
        f"STS does not give the role {role} to {_shown(claims.subject)}: there is no such role, or its trust"
        f" policy must allow sub {_shown(claims.subject)} with aud {_AUDIENCES[0]}",
        reference="trust-policy",
        hint=_trust_hint(claims, role),
        side="store",
    )
    statement = _trust_statement(offered.role_arn or "", claims)
    if statement is not None:
        better.add_note(f"to allow it: in the trust policy of the role {statement}")
    return better


def _trust_hint(claims: Claims, role: str) -> str:
    name = role.rpartition("/")[2]
    look = f"`aws iam get-role --role-name {name}` shows the trust policy"
    account = claims.account
    if claims.subject == _EXPECTED or account is None:
        return f"check sub, aud and the identity provider in it, and the account in the role's ARN: {look}"
    namespace, service_account = account
    return (
        f"this pod is {service_account!r} in the namespace {namespace!r}, and the guide's trust policy names"
        f" {_EXPECTED}: change its sub, or deploy there: {look}"
    )


def _trust_statement(role_arn: str, claims: Claims) -> str | None:
    found = _ROLE.fullmatch(role_arn)
    if found is None:
        return None
    issuer = claims.issuer.removeprefix("https://")
    statement: dict[str, Any] = {
        "Effect": "Allow",
        "Principal": {"Federated": f"arn:{found[1]}:iam::{found[2]}:oidc-provider/{issuer}"},
        "Action": f"sts:{ASSUME}",
        "Condition": {
            "StringEquals": {f"{issuer}:aud": _AUDIENCES[0], f"{issuer}:sub": claims.subject}
        },
    }
    return one_line(json.dumps(statement, separators=(",", ":")))


def _claims(data: bytes) -> Claims | None:
    """What a JSON web token claims; None when it is none."""
    parts = data.strip().split(b".")
    if len(parts) != 3:
        return None
    try:
        payload = json.loads(base64.urlsafe_b64decode(parts[1] + b"=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return None
    if not isinstance(payload, dict):
        return None
    audience, expires = payload.get("aud"), payload.get("exp")
    return Claims(
        issuer=str(payload.get("iss", "")),
        subject=str(payload.get("sub", "")),
        audience=tuple(map(str, audience if isinstance(audience, list) else [audience or ""])),
        expires=float(expires) if isinstance(expires, (int, float)) else None,
    )


def _wire_error(error: BaseException) -> WireError | None:
    """The request behind an error, if there is one."""
    cause: BaseException | None = error
    for _ in range(10):
        if cause is None or isinstance(cause, WireError):
            return cause
        cause = cause.__cause__
    return None


def _with_finding_replaced(error: StagingError, better: StagingError) -> dict[str, Any]:
    """The error's document, in which the better one stands for it among the findings."""
    document = dict(error.document)
    if isinstance(findings := document.get("findings"), list):
        old, new = finding(error), finding(better)
        document["findings"] = [new if found == old else found for found in findings]
    return document


def _unusable(message: str, hint: str) -> AccessDenied:
    return AccessDenied(message, reference="web-identity-token", hint=hint, side="local")


def _shown(text: str | None) -> str:
    """A name out of an environment or a token, on one line and not too long."""
    return one_line(text or "a role")[:300]
