"""Errors: every class ends a program with its documented code, and codes never change their meaning."""

from __future__ import annotations

import importlib
import pkgutil
import re
import signal

import pytest

import staging
from staging.store.store import AlreadyExists, Changed
from staging.vocabulary import errors
from staging.vocabulary.errors import (
    GRAVITY,
    AccessDenied,
    Conflict,
    IntegrityError,
    Interrupted,
    NoSpace,
    NotFound,
    StagingError,
    Stalled,
    StoreUnavailable,
    UsageError,
    by_gravity,
    together,
)

CODES = {
    "StagingError": 1,
    "UsageError": 2,
    "NotFound": 10,
    "IntegrityError": 11,
    "AccessDenied": 12,
    "StoreUnavailable": 13,
    "NoSpace": 14,
    "Conflict": 15,
    "MalformedInput": 16,
    "LayoutInvalid": 17,
    "Stalled": 18,
}


def subclasses(kind: type[StagingError]) -> set[type[StagingError]]:
    return {kind}.union(*(subclasses(below) for below in kind.__subclasses__()))


def all_errors() -> set[type[StagingError]]:
    """Every error class of the library, wherever it is defined."""
    for module in pkgutil.walk_packages(staging.__path__, "staging."):
        importlib.import_module(module.name)
    return {kind for kind in subclasses(StagingError) if kind.__module__.startswith("staging.")}


def test_every_error_class_has_its_documented_code() -> None:
    for kind in all_errors() - {Interrupted}:
        kept = {CODES[base.__name__] for base in kind.__mro__ if base.__name__ in CODES} - {1}
        assert kept <= {kind.exit_code}, kind
        if kind.__module__ == errors.__name__:
            assert kind("m", reference="r").code == CODES[kind.__name__]
    assert CODES.keys() <= {kind.__name__ for kind in all_errors()}


def test_an_error_class_of_its_own_code_is_one_of_the_documented() -> None:
    for kind in all_errors() - {Interrupted}:
        assert kind.exit_code in CODES.values(), kind


def test_the_table_in_the_module_says_the_same() -> None:
    rows = re.findall(r"^ +(?:\+-- )?(\w+) +(\d+) {3}", errors.__doc__ or "", re.MULTILINE)
    assert {name: int(code) for name, code in rows} == CODES


def test_store_errors_are_special_cases() -> None:
    assert AlreadyExists("m", reference="exists").code == 15
    assert Changed("m", reference="object-changed").code == 11


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_a_program_as_shells_do(number: int, code: int) -> None:
    error = Interrupted("stopped", signal_number=number)
    assert error.code == code
    assert error.reference == "interrupted"


def test_an_error_carries_what_an_operator_and_a_script_need() -> None:
    error = errors.NotFound("no such thing", reference="thing", hint="look", side="store")
    assert str(error) == error.message == "no such thing"
    assert (error.reference, error.hint, error.side) == ("thing", "look", "store")
    error.document["findings"] = [1]
    assert errors.NotFound("another", reference="thing").document == {}


# Several at once


def test_every_code_has_its_gravity() -> None:
    assert sorted(GRAVITY) == sorted(CODES.values())


def test_what_running_again_mends_is_told_last() -> None:
    """Exit 13 and 18 say that running again as it is helps: not beside anything else."""
    assert set(GRAVITY[-2:]) == {13, 18}
    found = [
        StoreUnavailable("busy", reference="store-busy"),
        Stalled("slow", reference="stalled"),
        NoSpace("full", reference="no-space"),
        Conflict("theirs", reference="foreign-file"),
        IntegrityError("other bytes", reference="object-size"),
        NotFound("gone", reference="prefix-empty"),
        AccessDenied("no", reference="denied"),
        UsageError("what", reference="usage"),
        StagingError("odd", reference="local-io"),
        Interrupted("stopped"),
    ]
    codes = [130, 2, 12, 10, 11, 15, 14, 1, 18, 13]
    assert [error.code for error in by_gravity(found)] == codes
    assert [error.code for error in by_gravity(found[::-1])] == codes
    assert together(found).code == 130


def test_several_errors_are_one_that_holds_them_all() -> None:
    disk = NoSpace("the disk is full", reference="no-space", hint="a larger one", side="local")
    disk.add_note("how to find out")
    role = AccessDenied("not allowed", reference="denied", hint="change the role", side="store")
    role.add_note("the missing statement: {}")
    role.document["checks"] = [1]
    cause = KeyError("x")
    role.__cause__ = cause
    whole = together([disk, role])
    assert type(whole) is AccessDenied
    assert (whole.code, whole.reference, whole.message) == (12, "denied", "not allowed")
    assert (whole.hint, whole.side, str(whole)) == ("change the role", "store", "not allowed")
    assert whole.__cause__ is cause
    assert whole.__notes__ == [
        "the missing statement: {}",
        "also exit 14: local: the disk is full [no-space]; hint: a larger one; how to find out",
    ]
    assert whole.document == {
        "checks": [1],
        "findings": [
            {
                "code": 12,
                "reference": "denied",
                "side": "store",
                "message": "not allowed",
                "hint": "change the role",
            },
            {
                "code": 14,
                "reference": "no-space",
                "side": "local",
                "message": "the disk is full",
                "hint": "a larger one",
            },
        ],
    }
    # The errors themselves stay as they were.
    assert role.document == {"checks": [1]}
    assert len(role.__notes__) == 1
    assert len(disk.__notes__) == 1


def test_one_error_stays_as_it_is() -> None:
    error = Changed("m", reference="object-changed")
    assert together([error]) is error
    assert together([error, Changed("m", reference="object-changed")]) is error
    with pytest.raises(ValueError, match="no error"):
        together([])


def test_subclasses_and_interruptions_keep_what_they_are() -> None:
    stopped = Interrupted("stopped", signal_number=signal.SIGTERM)
    whole = together([AlreadyExists("m", reference="exists"), stopped])
    assert isinstance(whole, Interrupted)
    assert (whole.code, whole.signal_number) == (143, signal.SIGTERM)
    first = AlreadyExists("m", reference="exists")
    assert type(together([first, NoSpace("n", reference="no-space")])) is AlreadyExists


def test_notes_are_bounded_and_findings_are_not() -> None:
    many = [NotFound(f"file {number}", reference="object") for number in range(100)]
    whole = together(many)
    assert len(whole.__notes__) == 21
    assert whole.__notes__[-1] == "and 79 more"
    assert len(whole.document["findings"]) == 100


def test_findings_show_no_signature() -> None:
    url = "https://h/x?X-Amz-Signature=secret"
    whole = together([NotFound(url, reference="a"), NoSpace(url, reference="b", hint=url)])
    assert "secret" not in str(whole.document)
    assert "secret" not in str(whole.__notes__)
