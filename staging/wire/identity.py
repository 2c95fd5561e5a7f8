"""Who the requests come from, and where they go: what a person wants to see before anything else.

Not guaranteed: an identity. Compatible stores rarely have one to tell, and private networks often have no way
to STS, so asking gives up soon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import botocore.session
from botocore import exceptions as boto
from botocore.config import Config

from staging.wire.boto import Connection
from staging.wire.failure import failed, refused

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


def _session(connection: Connection) -> tuple[botocore.session.Session, str | None]:
    """A session, and the region that is configured."""
    core = botocore.session.Session(profile=connection.profile)
    return core, connection.region or core.get_config_variable("region")


def _endpoint(url: str | None) -> str | None:
    """Where STS is for who uses S3 at `url`; None leaves it to botocore."""
    host = urlsplit(url).hostname if url else None
    return None if host is None or host.endswith(_AWS) else url
