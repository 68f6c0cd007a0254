"""The suite `building`: what the stages of jobs/build_fvqa.py cost that ask nobody, as the number of candidates grows.

Made-up candidates, with pictures of a few KiB (half of them a small thing on white ground, whose hashes share most bits) and pages of
some KiB, go through near-duplicates, sampling, mixture, files and card. Each size runs in a process of its own with a Ray of its own;
memory is that of the driver and of all Ray's workers, sampled. Beside them ten thousand near-duplicates of one question. Needs two
to three minutes on two cores, and 2 GiB of disk.
"""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the jobs package, when this file is run as a script

import jobs  # noqa: F401, I001  (before Ray, see its docstring)
import psutil
from PIL import Image

from jobs.benchmark_rows import row
from jobs.build_fvqa import Building
from jobs.connect import connect
from jobs.search_balance import mixture_stage
from mmsr_ray.config import Config, load
from mmsr_ray.data.construction.candidate import Candidate, key_of, read, write
from mmsr_ray.data.construction.card import About
from mmsr_ray.data.construction.dataset import write_dataset
from mmsr_ray.observability.progress import Progress
from mmsr_ray.types import Need

SIZES = (1_000, 10_000, 50_000)
ALIKE = 10_000  # near-duplicates of one question about one picture
SIDE = 96  # pixels of a picture
PAGE = "A page says this and that about the thing in the picture. " * 40
SAMPLED_EVERY = 0.2  # seconds
SECONDS = 1_200.0  # deadline of one size
MIB = 1 << 20
WORDS = [a + b for a in ("ka", "lo", "mi", "re", "su", "ta") for b in ("dor", "fen", "gim", "las", "nor", "pek", "vil")]


def building(_: Config) -> list[dict[str, Any]]:
    measured = {size: _in_a_process(size, alike=False) for size in SIZES}
    alike = _in_a_process(ALIKE, alike=True)
    small, rows = measured[SIZES[0]], []
    for size, found in measured.items():
        for stage in found["seconds"]:
            name = f"{stage}, {size:,} candidates: milliseconds each"
            rows.append(_row(name, "ms", 1000 * found["seconds"][stage] / size, 1000 * small["seconds"][stage] / SIZES[0]))
        rows.append(_row(f"driver, {size:,} candidates: most memory", "MiB", found["driver"], small["driver"]))
        rows.append(_row(f"all of Ray's workers, {size:,} candidates: most memory", "MiB", found["workers"], small["workers"]))
    for process in ("driver", "workers"):
        rows += [_growth(process, size, found, small) for size, found in measured.items() if size > SIZES[0]]
    name = f"near-duplicates, {ALIKE:,} of one question: milliseconds each"
    rows.append(_row(name, "ms", 1000 * alike["seconds"]["near-duplicates"] / ALIKE, 1000 * small["seconds"]["near-duplicates"] / SIZES[0]))
    return rows


def _row(name: str, unit: str, value: float, reference: float) -> dict[str, Any]:
    return row(name, value, unit, f"with {SIZES[0]:,} candidates", reference, "building")


def _growth(process: str, size: int, found: dict[str, Any], small: dict[str, Any]) -> dict[str, Any]:
    """What each further candidate costs in memory; it would be a picture at least if pictures were held."""
    name = f"{process}, from {SIZES[0]:,} to {size:,} candidates: memory for each further one"
    grown = 1024 * (found[process] - small[process]) / (size - SIZES[0])
    return row(name, grown, "KiB", "its picture", found["picture"], "building")


def _in_a_process(size: int, *, alike: bool) -> dict[str, Any]:
    """A process's memory only grows, so that each size needs its own."""
    command = [sys.executable, str(Path(__file__).resolve()), str(size), str(int(alike))]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------------------------------------------- one size


class _Unpaid(Building):
    """Of its stages only those are made that ask no service."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, None, Progress())  # pyright: ignore[reportArgumentType]  (no stage here asks the tools)

    def spent(self) -> float:
        return 0.0

    def distinct(self, source: Path) -> Path:
        return self._distinct(source)

    def sampled(self, source: Path) -> Path:
        return self._sampled(source)


class _Memory:
    """Most MiB of this process, and of all of Ray's workers together, while it is entered."""

    def __init__(self) -> None:
        self.driver = self.workers = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._end.wait(SAMPLED_EVERY):
            self.driver = max(self.driver, _own(me))
            self.workers = max(self.workers, sum(_own(p) for p in me.children(recursive=True) if _is_worker(p)))


