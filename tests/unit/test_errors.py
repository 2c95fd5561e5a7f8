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
from staging.vocabulary.errors import Interrupted, StagingError

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
