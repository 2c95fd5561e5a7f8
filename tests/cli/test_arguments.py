"""What the programs make of arguments and variables that cannot be meant, before the first request."""

from __future__ import annotations

from pathlib import Path

import pytest

from downloader.orders import read_orders
from staging.vocabulary.errors import UsageError
from tests.cli.programs import Programs
from tests.support.checkpoints import tar_of, vendor
from tests.support.s3server import ScriptedS3

URI = "s3://models/laguna-xs/"
ROLE = "arn:aws:iam::111122223333:role/inference-pod-role"
ID = "sha256:" + "0" * 64


@pytest.fixture
def programs(tmp_path: Path, scripted_s3: ScriptedS3) -> Programs:
    scripted_s3.bucket("models")
    (tmp_path / "model.tar").write_bytes(tar_of(vendor(1)))
    return Programs(tmp_path, scripted_s3)


# Pins


@pytest.mark.parametrize("text", ["<checkpoint-id>", "latest", ID[:-1], ID.upper(), ""])
def test_a_pin_that_is_no_id_is_refused_before_anything_is_asked(
    programs: Programs, scripted_s3: ScriptedS3, text: str
) -> None:
    outcome = programs.download(URI, "node", "--expect-id", text, expect=2)
    assert outcome.reference == "id"
    assert "not a checkpoint id" in outcome.error
    assert "pinned" not in outcome.stderr
    assert len(scripted_s3.requests) == 0


def test_verify_says_that_it_looks_at_one_directory(programs: Programs) -> None:
    (programs.directory / "node").mkdir()
    several = programs.download("verify", "node", expect=2, MODEL_EXPECT_ID=f"{ID} {ID}")
    assert several.reference == "arguments"
    assert (
        "MODEL_EXPECT_ID or --expect-id has 2 ids, and this is about one directory" in several.error
    )
    assert programs.download("verify", "node", expect=2, MODEL_EXPECT_ID="x").reference == "id"
    # One on the command line wins.
    chosen = programs.download(
        "verify", "node", "--expect-id", ID, expect=10, MODEL_EXPECT_ID=f"{ID} {ID}"
    )
    assert chosen.reference == "not-published"


def test_verify_after_an_option_is_taken_for_what_it_is(programs: Programs) -> None:
    outcome = programs.download("-q", "verify", "node", expect=2)
    assert outcome.reference == "arguments"
    assert "`model-downloader verify DIR -q`" in outcome.hint
    with pytest.raises(UsageError, match="arguments come in pairs"):
        read_orders(["s3://models/a/", "verify", "s3://models/b/"], [])


# Identity


@pytest.mark.parametrize(
    "command",
    [
        ("adopt", URI),
        ("upload", "model.tar", URI),
        ("show", URI),
        ("ls", "s3://models/"),
        ("verify", URI),
    ],
    ids=lambda command: command[0],
)
def test_no_command_goes_on_as_somebody_else_than_the_pods_role(
    programs: Programs, scripted_s3: ScriptedS3, command: tuple[str, ...]
) -> None:
    """A role without its token: botocore would go on to the node's role, without a word."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        programs.environment.pop(name, None)
    outcome = programs.staging(*command, expect=12, AWS_ROLE_ARN=ROLE)
    assert outcome.reference == "identity-fallback"
    assert ROLE in outcome.error
    assert len(scripted_s3.requests) == 0


def test_a_role_that_is_only_named_is_in_nobodys_way_beside_keys(programs: Programs) -> None:
    programs.staging("upload", "model.tar", URI, AWS_ROLE_ARN=ROLE)
    token = programs.directory / "token"
    token.write_bytes(b"x.e30.z")
    both = programs.staging(
        "show", URI, expect=12, AWS_ROLE_ARN=ROLE, AWS_WEB_IDENTITY_TOKEN_FILE=str(token)
    )
    assert both.reference == "identity-fallback"
    assert "AWS_ACCESS_KEY_ID is set and wins" in both.error
