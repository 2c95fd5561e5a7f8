"""What both programs share: one place that turns errors and signals into words and exit codes.

Results go to stdout, everything else to stderr. With `--json` stdout gets exactly one document, on
failure too. The first signal asks the work to stop and clean up, the second one ends the process at once.
How a failure is worded is an `Ending`, so that a program that nobody watches can say it its own way.
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
from staging.vocabulary.errors import Interrupted, StagingError, UsageError
from staging.vocabulary.redaction import one_line

JSON_SCHEMA: Final = "checkpoint-staging/1"
"""Names the shape of every JSON document that the programs print."""

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signalled(BaseException):
    """Unwinds the main thread from wherever the signal met it.

    No Exception: the SDK takes those for failures of the connection and repeats the request.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.document: dict[str, Any] = {}


class Ending:
    """How a program tells that it failed: a line and a hint on stderr, and the document on stdout."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def tell(self, error: StagingError) -> None:
        """Tell of the error that ends the program."""
        if self.as_json:
            try:
                print_json({**error.document, "error": describe(error)})
            except BrokenPipeError:  # nobody wants to know
                raise
            except OSError:  # people are told all the same
                _give_stdout_up()
        self.say(error)

    def say(self, error: StagingError) -> None:
        """Tell people, on stderr."""
        say(error_line(error))
        if error.hint:
            say(f"hint: {one_line(error.hint)}")
        for note in notes(error):
            say(note)

    def trace(self, lines: str) -> None:
        """Show where a defect was met."""
        say(lines)


def run(
    command: click.Command,
    arguments: Sequence[str] | None,
    *,
    name: str,
    ending: Ending | None = None,
    context: object = None,
) -> int:
    """Run a click command and return the exit code. The one handler of errors of a program.

    `context` is what the command gets by `click.pass_obj`.
    """
    fill_standard_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if ending is None:
        ending = Ending(as_json="--json" in given)
    try:
        handle_signals()
        return _run(command, given, name=name, ending=ending, context=context)
    except Signalled as signalled:
        interrupted = interruption(signalled)
        ending.tell(interrupted)
        return interrupted.code
    except BrokenPipeError:  # whoever read our results has gone
        _give_stdout_up()
        return 1
    finally:
        settle_stderr()


def _run(
    command: click.Command, given: Sequence[str], *, name: str, ending: Ending, context: object
) -> int:
    try:
        command.main(list(given), prog_name=name, standalone_mode=False, obj=context)
    except StagingError as error:
        ending.tell(error)
        return error.code
    except click.exceptions.Exit as error:
        return int(error.exit_code)
    except click.ClickException as error:
        misused = _misuse(error, name)
        ending.tell(misused)
        return misused.code
    except click.Abort:
        return 130
    except BrokenPipeError:  # no defect
        raise
    except OSError as error:
        if not _is_stdout_lost():
            return _defect(error, ending)
        _give_stdout_up()
        lost = StagingError(
            f"the result cannot be written to stdout: {os.strerror(error.errno or 0)}",
            reference="output",
            hint="what was asked for is done; make room where stdout goes, then run again to see it",
            side="local",
        )
        ending.tell(lost)
        return lost.code
    except Exception as error:
        return _defect(error, ending)
    return 0


def _defect(error: Exception, ending: Ending) -> int:
    """Tell of an exception that nobody expected. Returns the exit code."""
    unexpected = StagingError(
        f"unexpected {type(error).__name__}: {error}",
        reference="unexpected",
        hint="this is a defect: report it with the lines above",
    )
    ending.trace("".join(traceback.format_exception(error)))
    ending.tell(unexpected)
    return unexpected.code


def _is_stdout_lost() -> bool:
    """Whether what was printed cannot be written: a full disk, a terminal that has gone."""
    try:
        sys.stdout.flush()
    except OSError:
        return True
    return False


def _give_stdout_up() -> None:
    """Lead stdout nowhere: the interpreter must not fail again while it flushes at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def fill_standard_streams() -> None:
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
            signal.signal(number, interrupt)


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
        "notes": notes(error),
    }


def error_line(error: StagingError) -> str:
    """An error as it stands on stderr; its hint is a line of its own."""
    side = f"{error.side}: " if error.side else ""
    return f"error: {side}{one_line(error.message)} [{error.reference}]"


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a signal that asks the program to end, or the alarm of a deadline: the first one."""
    signal.setitimer(
        signal.ITIMER_REAL, 0
    )  # a deadline that passes from here on has nothing to end
    for again in _SIGNALS:
        if signal.getsignal(again) is not signal.SIG_IGN:
            signal.signal(again, _exit_now)
    raise Signalled(number)


def interruption(signalled: Signalled) -> Interrupted:
    """The error that says that a signal ended the work."""
    interrupted = Interrupted(
        f"interrupted by {signal.Signals(signalled.number).name}",
        signal_number=signalled.number,
        hint="run the same command again to go on",
    )
    interrupted.document = signalled.document
    for note in notes(signalled):
        interrupted.add_note(note)
    return interrupted


def notes(error: BaseException) -> list[str]:
    """The last lines that people read: further findings, what was left behind, how to go on."""
    return [one_line(note) for note in getattr(error, "__notes__", ())]


def _exit_now(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


def _misuse(error: click.ClickException, name: str) -> UsageError:
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else name
    return UsageError(
        one_line(error.format_message()),
        reference="usage",
        hint=f"`{path} --help` shows the usage",
    )
