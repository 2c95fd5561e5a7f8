"""botocore's exceptions as the wire's one kind of error."""

from __future__ import annotations

import datetime
import email.utils
from collections.abc import Mapping
from typing import Any, Final

from botocore import exceptions as boto

from staging.vocabulary.redaction import one_line
from staging.wire.wire import Cause, WireError

_LONGEST: Final = 300  # characters
_LONGEST_REFUSAL: Final = 2000


class Stalled(boto.ReadTimeoutError):
    """Nothing moves, or next to nothing. A repeat takes another connection."""

    fmt = "{error}: {endpoint_url}"


class UntrustedError(boto.BotoCoreError):
    """A certificate that is not trusted. botocore's own error for it would be repeated."""

    fmt = "TLS validation failed for {endpoint_url}: {error}"


def refused(operation: str, error: boto.ClientError) -> WireError:
    """What the store, or a service that gives credentials, answered."""
    details: Mapping[str, Any] = error.response.get("Error", {})
    metadata: Mapping[str, Any] = error.response.get("ResponseMetadata", {})
    headers: Mapping[str, str] = metadata.get("HTTPHeaders", {})
    # Another operation than the one that was called is one that was to bring its credentials.
    asked = error.operation_name
    code = clean(str(details.get("Code", "Unknown")))
    # A refusal names who, what, on what and by which policy: ARNs, and the reason comes last.
    most = _LONGEST_REFUSAL if code in ("AccessDenied", "AccessDeniedException") else _LONGEST
    return WireError(
        operation=asked,
        cause="answer" if asked == operation else "credentials",
        code=code,
        message=clean(str(details.get("Message", "")), most),
        status=metadata.get("HTTPStatusCode"),
        server_time_skew=_skew(headers.get("date")),
    )


def failed(operation: str, error: boto.BotoCoreError | OSError) -> WireError:
    """What kept botocore from getting an answer.

    An OSError is about a file with credentials: botocore reads the tokens of pods when it needs them, and
    wraps all failures but those.
    """
    cause: Cause
    if isinstance(error, OSError) and not isinstance(error, boto.BotoCoreError):
        return WireError(
            operation=operation,
            cause="credentials",
            code=type(error).__name__,
            message=clean(f"{error.filename or 'a file'}: {error.strerror or error}"),
        )
    if isinstance(error, _CREDENTIALS):
        cause = "credentials"
    elif isinstance(error, boto.ReadTimeoutError):
        cause = "stalled"
    elif isinstance(error, (boto.HTTPClientError, boto.ConnectionError, UntrustedError)):
        cause = "connection"
    elif isinstance(error, _SETTINGS):
        cause = "configuration"
    else:
        cause = "request"
    return WireError(
        operation=operation, cause=cause, code=type(error).__name__, message=clean(str(error))
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


def clean(text: str, most: int = _LONGEST) -> str:
    """A store's message is a stranger's text (I13), and may be a whole page."""
    return one_line(text)[:most]
