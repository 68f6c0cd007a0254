"""Folders that are whole or not there: a disk that is full, files cut short or changed, a swap of names that was killed."""

from __future__ import annotations

import errno
import json
import random
import zlib
from pathlib import Path

import pytest
import torch

from mmsr_ray.learner.chance import random_state, set_random_state
from mmsr_ray.learner.durable import (
    MANIFEST,
    DurableFile,
    FolderWriter,
    complaint,
    damage,
    folder_bytes,
    merged,
    not_written,
    read_manifest,
    recover_folder,
    replace_folder,
    size,
    write_manifest,
)

FULL = Path("/dev/full")  # every write to it ends with ENOSPC
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def write_whole(folder: Path, **files: bytes) -> Path:
    writer = FolderWriter(folder)
    writer.make_folder(folder / "sub")
    for name, content in files.items():
        writer.write(folder / "sub" / name, content)
    assert not writer.report.error
    write_manifest(folder, writer.report.files)
    return folder


def test_a_file_that_torch_writes_has_the_checksum_of_what_lies_on_disk(tmp_path: Path) -> None:
    file = DurableFile(tmp_path / "x.pt")
    torch.save({"a": torch.arange(100_000), "b": [1, "two"]}, file)  # type: ignore[arg-type]
    file.close()
    assert file.error is None
    content = (tmp_path / "x.pt").read_bytes()
    assert (file.size, file.crc32) == (len(content), zlib.crc32(content))
    assert torch.equal(torch.load(tmp_path / "x.pt", mmap=True)["a"], torch.arange(100_000))


@needs_full
def test_on_a_full_disk_nothing_is_raised_and_what_is_needed_is_counted(tmp_path: Path) -> None:
    (tmp_path / "full.pt").symlink_to(FULL)
    state = {"a": torch.zeros(1_000_000)}
    file = DurableFile(tmp_path / "full.pt")
    torch.save(state, file)  # type: ignore[arg-type]
    file.close()
    torch.save(state, tmp_path / "good.pt")
    assert file.error is not None
    assert file.error.errno == errno.ENOSPC
    assert file.size == pytest.approx((tmp_path / "good.pt").stat().st_size, rel=0.01)


@needs_full
def test_the_first_error_of_several_processes_becomes_one_sentence(tmp_path: Path) -> None:
    first, second = FolderWriter(tmp_path), FolderWriter(tmp_path)
    (tmp_path / "b").symlink_to(FULL)
    first.write(tmp_path / "a", bytes(3 << 20))
    second.write(tmp_path / "b", bytes(1 << 20))
    second.write(tmp_path / "no_such_folder" / "c", b"c")
    whole = merged([first.report, second.report])
    said = str(not_written(tmp_path / "step_1", whole))
    assert said.startswith(f"{tmp_path / 'step_1'} was not written: No space left on device; it needs 4.0 MiB and ")
    assert said.endswith(" are free there: make room")
    assert len(said.splitlines()) == 1


def test_other_errors_are_told_without_a_word_on_space(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path)
    writer.write(tmp_path / "nowhere" / "a", b"a")
    assert str(not_written(tmp_path, writer.report)) == f"{tmp_path} was not written: No such file or directory"


def test_the_manifest_tells_which_file_is_cut_short_missing_or_changed(tmp_path: Path) -> None:
    folder = write_whole(tmp_path / "f", one=b"first file", two=b"second")
    assert set(read_manifest(folder)) == {"sub/one", "sub/two"}
    assert (complaint(folder), damage(folder, read_manifest(folder)), folder_bytes(folder)) == ("", "", 16)

    (folder / "sub/one").write_bytes(b"first fil3")
    assert complaint(folder) == ""
    assert damage(folder, ["sub/two"]) == ""
    assert damage(folder, ["sub/two", "sub/one"]) == f"{folder} is damaged: sub/one has not the checksum of its manifest.json"
    (folder / "sub/one").write_bytes(b"first")
    assert complaint(folder) == f"{folder} is cut short: sub/one has 5 of its 10 bytes"
    (folder / "sub/one").unlink()
    assert complaint(folder) == f"{folder} is cut short: sub/one is missing"
    (folder / MANIFEST).write_text('{"files": {"sub')
    assert complaint(folder) == f"{folder / MANIFEST} is damaged"
    (folder / MANIFEST).write_text(json.dumps({"files": {"sub/one": {"bytes": 1}}}))
    assert complaint(folder) == f"{folder / MANIFEST} is damaged"
    (folder / MANIFEST).unlink()
    assert complaint(folder) == f"{folder} has no manifest.json, its last file: it was cut short"
    assert folder_bytes(folder) == 0
    assert complaint(tmp_path / "g") == f"there is no folder {tmp_path / 'g'}"


def test_a_swap_that_is_killed_anywhere_leaves_one_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final, new = tmp_path / "best", tmp_path / "best.partial"
    rename = Path.rename
    for kill_at in (1, 2, 3):
        for folder, content in ((final, "old"), (new, "new")):
            folder.mkdir(exist_ok=True)
            (folder / "x").write_text(content)
        calls = 0

        def counted(path: Path, target: Path, kill_at: int = kill_at) -> Path:
            nonlocal calls
            calls += 1
            if calls == kill_at:
                raise KeyboardInterrupt
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", counted)
        try:
            replace_folder(new, final)
            assert kill_at == 3
        except KeyboardInterrupt:
            pass
        monkeypatch.setattr(Path, "rename", rename)
        recover_folder(final)
        assert (final / "x").read_text() == ("old" if kill_at < 3 else "new")
        assert not (tmp_path / "best.old").exists()
    assert not new.exists()
    recover_folder(tmp_path / "never_there")


def test_bytes_in_words() -> None:
    assert [size(n) for n in (0, 1023, 1536, 3 << 30, 5 << 50)] == ["0 bytes", "1023 bytes", "1.5 KiB", "3.0 GiB", "5120.0 TiB"]


def test_random_numbers_go_on_where_they_were() -> None:
    state = random_state()
    first = (random.random(), torch.rand(3).tolist())
    set_random_state(state)
    assert (random.random(), torch.rand(3).tolist()) == first
