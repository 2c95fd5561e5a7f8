"""What both programs share: one place that turns errors and signals into words and exit codes.

Results go to stdout, everything else to stderr. With `--json` stdout gets exactly one document, on
failure too. The first signal asks the work to stop and clean up, the second one ends the process at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any, Final

import click

from staging.cli.streams import say, settle_stderr
from staging.vocabulary.errors import Interrupted, StagingError
from staging.vocabulary.redaction import one_line

JSON_SCHEMA: Final = "checkpoint-staging/1"
"""Names the shape of every JSON document that the programs print."""

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Signalled(BaseException):
    """Unwinds the main thread from wherever the signal met it.

    No Exception: the SDK takes those for failures of the connection and repeats the request.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.document: dict[str, Any] = {}


def run(command: click.Command, arguments: Sequence[str] | None, *, name: str) -> int:
    """Run a click command and return the exit code. The one handler of errors of a program."""
    _fill_standard_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        handle_signals()
        return _run(command, given, name=name, as_json=as_json)
    except _Signalled as signalled:
        interrupted = _interruption(signalled)
        _tell(interrupted, as_json=as_json)
        return interrupted.code
    except BrokenPipeError:
        # Whoever read our results has gone; the interpreter must not fail again while flushing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        settle_stderr()


def _run(command: click.Command, given: Sequence[str], *, name: str, as_json: bool) -> int:
    try:
        command.main(list(given), prog_name=name, standalone_mode=False)
    except StagingError as error:
        _tell(error, as_json=as_json)
        return error.code
    except click.exceptions.Exit as error:
        return int(error.exit_code)
    except click.ClickException as error:
        _tell_usage(error, name, as_json=as_json)
        return error.exit_code
    except click.Abort:
        return 130
    except BrokenPipeError:  # no defect
        raise
    except Exception as error:
        unexpected = StagingError(
            f"unexpected {type(error).__name__}: {error}",
            reference="unexpected",
            hint="this is a defect: report it with the lines above",
        )
        say(traceback.format_exc())
        _tell(unexpected, as_json=as_json)
        return unexpected.code
    return 0


def _fill_standard_streams() -> None:
    """Replace standard streams that were closed by ones that lead nowhere.

    Otherwise the next file that is opened takes the descriptor, and messages end up in it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest descriptor that is free: this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for good
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for good


def handle_signals() -> None:
    """Make the first SIGINT, SIGTERM or SIGHUP unwind the main thread, and a second one exit.

    One that whoever started us had ignored stays ignored, as with `nohup`.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def print_json(document: dict[str, Any]) -> None:
    """Print the one JSON document of a command."""
    click.echo(json.dumps({"schema": JSON_SCHEMA, **document}, ensure_ascii=False, indent=1))


def describe(error: StagingError) -> dict[str, Any]:
    """An error as it stands in JSON documents."""
    return {
        "code": error.code,
        "reference": error.reference,
        "side": error.side,
        "message": one_line(error.message),
        "hint": one_line(error.hint) if error.hint is not None else None,
        "notes": _notes(error),
    }


def error_line(error: StagingError) -> str:
    """An error as it stands on stderr; its hint is a line of its own."""
    side = f"{error.side}: " if error.side else ""
    return f"error: {side}{one_line(error.message)} [{error.reference}]"


def _interrupt(number: int, frame: FrameType | None) -> None:
    for again in _SIGNALS:
        if signal.getsignal(again) is not signal.SIG_IGN:
            signal.signal(again, _exit_now)
    raise _Signalled(number)


def _interruption(signalled: _Signalled) -> Interrupted:
    interrupted = Interrupted(
        f"interrupted by {signal.Signals(signalled.number).name}",
        signal_number=signalled.number,
        hint="run the same command again to go on",
    )
    interrupted.document = signalled.document
    for note in _notes(signalled):
        interrupted.add_note(note)
    return interrupted


def _notes(error: BaseException) -> list[str]:
    """What the work that was stopped has left, and how to go on: the last lines that people read."""
    return [one_line(note) for note in getattr(error, "__notes__", ())]


def _exit_now(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


def _tell(error: StagingError, *, as_json: bool) -> None:
    if as_json:
        print_json({**error.document, "error": describe(error)})
    say(error_line(error))
    if error.hint:
        say(f"hint: {one_line(error.hint)}")
    for note in _notes(error):
        say(note)


def _tell_usage(error: click.ClickException, name: str, *, as_json: bool) -> None:
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else name
    message = one_line(error.format_message())
    if as_json:
        print_json(
            {
                "error": {
                    "code": error.exit_code,
                    "reference": "usage",
                    "side": None,
                    "message": message,
                    "hint": f"{path} --help",
                    "notes": [],
                }
            }
        )
    say(f"error: {message} [usage]")
    say(f"hint: `{path} --help` shows the usage")
