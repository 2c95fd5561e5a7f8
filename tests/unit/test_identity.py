"""Who the requests come from: never somebody else without a word, and no credential in any message (I13).

The agents, the instance's metadata service and STS are small servers on the loopback; botocore finds them by
the variables it reads itself.
"""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest

from staging.store.s3 import S3Store
from staging.vocabulary.errors import (
    AccessDenied,
    NoSpace,
    StagingError,
    StoreUnavailable,
    UsageError,
    together,
)
from staging.wire.boto import BotoWire, Connection
from staging.wire.failure import failed
from staging.wire.identity import Principal, principal
from staging.wire.web_identity import Claims, Offered, explained, read_claims
from staging.wire.wire import WireError
from tests.support.s3server import ScriptedS3

ROLE = "arn:aws:iam::111122223333:role/inference-pod-role"
ISSUER = "https://oidc.eks.eu-west-1.amazonaws.com/id/ABCDEF"
SUBJECT = "system:serviceaccount:poolside-models:inference"
KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/canary"
NOW = 1_800_000_000.0
SIGNATURE = "canary-signature"


def token(**claims: Any) -> bytes:
    """A token as the kubelet writes it; nobody verifies its signature here."""
    payload = {"iss": ISSUER, "sub": SUBJECT, "aud": ["sts.amazonaws.com"], "exp": NOW + 3600}

    def part(value: bytes) -> bytes:
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    body = json.dumps({**payload, **claims}).encode()
    return b".".join([part(b'{"alg":"RS256"}'), part(body), part(SIGNATURE.encode())])


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_bytes(token())
    return path


E = TypeVar("E", bound=StagingError)
Answer = Callable[[str, str], tuple[int, str]]


