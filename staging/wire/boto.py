"""The wire through botocore: works with every S3 and every kind of credentials.

botocore signs, follows a bucket to its region, refreshes credentials, and repeats single requests. What
moves the bytes below it is an engine: botocore's own HTTP client (`boto`), or one of the transports
`raw` and `crt`, which answer botocore's `before-send` event. Behind an HTTP proxy it is always `boto`.
When a request goes, first or again, is up to the `Pace`.

Payloads are neither hashed for the signature, unless `sign_payload` says so, nor sent with a second
checksum: TLS and the CRC64NVME that callers give cover the wire, and SHA-256 would cost more than everything
else together.

A request is made at most five times, as long as the client's retry quota lasts: botocore takes from it for
each repeat, gives back what a repeat took that led to an answer, and a little for each request that needed
none. So when everything fails, a hundred repeats are the end of it, however long the run (I11).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from botocore import exceptions as boto
from botocore.awsrequest import AWSPreparedRequest, AWSRequest, AWSResponse
from botocore.config import Config
from botocore.endpoint import EndpointCreator
from botocore.response import StreamingBody
from botocore.retries.standard import register_retry_handler
from urllib3.exceptions import HTTPError

from staging.vocabulary.errors import UsageError
from staging.wire.engine import Engine, send, transport_for
from staging.wire.failure import clean, failed, refused
from staging.wire.pace import Pace, Slot
from staging.wire.session import new_session, user_agent
from staging.wire.transport import CONNECT_TIMEOUT, READ_TIMEOUT, BodyReader
from staging.wire.wire import Body, BodyBroken, BodyStalled, WireError

_MAX_ATTEMPTS: Final = 5
_MOST_LOOKS: Final = 12
"""Times botocore may ask for a bucket's region for one request: it asks again when redirected itself."""

