"""Who the requests come from, and where they go: what a person wants to see before anything else.

`principal` says it from what botocore found, and refuses when that is another identity than the one that the
environment offers: in a pod that lost its own, requests would silently be the node's.

Not guaranteed: an identity. Compatible stores rarely have one to tell, and private networks often have no way
to STS, so asking gives up soon.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import botocore.session
from botocore import exceptions as boto
from botocore.config import Config

from staging.vocabulary.errors import AccessDenied, UsageError
from staging.vocabulary.redaction import one_line
from staging.wire.boto import Connection
from staging.wire.failure import clean, failed, refused
from staging.wire.session import new_session
from staging.wire.web_identity import Offered, require_whole
from staging.wire.wire import WireError

_OPERATION: Final = "GetCallerIdentity"
_CONNECT_TIMEOUT: Final = 5  # seconds
_READ_TIMEOUT: Final = 10  # seconds
_MAX_ATTEMPTS: Final = 2
_DEFAULT_REGION: Final = "us-east-1"
_AWS: Final = (".amazonaws.com", ".amazonaws.com.cn")

_ORIGINS: Final = {
    "env": "environment variables",
    "shared-credentials-file": "the credentials file",
    "config-file": "the configuration file",
    "assume-role": "a role assumed by a profile",
    "assume-role-with-web-identity": "a web identity (IRSA)",
    "container-role": "a container role (Pod Identity, ECS)",
    "iam-role": "the instance's role",
    "sso": "SSO",
    "login": "a login",
    "custom-process": "a process of a profile",
}


Kind = Literal["web-identity", "container", "static-key", "instance-role", "profile"]
"""IRSA; Pod Identity and its like; a key in the environment; the node's own role; anything in AWS's files."""

_KINDS: Final[dict[str, Kind]] = {
    "assume-role-with-web-identity": "web-identity",
    "container-role": "container",
    "env": "static-key",
    "iam-role": "instance-role",
}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who signs the requests, as far as that is known without asking; `text` is for people.

    `warning` is what an operator should look at, where there is something.
    """

    kind: Kind
    text: str
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is configured: the region, where S3 is, and where credentials come from, as far as known."""

    region: str | None
    endpoint_url: str
    path_style: bool
    credentials: str | None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who signs the requests: an account's id and the ARN of a user or of a role's session."""

    account: str
    arn: str


def surroundings(connection: Connection) -> Surroundings:
    """What a connection amounts to on this machine, without a request to S3. Raises WireError."""
    path_style = connection.path_style
    if path_style is None:
        path_style = connection.endpoint_url is not None
    try:
        session, region = _session(connection)
        client = session.create_client(
            "s3",
            region_name=region or _DEFAULT_REGION,
            endpoint_url=connection.endpoint_url,
        )
        try:
            endpoint = str(client.meta.endpoint_url)
        finally:
            client.close()
        credentials = session.get_credentials()
    except boto.BotoCoreError as error:
        raise failed(_OPERATION, error) from error
    method = None if credentials is None else str(credentials.method)
    origin = None if method is None else _ORIGINS.get(method, method)
    return Surroundings(region, endpoint, path_style, origin)


def caller(connection: Connection) -> Caller:
    """Ask STS who we are. Raises WireError.

    A store at an address of its own is asked there: no key of such a store goes to AWS.
    """
    try:
        session, region = _session(connection)
        client: Any = session.create_client(
            "sts",
            region_name=region or _DEFAULT_REGION,
            endpoint_url=_endpoint(connection.endpoint_url),
            verify=connection.ca_bundle,
            config=Config(
                connect_timeout=_CONNECT_TIMEOUT,
                read_timeout=_READ_TIMEOUT,
                retries={"mode": "standard", "total_max_attempts": _MAX_ATTEMPTS},
                user_agent_extra=connection.user_agent,
            ),
        )
        try:
            answer = client.get_caller_identity()
        finally:
            client.close()
        return Caller(str(answer["Account"]), str(answer["Arn"]))
    except boto.ClientError as error:
        raise refused(_OPERATION, error) from error
    except boto.BotoCoreError as error:
        raise failed(_OPERATION, error) from error


def principal(connection: Connection, offered: Offered | None = None) -> Principal:
    """Say whose credentials botocore found, which is what signs the requests.

    Asks nobody, but for what botocore asks itself (the agents of container and instance roles), and for the
    name of an instance's role. With `offered`, raises AccessDenied (`identity-fallback`) when the
    credentials are of another kind than the environment offers, unless a profile was chosen; and
    (`web-identity-token`) when a token cannot be used. Raises AccessDenied (`credentials`) when there are
    none or they cannot be had, UsageError when a profile does not exist.
    """
    chosen = connection.profile is not None
    wanted = offered if offered is not None and not chosen else Offered()
    session, found, kind = _as_offered(connection, wanted)
    method = str(found.method)
    if kind == "web-identity":
        role = wanted.role_arn or session.get_scoped_config().get("role_arn")
        return Principal(kind, one_line(str(role or _ORIGINS[method])))
    if kind == "container":
        return Principal(kind, _ORIGINS[method])
    if kind == "static-key":
        return Principal(kind, f"access key {_shortened(str(found.access_key))}")
    if kind == "profile":
        name = connection.profile or session.get_config_variable("profile") or "default"
        return Principal(kind, one_line(f"profile {name} ({_ORIGINS.get(method, method)})"))
    return _instance_role(connection, offered)


