"""The journal of rollouts: durable, of one run, and held by one process at a time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmsr_ray.data.construction.journal import NONE_YET, Journal
from mmsr_ray.data.schema import DataError

SETTINGS = {"model": {"path": "a"}, "run": {"seed": 0}}

WRITER = f"""
import sys, time
from pathlib import Path
from mmsr_ray.data.construction.journal import Journal
with Journal(Path(sys.argv[1]), {SETTINGS!r}) as journal:
    journal.keep([("a", "[1]"), ("b", "[2]")])
    print("kept", flush=True)
    time.sleep(60)
"""


def test_what_was_kept_survives_a_kill_and_nobody_shares_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsr_ray.transactions.BUSY_SECONDS", 0.1)
    file = tmp_path / "rollouts.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(file)], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "kept\n"
        with pytest.raises(DataError, match="another process holds it"):
            Journal(file, SETTINGS)
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    with Journal(file, SETTINGS) as journal:
        assert (journal.attempts("a"), journal.attempts("b"), journal.attempts("c")) == ("[1]", "[2]", NONE_YET)
        journal.keep([("b", "[3]")])
        assert journal.keys(lambda attempts: attempts == "[3]") == {"b"}


def test_rollouts_of_another_run_are_refused_with_the_difference(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.sqlite"
    with Journal(file, SETTINGS):
        pass
    with pytest.raises(DataError, match=r"model\.path was 'a' and is 'b'"):
        Journal(file, {"model": {"path": "b"}, "run": {"seed": 0}})
    file.write_bytes(b"no database at all" * 100)
    with pytest.raises(DataError, match="no sound database"):
        Journal(file, SETTINGS)


def test_a_batch_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    with Journal(tmp_path / "rollouts.sqlite", SETTINGS) as journal:
        with pytest.raises(DataError):
            journal.keep([("a", "[]"), ("b", None)])  # type: ignore[list-item]
        assert journal.keys(lambda attempts: True) == set()