@contextmanager
def answering(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """A server that answers `method path` so; yields its address and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            asked.append(f"{self.command} {self.path} {self.rfile.read(length).decode()}".strip())
            status, text = answer(self.command, self.path)
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_GET  # noqa: N815 - names that the base class calls

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def keys() -> dict[str, str]:
    """Temporary keys as the agents give them."""
    until = datetime.now(UTC) + timedelta(hours=1)
    return {
        "Code": "Success",
        "AccessKeyId": "ASIACANARYCANARYCANA",
        "SecretAccessKey": SECRET,
        "Token": "canary-session",
        "Expiration": until.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def agent(method: str, path: str) -> tuple[int, str]:
    """The agent of Pod Identity."""
    return 200, json.dumps(keys())


def metadata(method: str, path: str) -> tuple[int, str]:
    """The metadata service of an instance."""
    if method == "PUT":
        return 200, "metadata-token"
    if path.endswith("/security-credentials/"):
        return 200, "node-role"
    return 200, json.dumps(keys())


def sts(status: int, code: str, message: str) -> Answer:
    """An STS that refuses."""
    document = (
        '<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>'
        f"<Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"
    )
    return lambda method, path: (status, document)


def who(
    monkeypatch: pytest.MonkeyPatch,
    environment: Mapping[str, str],
    connection: Connection | None = None,
) -> Principal:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return principal(connection or Connection(), Offered.of(os.environ))


def refused(
    monkeypatch: pytest.MonkeyPatch,
    environment: Mapping[str, str],
    connection: Connection | None = None,
) -> AccessDenied:
    with pytest.raises(AccessDenied) as caught:
        who(monkeypatch, environment, connection)
    return presentable(caught.value)


def presentable(error: E) -> E:
    shown = " ".join([error.message, str(error.hint), *getattr(error, "__notes__", ())])
    assert shown.isprintable()
    assert "canary" not in shown.casefold()
    assert error.hint
    assert not error.message.endswith(".")
    return error


STATIC = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}


# What was found


def test_keys_in_the_environment_are_shown_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    found = who(monkeypatch, STATIC)
    assert found == Principal("static-key", "access key AKIA...MPLE")


def test_a_short_key_is_not_shown_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    found = who(monkeypatch, {**STATIC, "AWS_ACCESS_KEY_ID": "minio-admin"})
    assert found.text == "access key mi..."


def test_a_web_identity_is_its_role_and_nobody_is_asked(
    monkeypatch: pytest.MonkeyPatch, token_file: Path
) -> None:
    with answering(sts(403, "AccessDenied", "no")) as (url, asked):
        found = who(
            monkeypatch,
            {
                "AWS_ROLE_ARN": ROLE,
                "AWS_WEB_IDENTITY_TOKEN_FILE": str(token_file),
                "AWS_ENDPOINT_URL_STS": url,
                "KUBERNETES_SERVICE_HOST": "10.0.0.1",
            },
        )
        assert asked == []
    assert found == Principal("web-identity", ROLE)


def test_pod_identity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("canary-agent-token")
    with answering(agent) as (url, asked):
        found = who(
            monkeypatch,
            {
                "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{url}/v1/credentials",
                "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(tmp_path / "token"),
            },
        )
        assert len(asked) == 1
    assert found == Principal("container", "a container role (Pod Identity, ECS)")


def test_a_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    path.write_text(f"[site]\naws_access_key_id={KEY}\naws_secret_access_key={SECRET}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    chosen = who(monkeypatch, {}, Connection(profile="site"))
    assert chosen == Principal("profile", "profile site (the credentials file)")
    assert who(monkeypatch, {"AWS_PROFILE": "site"}) == chosen


def test_an_instances_role_outside_of_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    with answering(metadata) as (url, _), answering(sts(403, "AccessDenied", "no")) as (other, _):
        found = who(
            monkeypatch,
            {"AWS_EC2_METADATA_SERVICE_ENDPOINT": url, "AWS_ENDPOINT_URL_STS": other},
        )
    assert found == Principal("instance-role", "the instance's role")


def test_the_nodes_role_in_a_pod_that_has_none_is_named_and_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    arn = "arn:aws:sts::111122223333:assumed-role/node-role/i-0123"
    answer = (
        '<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
        f"<GetCallerIdentityResult><Arn>{arn}</Arn><UserId>x</UserId><Account>111122223333</Account>"
        "</GetCallerIdentityResult></GetCallerIdentityResponse>"
    )
    with (
        answering(metadata) as (url, _),
        answering(lambda method, path: (200, answer)) as (other, _),
    ):
        found = who(
            monkeypatch,
            {
                "AWS_EC2_METADATA_SERVICE_ENDPOINT": url,
                "AWS_ENDPOINT_URL_STS": other,
                "KUBERNETES_SERVICE_HOST": "10.0.0.1",
            },
        )
    assert (found.kind, found.text) == ("instance-role", arn)
    assert found.warning is not None
    assert arn in found.warning
    assert "annotate its service account" in found.warning


def test_no_credentials_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    error = refused(monkeypatch, {})
    assert (error.code, error.reference) == (12, "credentials")
    assert "annotate the service account" in str(error.hint)


def test_half_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    error = refused(monkeypatch, {"AWS_ACCESS_KEY_ID": KEY})
    assert (error.code, error.reference) == (12, "credentials")
    assert "AWS_SECRET_ACCESS_KEY" in error.message


def test_a_profile_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError) as caught:
        who(monkeypatch, {}, Connection(profile="nobody"))
    assert caught.value.reference == "connection-settings"


def test_an_agent_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
    with answering(lambda method, path: (500, "out of order")) as (url, _):
        error = refused(monkeypatch, {"AWS_CONTAINER_CREDENTIALS_FULL_URI": url})
    assert (error.code, error.reference) == (12, "credentials")
    assert "eks-pod-identity-agent" in str(error.hint)


def test_an_agents_token_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    error = refused(
        monkeypatch,
        {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:9/",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(tmp_path / "nothing"),
        },
    )
    assert error.reference == "credentials"
    assert str(tmp_path / "nothing") in error.message


# Somebody else than was meant


def test_a_role_without_a_token_is_not_swapped_for_the_nodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    with answering(metadata) as (url, asked):
        error = refused(
            monkeypatch, {"AWS_ROLE_ARN": ROLE, "AWS_EC2_METADATA_SERVICE_ENDPOINT": url}
        )
        assert asked == []
        # This is what would have happened without a word.
        assert principal(Connection()).kind == "instance-role"
    assert (error.code, error.reference) == (12, "identity-fallback")
    assert ROLE in error.message
    assert "AWS_WEB_IDENTITY_TOKEN_FILE" in error.message
    assert "annotate" in str(error.hint)


def test_static_keys_do_not_win_over_a_web_identity_without_a_word(
    monkeypatch: pytest.MonkeyPatch, token_file: Path
) -> None:
    irsa = {"AWS_ROLE_ARN": ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": str(token_file)}
    error = refused(monkeypatch, {**STATIC, **irsa})
    assert error.reference == "identity-fallback"
    assert "AWS_ACCESS_KEY_ID is set and wins" in error.message
    assert ROLE in error.message
    assert KEY not in error.message


@pytest.mark.parametrize("chosen", [True, False])
def test_a_profile_has_to_be_chosen_to_win(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chosen: bool
) -> None:
    config = tmp_path / "config"
    config.write_text(
        "[profile site]\nrole_arn = arn:aws:iam::1:role/other\nsource_profile = keys\n"
        f"[profile keys]\naws_access_key_id={KEY}\naws_secret_access_key={SECRET}\n"
    )
    path = tmp_path / "token"
    path.write_bytes(token())
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    irsa = {"AWS_ROLE_ARN": ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": str(path)}
    if chosen:
        found = who(monkeypatch, irsa, Connection(profile="site"))
        assert found == Principal("profile", "profile site (a role assumed by a profile)")
    else:
        error = refused(monkeypatch, {**irsa, "AWS_PROFILE": "site"})
        assert error.reference == "identity-fallback"
        assert "the profile site wins" in error.message


def test_static_keys_do_not_win_over_pod_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(agent) as (url, asked):
        error = refused(monkeypatch, {**STATIC, "AWS_CONTAINER_CREDENTIALS_FULL_URI": url})
        assert asked == []
    assert error.reference == "identity-fallback"
    assert "Pod Identity" in error.message


def test_empty_variables_are_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = {"AWS_ROLE_ARN": "", "AWS_WEB_IDENTITY_TOKEN_FILE": ""}
    assert who(monkeypatch, {**STATIC, **empty}).kind == "static-key"
    assert Offered.of({**empty, "AWS_ACCESS_KEY_ID": "", "AWS_PROFILE": ""}) == Offered()


# The token


def test_the_claims_of_a_token(token_file: Path) -> None:
    claims = read_claims(str(token_file))
    assert claims == Claims(ISSUER, SUBJECT, ("sts.amazonaws.com",), NOW + 3600)
    assert claims.account == ("poolside-models", "inference")
    token_file.write_bytes(token(aud="x", sub="somebody", exp="soon") + b"\n")
    assert read_claims(str(token_file)) == Claims(ISSUER, "somebody", ("x",), None)
    assert read_claims(str(token_file)).account is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"one.two",
        b"a.%%%.c",
        b"a." + base64.urlsafe_b64encode(b"[1]") + b".c",
        b"a." + base64.urlsafe_b64encode(b"[" * 20_000) + b".c",
        token() + b"." * 70_000,
        b"\xff\xfe.\0.\0",
    ],
)
def test_a_file_that_holds_no_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "token"
    path.write_bytes(data)
    error = refused(monkeypatch, {"AWS_ROLE_ARN": ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": str(path)})
    assert (error.code, error.reference) == (12, "web-identity-token")
    assert ("is empty" if not data.strip() else "holds no web identity token") in error.message
    assert repr(str(path)) in error.message


def test_a_token_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = str(tmp_path / "token")
    error = refused(monkeypatch, {"AWS_ROLE_ARN": ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": missing})
    assert error.reference == "web-identity-token"
    assert "delete the pod" in str(error.hint)


def test_a_token_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    error = refused(
        monkeypatch, {"AWS_ROLE_ARN": ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path)}
    )
    assert error.reference == "web-identity-token"
    assert "cannot be read by user" in error.message
    assert "fsGroup" in str(error.hint)


def test_a_token_without_a_role(monkeypatch: pytest.MonkeyPatch, token_file: Path) -> None:
    error = refused(monkeypatch, {"AWS_WEB_IDENTITY_TOKEN_FILE": str(token_file)})
    assert error.reference == "web-identity-token"
    assert "no AWS_ROLE_ARN" in error.message


def test_a_token_that_vanished_is_about_credentials() -> None:
    error = failed("GetObject", FileNotFoundError(2, "No such file or directory", "/run/token"))
    assert (error.cause, error.code) == ("credentials", "FileNotFoundError")
    assert error.message == "/run/token: No such file or directory"


# What STS says


def asked_of(
    monkeypatch: pytest.MonkeyPatch, answer: Answer, token_file: Path
) -> tuple[StagingError, Offered]:
    """The error of a real request to S3 whose credentials STS does not give."""
    monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token_file))
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    with answering(answer) as (url, asked), ScriptedS3(buckets=["models"]) as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
        wire = BotoWire(Connection(endpoint_url=s3.endpoint_url))
        try:
            with pytest.raises(StagingError) as caught:
                S3Store(wire, "models").list_level("laguna-xs/")
        finally:
            wire.close()
        assert "AssumeRoleWithWebIdentity" in asked[0]
        assert len(s3.requests) == 0
    return presentable(caught.value), Offered.of(os.environ)


NOT_AUTHORIZED = "Not authorized to perform sts:AssumeRoleWithWebIdentity"


def test_a_wrong_namespace_is_named(monkeypatch: pytest.MonkeyPatch, token_file: Path) -> None:
    subject = "system:serviceaccount:default:inference"
    token_file.write_bytes(token(sub=subject))
    error, offered = asked_of(monkeypatch, sts(403, "AccessDenied", NOT_AUTHORIZED), token_file)
    assert error.reference == "credentials"
    better = presentable(explained(error, offered, now=NOW))
    assert (better.code, better.reference) == (12, "trust-policy")
    assert f"must allow sub {subject} with aud sts.amazonaws.com" in better.message
    assert ROLE in better.message
    assert "'inference' in the namespace 'default'" in str(better.hint)
    assert SUBJECT in str(better.hint)
    assert "--role-name inference-pod-role" in str(better.hint)
    [note] = better.__notes__
    statement = json.loads(note[note.index("{") :])
    oidc = ISSUER.removeprefix("https://")
    assert statement == {
        "Effect": "Allow",
        "Principal": {"Federated": f"arn:aws:iam::111122223333:oidc-provider/{oidc}"},
        "Action": "sts:AssumeRoleWithWebIdentity",
        "Condition": {"StringEquals": {f"{oidc}:aud": "sts.amazonaws.com", f"{oidc}:sub": subject}},
    }
    # The kubelet may write another one at any time.
    token_file.write_bytes(token())
    again = presentable(explained(error, offered, now=NOW))
    assert SUBJECT in again.message
    assert "namespace 'default'" not in str(again.hint)


@pytest.mark.parametrize(
    ("status", "code", "message", "claims", "reference", "said", "hint"),
    [
        (400, "ExpiredTokenException", "Token expired: current date must be before", {},
         "web-identity-token", "expired", "delete the pod"),
        (403, "AccessDenied", NOT_AUTHORIZED, {"exp": NOW - 600},
         "web-identity-token", "expired 10 minutes ago", "the node's clock"),
        (403, "AccessDenied", NOT_AUTHORIZED, {"aud": ["vault"]},
         "web-identity-token", "is meant for vault, not for STS", "audience sts.amazonaws.com"),
        (400, "InvalidIdentityToken", "No OpenIDConnect provider found in your account for x", {},
         "trust-policy", "identity provider https://oidc.eks", "associate-iam-oidc-provider"),
        (400, "InvalidIdentityToken", "Incorrect token audience", {"aud": "sts.example.com"},
         "web-identity-token", "is meant for sts.example.com", "audience"),
        (400, "ValidationError", "Request ARN is invalid", {},
         "trust-policy", "Request ARN is invalid", "annotation"),
    ],
)  # fmt: skip
def test_what_sts_did_not_like(
    monkeypatch: pytest.MonkeyPatch,
    token_file: Path,
    status: int,
    code: str,
    message: str,
    claims: dict[str, Any],
    reference: str,
    said: str,
    hint: str,
) -> None:
    token_file.write_bytes(token(**claims))
    error, offered = asked_of(monkeypatch, sts(status, code, message), token_file)
    better = presentable(explained(error, offered, now=NOW))
    assert (better.code, better.reference) == (12, reference)
    assert said in better.message
    assert hint in str(better.hint)


def test_an_sts_that_is_busy_stays_that(monkeypatch: pytest.MonkeyPatch, token_file: Path) -> None:
    error, offered = asked_of(monkeypatch, sts(503, "ServiceUnavailable", "later"), token_file)
    assert error.code == 13
    assert explained(error, offered, now=NOW) is error


def refusal_of_sts(
    code: str = "AccessDenied", message: str = "no", *, cause: Any = "credentials"
) -> StagingError:
    error = AccessDenied("no credentials", reference="credentials", side="store")
    status = None if cause == "connection" else 403
    error.__cause__ = WireError("AssumeRoleWithWebIdentity", cause, code, message, status)
    return error


def test_an_sts_that_cannot_be_reached(token_file: Path) -> None:
    wire = WireError(
        "GetObject",
        "connection",
        "ConnectTimeoutError",
        'Connect timeout on endpoint URL: "https://sts.eu-west-1.amazonaws.com/"',
    )
    error = StoreUnavailable("GetObject s3://b/k", reference="connection", side="store")
    error.__cause__ = wire
    offered = Offered(role_arn=ROLE, token_file=str(token_file))
    better = presentable(explained(error, offered, now=NOW))
    assert (type(better), better.reference) == (StoreUnavailable, "sts-connection")
    assert "VPC endpoint for STS" in str(better.hint)
    wire.message = 'Connect timeout on endpoint URL: "https://s3.eu-west-1.amazonaws.com/"'
    assert explained(error, offered, now=NOW) is error


@pytest.mark.parametrize(
    ("url", "own", "is_sts"),
    [
        ("https://sts.amazonaws.com/", None, True),
        ("https://sts.cn-north-1.amazonaws.com.cn/", None, True),
        ("https://sts-fips.us-east-1.amazonaws.com/", None, True),
        ("https://sts.eu-west-1.api.aws/", None, True),
        ("https://vpce-0a1b-2c3d.sts.eu-west-1.vpce.amazonaws.com/", None, True),
        ("https://vpce-0a1b-2c3d-eu-west-1a.sts.eu-west-1.vpce.amazonaws.com/", None, True),
        ("https://vpce-0a1b-2c3d.s3.eu-west-1.vpce.amazonaws.com/", None, False),
        ("https://sts.internal.example:8443/", "https://sts.internal.example:8443", True),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/", True),
        ("http://127.0.0.1:80001/", "http://127.0.0.1:8000/", False),
        ("https://s3.eu-west-1.amazonaws.com/", "https://sts.internal.example", False),
        ("https://sts.internal.example/", None, False),
    ],
)
def test_where_sts_is(token_file: Path, url: str, own: str | None, is_sts: bool) -> None:
    error = StoreUnavailable("GetObject s3://b/k", reference="connection", side="store")
    said = f'Could not connect to the endpoint URL: "{url}"'
    error.__cause__ = WireError("GetObject", "connection", "EndpointConnectionError", said)
    variables = {"AWS_ROLE_ARN": ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": str(token_file)}
    if own is not None:
        variables["AWS_ENDPOINT_URL_STS"] = own
    found = explained(error, Offered.of(variables), now=NOW)
    assert (found.reference == "sts-connection") is is_sts
    assert (found is error) is not is_sts
    if is_sts:
        assert ("AWS_ENDPOINT_URL_STS" in str(found.hint)) is (own is not None)


def test_what_has_nothing_to_do_with_sts_stays(token_file: Path) -> None:
    offered = Offered(role_arn=ROLE, token_file=str(token_file))
    plain = NoSpace("full", reference="no-space")
    denied = AccessDenied("no", reference="denied")
    denied.__cause__ = WireError("GetObject", "answer", "AccessDenied", "no", 403)
    for error in (plain, denied):
        assert explained(error, offered, now=NOW) is error
    refusal = refusal_of_sts()
    assert explained(refusal, Offered(), now=NOW) is refusal


def test_one_of_several_findings_is_explained_and_the_others_stay(token_file: Path) -> None:
    offered = Offered(role_arn=ROLE, token_file=str(token_file))
    whole = together([NoSpace("full", reference="no-space"), refusal_of_sts()])
    better = explained(whole, offered, now=NOW)
    references = [finding["reference"] for finding in better.document["findings"]]
    assert references == ["trust-policy", "no-space"]
    assert any("full [no-space]" in note for note in better.__notes__)