def require_offered(connection: Connection, offered: Offered) -> None:
    """Raise what `principal` raises when requests would be made as somebody else than is offered.

    Costs nothing where the environment offers no identity, or a profile was chosen. A role's name beside an
    access key is nobody's offer: outside of pods people keep it for commands of their own.
    """
    if connection.profile is not None:
        return
    named_only = offered.access_key and offered.token_file is None
    if offered.container_agent or (offered.web_identity and not named_only):
        _as_offered(connection, offered)


def _as_offered(
    connection: Connection, offered: Offered
) -> tuple[botocore.session.Session, Any, Kind]:
    """The session, its credentials and their kind, which is an offered one where there is an offer."""
    if not offered.access_key:  # else they are not asked for, and that is said below
        require_whole(offered)
    session, found = _credentials(connection)
    kind = _KINDS.get(str(found.method), "profile")
    expected: set[Kind] = set()
    if offered.web_identity:
        expected.add("web-identity")
    if offered.container_agent:
        expected.add("container")
    if expected and kind not in expected:
        raise _fallback(offered, kind, session)
    return session, found, kind


def _credentials(connection: Connection) -> tuple[botocore.session.Session, Any]:
    """What the chain of providers ends with. Raises AccessDenied, UsageError."""
    try:
        session, _ = _session(connection)
        found = session.get_credentials()
    except (boto.ProfileNotFound, boto.ConfigParseError) as error:
        raise UsageError(
            clean(str(error)),
            reference="connection-settings",
            hint="check --profile, AWS_PROFILE and the configuration files",
        ) from error
    except (boto.BotoCoreError, OSError, ValueError) as error:
        raise AccessDenied(
            f"the credentials cannot be had: {clean(str(error))}",
            reference="credentials",
            hint="for Pod Identity check that the agent (eks-pod-identity-agent) runs on the node; else check"
            " the AWS_* variables and files",
            side="local",
        ) from error
    if found is None:
        raise AccessDenied(
            "there are no credentials: neither variables, nor files, nor a role",
            reference="credentials",
            hint="in a pod annotate the service account with its role (IRSA), or give it the keys of a"
            " secret, and see that serviceAccountName names it; else set AWS_PROFILE or --profile, or"
            " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            side="local",
        )
    return session, found


def _fallback(offered: Offered, kind: Kind, session: botocore.session.Session) -> AccessDenied:
    """The refusal to go on as somebody else than the pod was meant to be."""
    meant = f"the role {offered.role_arn} (IRSA)" if offered.role_arn else "a role (Pod Identity)"
    if kind == "static-key":
        why = "AWS_ACCESS_KEY_ID is set and wins"
        hint = (
            "remove the AWS_* keys from the container's environment (the secret with static keys), or the"
            " role from the service account: one identity is enough"
        )
    elif kind == "profile":
        why = f"the profile {session.get_config_variable('profile') or 'default'} wins"
        hint = "remove AWS_PROFILE or the profile's credentials, or choose it with --profile"
    else:
        why = "the credentials found are the node's own"
        hint = (
            "see that the role's variables and token reach this container, and delete the pod to have it"
            " made anew"
        )
    return AccessDenied(
        one_line(
            f"the service account was given {meant}, but requests would not be made as that: {why}"
        ),
        reference="identity-fallback",
        hint=hint,
        side="local",
    )


def _instance_role(connection: Connection, offered: Offered | None) -> Principal:
    text = "the instance's role"
    if _endpoint(connection.endpoint_url) is None:
        with contextlib.suppress(WireError):  # then it stays without a name
            text = caller(connection).arn
    if offered is None or not offered.in_kubernetes:
        return Principal("instance-role", text)
    return Principal(
        "instance-role",
        text,
        f"this pod has no identity of its own, and uses the node's: {text}; annotate its service account with"
        " a role (IRSA), and see that serviceAccountName names it",
    )


def _shortened(key: str) -> str:
    """Enough of an access key's id to find it, not enough to be one."""
    return f"{key[:4]}...{key[-4:]}" if len(key) >= 16 else f"{key[:2]}..."


def _session(connection: Connection) -> tuple[botocore.session.Session, str | None]:
    """A session, and the region that is configured."""
    core = new_session(connection.profile)
    return core, connection.region or core.get_config_variable("region")


def _endpoint(url: str | None) -> str | None:
    """Where STS is for who uses S3 at `url`; None leaves it to botocore."""
    host = urlsplit(url).hostname if url else None
    return None if host is None or host.endswith(_AWS) else url
