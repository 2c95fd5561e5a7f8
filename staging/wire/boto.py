"""The wire through botocore: works with every S3 and every kind of credentials.

botocore signs, follows a bucket to its region, refreshes credentials, and repeats single requests.
Payloads are neither hashed for the signature nor sent with a second checksum: TLS and the CRC64NVME
that callers give cover the wire, and SHA-256 would cost more than everything else together.
"""

from __future__ import annotations

import datetime
import email.utils
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import boto3.session
from botocore import exceptions as boto
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.response import StreamingBody
from urllib3.exceptions import HTTPError

from staging.vocabulary.errors import UsageError
from staging.vocabulary.redaction import one_line
from staging.wire.wire import Body, BodyBroken, Cause, WireError

_MAX_ATTEMPTS: Final = 5
_CONNECT_TIMEOUT: Final = 10  # seconds
_READ_TIMEOUT: Final = 60  # seconds without a single byte
_DEFAULT_REGION: Final = "us-east-1"  # where S3 tells a bucket's real region from


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How to reach S3. None leaves a choice to botocore's own chain of environment and files."""

    region: str | None = None
    profile: str | None = None
    endpoint_url: str | None = None
    ca_bundle: str | None = None
    connections: int = 10
    user_agent: str = "checkpoint-staging"


class BotoWire:
    """S3 requests through one botocore client. Do not fork after making one."""

    def __init__(self, connection: Connection) -> None:
        """Create the client. Raises UsageError when profile, region or endpoint are unusable."""
        _check_endpoint(connection.endpoint_url)
        try:
            session = boto3.session.Session(
                profile_name=connection.profile, region_name=connection.region
            )
            self._client = session.client(
                "s3",
                region_name=session.region_name or _DEFAULT_REGION,
                endpoint_url=connection.endpoint_url,
                verify=connection.ca_bundle,
                config=Config(
                    # A bucket name is not a host name at most custom endpoints.
                    s3={
                        "payload_signing_enabled": False,
                        "addressing_style": "path" if connection.endpoint_url else "auto",
                    },
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    retries={"mode": "standard", "total_max_attempts": _MAX_ATTEMPTS},
                    connect_timeout=_CONNECT_TIMEOUT,
                    read_timeout=_READ_TIMEOUT,
                    max_pool_connections=connection.connections,
                    tcp_keepalive=True,
                    user_agent_extra=connection.user_agent,
                ),
            )
        except (boto.BotoCoreError, ValueError, OSError) as error:
            raise UsageError(
                f"cannot connect to S3: {_clean(str(error))}",
                reference="connection-settings",
                hint="check --profile, --region, --endpoint-url and --ca-bundle",
            ) from error
        # The signer that comes with awscrt copies the whole body, which it does not even sign.
        events = self._client.meta.events
        events.register_first("request-created.s3", _set_body_aside)
        events.register_last("request-created.s3", _put_body_back)
        self._methods = {
            name: getattr(self._client, method)
            for method, name in self._client.meta.method_to_api_mapping.items()
        }

    def call(self, operation: str, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """Perform an S3 operation by its API name. Raises WireError."""
        try:
            answer: Mapping[str, Any] = self._methods[operation](**parameters)
        except boto.ClientError as error:
            raise _refused(operation, error) from error
        except boto.BotoCoreError as error:
            raise _failed(operation, error) from error
        return answer

    def get(self, parameters: Mapping[str, Any]) -> tuple[Mapping[str, Any], Body]:
        """Perform GetObject. Raises WireError."""
        answer = self.call("GetObject", parameters)
        return answer, _BotoBody(answer["Body"])

    def close(self) -> None:
        """Close idle connections. No request may follow."""
        self._client.close()


class _BotoBody:
    def __init__(self, stream: StreamingBody) -> None:
        self._stream = stream

    def read_into(self, view: memoryview) -> int:
        try:
            return int(self._stream.readinto(view))  # type: ignore[arg-type]  # stubs want a file
        # What botocore leaves in urllib3's words, such as a damaged TLS record, is no OSError.
        except (boto.BotoCoreError, HTTPError, OSError) as error:
            raise BodyBroken(_clean(str(error))) from error

    def close(self) -> None:
        self._stream.close()


def _check_endpoint(url: str | None) -> None:
    """Refuse what is no URL, and one with a password: S3 has no use for it, and errors name the URL."""
    if url is None:
        return
    try:
        parts = urlsplit(url)
        secret = "@" in parts.netloc
        usable = secret or parts.port != 0
    except ValueError:  # its text may hold what was taken for a port
        secret = usable = False
    if secret:
        raise UsageError(
            "the endpoint's URL holds a user name or password",
            reference="connection-settings",
            hint="give credentials as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or with --profile",
        )
    if not usable:
        raise UsageError(
            "the endpoint's URL is not valid",
            reference="connection-settings",
            hint="give --endpoint-url as http://HOST:PORT or https://HOST",
        )


def _set_body_aside(request: AWSRequest, **_: object) -> None:
    request.context["body-set-aside"], request.data = request.data, None


def _put_body_back(request: AWSRequest, **_: object) -> None:
    request.data = request.context.pop("body-set-aside")


def _refused(operation: str, error: boto.ClientError) -> WireError:
    details: Mapping[str, Any] = error.response.get("Error", {})
    metadata: Mapping[str, Any] = error.response.get("ResponseMetadata", {})
    headers: Mapping[str, str] = metadata.get("HTTPHeaders", {})
    # Another operation than the one that was called is one that was to bring its credentials.
    asked = error.operation_name
    return WireError(
        operation=asked,
        cause="answer" if asked == operation else "credentials",
        code=_clean(str(details.get("Code", "Unknown"))),
        message=_clean(str(details.get("Message", ""))),
        status=metadata.get("HTTPStatusCode"),
        server_time_skew=_skew(headers.get("date")),
    )


def _failed(operation: str, error: boto.BotoCoreError) -> WireError:
    cause: Cause
    if isinstance(error, _CREDENTIALS):
        cause = "credentials"
    elif isinstance(error, (boto.HTTPClientError, boto.ConnectionError)):
        cause = "connection"
    elif isinstance(error, _SETTINGS):
        cause = "configuration"
    else:
        cause = "request"
    return WireError(
        operation=operation, cause=cause, code=type(error).__name__, message=_clean(str(error))
    )


_CREDENTIALS: Final = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.UnauthorizedSSOTokenError,
    boto.SSOError,
)
_SETTINGS: Final = (
    boto.BaseEndpointResolverError,
    boto.EndpointProviderError,
    boto.InvalidEndpointConfigurationError,
    boto.InvalidRegionError,
    boto.UnsupportedS3ConfigurationError,
    boto.InvalidProxiesConfigError,
    boto.InvalidConfigError,
)


def _skew(date: str | None) -> float | None:
    if not date:
        return None
    try:
        then = email.utils.parsedate_to_datetime(date)
    except ValueError:
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=datetime.UTC)
    return (datetime.datetime.now(datetime.UTC) - then).total_seconds()


def _clean(text: str) -> str:
    """A store's message is a stranger's text (I13), and may be a whole page."""
    return one_line(text)[:300]
