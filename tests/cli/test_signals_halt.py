"""The end after a signal and at a deadline, whatever hangs (I5, I6)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from downloader.halt import Halt
from tests.cli.programs import DOWNLOADER, TIMEOUT, Programs
from tests.support.checkpoints import manifest_of, read_tree, vendor
from tests.support.s3server import Bucket, Fault, Hold, Request, ScriptedS3

FILES = vendor(1, 20 * 1024 * 1024)
URI = "s3://models/laguna-xs/"


@pytest.fixture
def handled() -> Iterator[None]:
    """A main thread that goes on as if nothing was told."""
    before = {
        number: signal.signal(number, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Ends:
    """What a halt did, in order."""

    def __init__(self) -> None:
        self.done: list[str | int] = []
        self.left = threading.Event()

    def stop(self) -> None:
        self.done.append("stop")

    def farewell(self, number: int) -> int:
        self.done.append(f"farewell {number}")
        return 77

    def leave(self, code: int) -> None:
        self.done.append(code)
        self.left.set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGALRM])
def test_a_main_thread_that_hangs_is_not_waited_for(handled: None, number: signal.Signals) -> None:
    ends = Ends()
    with Halt(ends.stop, ends.farewell, grace=0.05, leave=ends.leave):
        os.kill(os.getpid(), number)
        assert ends.left.wait(TIMEOUT)
    assert ends.done == ["stop", f"farewell {number}", 77]


def test_a_second_signal_is_not_kept_waiting(handled: None) -> None:
    ends = Ends()
    with Halt(ends.stop, ends.farewell, grace=3600, leave=ends.leave):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert ends.left.wait(TIMEOUT)
    assert ends.done == ["stop", 130]


def test_who_ends_in_time_says_the_last_lines_itself(handled: None) -> None:
    ends = Ends()
    with Halt(ends.stop, ends.farewell, grace=3600, leave=ends.leave) as halt:
        os.kill(os.getpid(), signal.SIGTERM)
        while not ends.done:
            threading.Event().wait(0.01)
        halt.leave_if_told(143)
    assert ends.done == ["stop", 143]


def test_other_signals_end_nothing(handled: None) -> None:
    ends = Ends()
    with Halt(ends.stop, ends.farewell, grace=0.0, leave=ends.leave) as halt:
        os.kill(os.getpid(), signal.SIGUSR1)
        halt.leave_if_told(0)
    assert ends.done == []
    assert signal.set_wakeup_fd(-1) == -1


HANGING = """
import ctypes, signal, sys
from downloader.ending import PodEnding
from downloader.halt import Halt
from downloader.log import Log
from staging.cli.program import Signalled, interruption

ending = PodEnding(Log(sys.argv[1]), as_json=True, termination_log="termination-log")
signal.signal(signal.SIGTERM, lambda *_: None)  # should it come before the thread hangs
with Halt(lambda: None, lambda n: ending.tell_without_waiting(interruption(Signalled(n))), grace=0.2):
    print("hanging", file=sys.stderr, flush=True)
    mutex, libc = ctypes.create_string_buffer(256), ctypes.CDLL(None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)  # for ever, and no signal ends it
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_last_lines_are_said_when_the_main_thread_hangs_in_the_kernel(
    tmp_path: Path, form: str
) -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", HANGING, form],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "hanging\n"
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 143
    assert json.loads(stdout)["error"]["reference"] == "interrupted"
    if form == "json":
        assert json.loads(stderr)["exit"] == 143
    else:
        assert stderr.startswith("ERROR exit=143 interrupted ")
    message = (tmp_path / "termination-log").read_text()
    assert message.startswith("ERROR exit=143 interrupted ")


@pytest.fixture
def bucket(scripted_s3: ScriptedS3) -> Bucket:
    bucket = scripted_s3.bucket("models")
    for path, data in FILES.items():
        bucket.put(f"laguna-xs/{path}", data)
    bucket.put("laguna-xs/.checkpoint/manifest.json", manifest_of(FILES).encode())
    return bucket


@pytest.fixture
def programs(tmp_path: Path, scripted_s3: ScriptedS3, bucket: Bucket) -> Programs:
    return Programs(tmp_path, scripted_s3)


def hold_weights(scripted_s3: ScriptedS3) -> Hold:
    """Hold what is asked for beyond the headers of the weights."""
    held = Hold()

    def is_content(request: Request) -> bool:
        return request.range is not None and len(request.range) > len("bytes=0-1048575")

    key = "laguna-xs/model.safetensors"
    scripted_s3.script(Fault("GetObject", held, occurrence=None, key=key, where=is_content))
    return held


def recorded(node: Path) -> dict[str, object]:
    entry: dict[str, object] = json.loads((node / ".checkpoint/attempts.json").read_bytes())[
        "attempts"
    ][-1]
    return entry


def test_a_store_that_never_answers_does_not_hold_up_the_end(
    programs: Programs, scripted_s3: ScriptedS3
) -> None:
    held = hold_weights(scripted_s3)  # never released
    command = [*DOWNLOADER, URI, "node", "--termination-log", "message"]
    with programs.started(command) as running:
        assert held.arrived.wait(TIMEOUT)
        running.signal(signal.SIGTERM)
        outcome = running.outcome(143)
    assert outcome.reference == "interrupted"
    assert "verified" in outcome.error
    assert "SIGTERM" in (programs.directory / "message").read_text()
    # The main thread said so itself: it got to its records, for no request was waited for.
    assert recorded(programs.directory / "node")["exit"] == 143
    scripted_s3.clear_script()
    again = programs.download(URI, "node")
    assert "attempt 2; the previous one ended with exit 143 interrupted" in again.stderr
    assert read_tree(programs.directory / "node") == FILES


def test_a_deadline_ends_a_run_as_stalled_and_says_how_far_it_came(
    programs: Programs, scripted_s3: ScriptedS3
) -> None:
    hold_weights(scripted_s3)  # never released
    command = ["--deadline", "2s", "--json"]
    outcome = programs.download(URI, "node", *command, expect=18)
    assert outcome.document["error"]["reference"] == "deadline"
    assert "deadline of 2 s" in outcome.error
    assert "verified" in outcome.error
    assert recorded(programs.directory / "node")["exit"] == 18
    scripted_s3.clear_script()
    programs.download(URI, "node", MODEL_DEADLINE="1h30m")
    assert read_tree(programs.directory / "node") == FILES


def test_a_deadline_before_the_first_answer(programs: Programs, scripted_s3: ScriptedS3) -> None:
    scripted_s3.hold(None)
    outcome = programs.download(URI, "node", "--deadline", "1s", expect=18)
    assert outcome.reference == "deadline"
    assert "nothing was downloaded" in outcome.error
    assert not (programs.directory / "node").exists()


@pytest.mark.parametrize("text", ["", "30", "0s", "1s1h", "-1s", "1.5h", "x", "99999d"])
def test_a_deadline_is_a_time_span(programs: Programs, text: str) -> None:
    outcome = programs.download(URI, "node", "--deadline", text, expect=2)
    assert outcome.reference == "usage"
    assert "--deadline" in outcome.error