def _is_worker(process: psutil.Process) -> bool:
    try:
        return process.cmdline()[:1] != [] and process.cmdline()[0].startswith("ray::")
    except psutil.Error:  # it has just ended
        return False


def _own(process: psutil.Process) -> float:
    """MiB of a process, without what it shares with others: the object store, libraries."""
    try:
        return process.memory_full_info().uss / MIB
    except psutil.Error:
        return 0.0


def measure(folder: Path, size: int, *, alike: bool) -> dict[str, Any]:
    """Seconds by stage, most MiB of driver and workers, and KiB of a picture."""
    paths = [f"run.dir={folder}", "run.name=built", "model.path=none", "data.train=none", "data.test=none"]
    config = load(None, [*paths, "construction.visual_questions=0"])
    made, labelled, mixed = (folder / f"{name}.parquet" for name in ("made", "labelled", "mixed"))
    write(made, _alike(size) if alike else _different(size))
    connect(config)
    (folder / "built").mkdir()
    run = _Unpaid(config)
    ended = [time.perf_counter()]
    with _Memory() as memory:
        distinct = run.distinct(made)
        ended.append(time.perf_counter())
        if not alike:
            sampled = run.sampled(distinct)
            ended.append(time.perf_counter())
            write(labelled, _labelled(sampled))  # stands for the rollouts
            ended[-1:] = [ended[-1], time.perf_counter()]
            mixture_stage(config, labelled, mixed)
            ended.append(time.perf_counter())
            write_dataset(folder / "set", {"train": read(mixed)}, About(name="made", construction=config.construction))
            ended.append(time.perf_counter())
    names = ("near-duplicates", "sampling", LABELLING, "mixture", "set and card")
    seconds = {name: end - begin for name, begin, end in zip(names, ended, ended[1:], strict=False) if name != LABELLING}
    picture = sum(len(candidate.image) for candidate in read(distinct)) / size / 1024
    return {"seconds": seconds, "driver": memory.driver, "workers": memory.workers, "picture": picture}


LABELLING = "labelling"  # by nobody: not measured


def _labelled(source: Path) -> Iterator[Candidate]:
    needs = list(Need)
    for number, candidate in enumerate(read(source)):
        yield replace(candidate, need=needs[number % len(needs)].value) if candidate.kept else candidate


def _different(size: int) -> Iterator[Candidate]:
    for number in range(size):
        lot = random.Random(number)
        question = f"Who {' '.join(lot.choices(WORDS, k=6))} the one in the picture?"
        yield _candidate(number, _picture(lot, white=number % 2 == 0), question, " ".join(lot.choices(WORDS, k=2)))


def _alike(size: int) -> Iterator[Candidate]:
    """One picture, compressed now more and now less, and one question, with a word more or less."""
    for number in range(size):
        question = f"Who built the great tower that stands on the left bank in this picture{' here' * (number % 2)}?"
        yield _candidate(number, _picture(random.Random(0), white=False, quality=60 + number % 35), question, f"answer {number}")


def _candidate(number: int, image: bytes, question: str, answer: str) -> Candidate:
    return Candidate(
        key_of(str(number)), concept=f"thing {number}", image=image, page_text=f"{PAGE} {number}", question=question, answer=answer,
        category=f"kind {number % 19}", page_url=f"https://site{number % 500}.example/{number}",
    )  # fmt: skip


def _picture(lot: random.Random, *, white: bool, quality: int = 90) -> bytes:
    image = Image.frombytes("RGB", (9, 8), lot.randbytes(9 * 8 * 3)).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    if white:
        ground = Image.new("RGB", (SIDE, SIDE), "white")
        ground.paste(image.resize((SIDE // 3, SIDE // 3)), (lot.randrange(2 * SIDE // 3), lot.randrange(2 * SIDE // 3)))
        image = ground
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(Path(temporary), int(sys.argv[1]), alike=sys.argv[2] == "1")
    sys.stdout.write(json.dumps(found) + "\n")