_DEFAULT_REGION: Final = "us-east-1"  # where S3 tells a bucket's real region from
_RETRIES: Final = "retry-config-s3"  # botocore's name for its handler of retries
_BUSY: Final = {
    "SlowDown",
    "TooManyRequests",
    "RequestTimeout",
    "Throttling",
    "RequestLimitExceeded",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How to reach S3. None leaves a choice to botocore's own chain of environment and files.

    `path_style` puts the bucket into the path of URLs; None does so at custom endpoints, where a bucket's
    name is seldom a host's. `sign_payload` hashes every body for its signature, for buckets whose policy
    wants that.
    """

    region: str | None = None
    profile: str | None = None
    endpoint_url: str | None = None
    ca_bundle: str | None = None
    connections: int = 10
    user_agent: str = "checkpoint-staging"
    engine: Engine = "auto"
    path_style: bool | None = None
    sign_payload: bool = False


class BotoWire:
    """S3 requests through one botocore client. Do not fork after making one."""

    def __init__(self, connection: Connection, pace: Pace | None = None) -> None:
        """Create the client. Without a `pace`, as many requests go at once as there are connections.

        Raises UsageError when profile, region, endpoint or engine are unusable.
        """
        _check_endpoint(connection.endpoint_url)
        self.pace = pace or Pace(ceiling=connection.connections)
        self.region: str | None = connection.region
        """The region that requests go to: from the first answer on the bucket's own, wherever it is."""
        self._here = threading.local()
        styles = {True: "path", False: "virtual", None: "auto"}
        settings: Any = {
            "payload_signing_enabled": connection.sign_payload,
            "addressing_style": "path"
            if connection.path_style is None and connection.endpoint_url
            else styles[connection.path_style],
        }
        try:
            core = new_session(connection.profile)
            verify = connection.ca_bundle or core.get_config_variable("ca_bundle")
            region = connection.region or core.get_config_variable("region")
            self._client: Any = core.create_client(
                "s3",
                region_name=region or _DEFAULT_REGION,
                endpoint_url=connection.endpoint_url,
                verify=verify,
                config=Config(
                    s3=settings,
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    retries={"mode": "standard", "total_max_attempts": _MAX_ATTEMPTS},
                    connect_timeout=CONNECT_TIMEOUT,
                    read_timeout=READ_TIMEOUT,
                    max_pool_connections=connection.connections,
                    tcp_keepalive=True,
                    user_agent=user_agent(core),
                    user_agent_extra=connection.user_agent,
                ),
            )
            self._proxies, trusted = self._surroundings(verify)
        except (boto.BotoCoreError, ValueError, OSError) as error:
            raise UsageError(
                f"cannot connect to S3: {clean(str(error))}",
                reference="connection-settings",
                hint="check --profile, --region, --endpoint-url and --ca-bundle",
            ) from error
        self._transport = transport_for(
            connection.engine, self.pace, trusted, idle=connection.connections
        )
        if self._transport is not None:
            weakref.finalize(self, self._transport.close)
        self._listen()
        self._methods = {
            name: getattr(self._client, method)
            for method, name in self._client.meta.method_to_api_mapping.items()
        }

    def call(self, operation: str, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """Perform an S3 operation by its API name. Raises WireError, Stopped."""
        try:
            return self._perform(operation, parameters)
        finally:
            self._leave()

    def get(self, parameters: Mapping[str, Any]) -> tuple[Mapping[str, Any], Body]:
        """Perform GetObject. Raises WireError, Stopped."""
        try:
            answer = self._perform("GetObject", parameters)
        except BaseException:
            self._leave()
            raise
        slot, self._here.slot = self._here.slot, None
        return answer, _BotoBody(
            answer["Body"], slot, self.pace, self._here.tag, pays=self._here.by_botocore
        )

    def close(self) -> None:
        """Close idle connections. No request may follow."""
        if self._transport is not None:
            self._transport.close()
        self._client.close()

    def _perform(self, operation: str, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        self._here.looks = 0
        try:
            answer: Mapping[str, Any] = self._methods[operation](**parameters)
        except boto.ClientError as error:
            raise refused(operation, error) from error
        except (boto.BotoCoreError, OSError) as error:  # a file with credentials is read just now
            raise failed(operation, error) from error
        except ValueError as error:  # a header with a number or a date that is none
            raise WireError(
                operation, "request", "UnreadableAnswer", clean(f"an unreadable answer: {error}")
            ) from error
        return answer

    def _surroundings(self, verify: str | None) -> tuple[Mapping[str, str], str | bool]:
        """Proxies and certificates as botocore finds them in environment and files: its own code is asked."""
        found = (
            EndpointCreator(self._client.meta.events)
            .create_endpoint(
                self._client.meta.service_model,
                self._client.meta.region_name,
                self._client.meta.endpoint_url,
                verify=verify,  # type: ignore[arg-type]  # stubs know no file here
                http_session_cls=_Surroundings,  # type: ignore[arg-type]  # anything with its arguments
            )
            .http_session
        )
        return found.proxies, found.verify

    def _listen(self) -> None:
        events = self._client.meta.events
        # The signer that comes with awscrt copies the whole body, even one that it does not sign.
        events.register_first("request-created.s3", _set_body_aside)
        events.register_last("request-created.s3", _put_body_back)
        events.register("before-send.s3", self._before_send)
        events.register("response-received.s3", self._response_received)
        # botocore sleeps between attempts, and nothing wakes it: it decides, but the pace does the waiting.
        events.unregister("needs-retry.s3", unique_id=_RETRIES)
        decide = register_retry_handler(self._client, _MAX_ATTEMPTS).needs_retry
        events.unregister("needs-retry.s3", unique_id=_RETRIES)
        pace = self.pace

        def needs_retry(**given: Any) -> int | None:
            delay = decide(**given)
            if delay is None:
                return None
            pace.sleep(delay)
            return 0

        events.register("needs-retry.s3", needs_retry)

    def _before_send(
        self, request: AWSPreparedRequest, event_name: str, **_: object
    ) -> AWSResponse | None:
        """Wait for the request's turn and send it, or return None to have botocore send it."""
        if event_name.endswith(".HeadBucket"):
            self._here.looks += 1
            if self._here.looks > _MOST_LOOKS:
                raise WireError(
                    "HeadBucket",
                    "configuration",
                    "Redirect",
                    "the store redirects every request, and not to another region",
                )
        self._here.tag = _tag(request)
        if self.pace.is_hopeless(self._here.tag):
            raise WireError(
                event_name.rpartition(".")[2],
                "stalled",
                "Stalled",
                "the body was given up several times because nothing of it came any more, or next to"
                " nothing",
            )
        context: dict[str, Any] = request.context  # type: ignore[attr-defined]  # newer than the stubs
        self.region = context.get("signing", {}).get("region") or self.region
        self._leave()
        self._here.slot = self.pace.enter(again=context["retries"]["attempt"] > 1)
        scheme = urlsplit(request.url).scheme
        body = request.body if request.body is not None else b""
        # botocore makes a file of `bytes`, which only its own client sends; parts are bytearrays.
        transport = None if self._proxies.get(scheme) else self._transport
        self._here.by_botocore = transport is None or not isinstance(body, (bytes, bytearray))
        if transport is not None and isinstance(body, (bytes, bytearray)):
            return send(transport, request, body)
        self.pace.spend(int(request.headers.get("Content-Length", 0)))
        return None

    def _response_received(
        self,
        response_dict: Mapping[str, Any] | None,
        parsed_response: Mapping[str, Any] | None,
        context: Mapping[str, Any],
        **_: object,
    ) -> None:
        slot: Slot | None = getattr(self._here, "slot", None)
        if slot is None:
            return
        if response_dict is None or parsed_response is None:
            slot.leave()
            return
        status, headers = response_dict["status_code"], response_dict["headers"]
        code = parsed_response.get("Error", {}).get("Code")
        if status in (429, 503) or code in _BUSY:
            slot.busy(_seconds(headers.get("retry-after")))
        elif status < 500:
            slot.good()
        if status >= 300 or not isinstance(response_dict["body"], StreamingBody):
            slot.leave()

    def _leave(self) -> None:
        slot, self._here.slot = getattr(self._here, "slot", None), None
        if slot is not None:
            slot.leave()


class _BotoBody:
    def __init__(
        self, stream: StreamingBody, slot: Slot | None, pace: Pace, tag: str, *, pays: bool
    ) -> None:
        self._stream = stream
        self._slot = slot
        self._pace = pace
        self._tag = tag
        self._pays = pays  # for what it reads, which nobody has paid for yet

    def read_into(self, view: memoryview) -> int:
        try:
            count = int(self._stream.readinto(view))  # type: ignore[arg-type]  # stubs want a file
        # What botocore leaves in urllib3's words, such as a damaged TLS record, is no OSError.
        except (boto.BotoCoreError, HTTPError, OSError) as error:
            if isinstance(error, boto.ReadTimeoutError):
                self._pace.stalled(self._tag)
            raise BodyBroken(clean(str(error))) from error
        except BodyStalled:
            self._pace.stalled(self._tag)
            raise
        if self._pays:
            self._pace.spend(count)
        return count

    def close(self) -> None:
        try:
            self._stream.close()
        finally:
            if self._slot is not None:
                self._slot.leave()


class _Surroundings:
    """What botocore would make its HTTP client with."""

    def __init__(self, *, proxies: Mapping[str, str], verify: str | bool, **_: object) -> None:
        self.proxies = proxies
        self.verify = verify

    def close(self) -> None:
        """Nothing is open."""


def _tag(request: AWSPreparedRequest) -> str:
    """The same for each attempt at the same bytes: what is left of a range keeps its end."""
    wanted = request.headers.get("Range", "")
    text = wanted.decode() if isinstance(wanted, bytes) else str(wanted)
    return f"{request.method} {request.url} {text.rpartition('-')[2]}"


def _seconds(header: str | None) -> float:
    """The seconds of a Retry-After header; 0 for none, or for a date."""
    return float(header) if header is not None and header.isascii() and header.isdigit() else 0.0


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
    body = request.data
    request.context["body-set-aside"] = body
    if not request.context["client_config"].s3["payload_signing_enabled"]:
        request.data = None
    elif isinstance(body, (bytes, bytearray)) and body:
        request.data = BodyReader(body)


def _put_body_back(request: AWSRequest, **_: object) -> None:
    request.data = request.context.pop("body-set-aside")
