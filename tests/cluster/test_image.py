"""The Dockerfile as far as it can be checked without a daemon: sources exist and reach the build, versions are pinned, nobody is root."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from jobs.check_cluster import IN_THE_IMAGE, ROOT
from jobs.setup import CPU_TORCH, PYTORCH_CPU_INDEX

DOCKERFILE = ROOT / "cluster" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, arguments), continued lines joined, comments left out."""
    text = re.sub(r"\\\n\s*", " ", "\n".join(line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for instruction, arguments in instructions():
        if instruction == "FROM":
            base, _, name = arguments.partition(" AS ")
            found[name] = [("FROM", base)]
        elif found:
            found[name].append((instruction, arguments))
    return found


def test_both_targets_are_there_and_nobody_is_root() -> None:
    made = stages()
    for target in ("cpu", "gpu"):
        assert made[target][-1] == ("USER", "1000:1000"), "the last word, and the user of the manifests"
        assert made[target][0] == ("FROM", "base"), "a stage without the tools of the build"
        assert ("WORKDIR", IN_THE_IMAGE.rstrip("/")) in made[target]
        assert f"packages-{target}" in made
    for name, (_, base) in ((name, stage[0]) for name, stage in made.items()):
        assert base in made or base == "${BASE}", name


def test_every_source_exists_and_is_let_into_the_build() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for instruction, arguments in instructions():
        if instruction == "COPY":
            *sources, _ = arguments.split()
            if sources[0].startswith("--from="):
                assert sources[0].removeprefix("--from=") in stages()
                continue
            for source in sources:
                assert (ROOT / source).exists(), source
                assert any(fnmatch.fnmatch(source, name) or source.startswith(f"{name}/") for name in allowed), (
                    f".dockerignore hides {source}"
                )


def test_what_is_installed_is_what_pyproject_asks_for_and_pinned() -> None:
    text = DOCKERFILE.read_text()
    assert re.search(r"^ARG BASE=python:\d+\.\d+\.\d+-slim-\w+$", text, re.MULTILINE)
    assert all(pin in text for pin in CPU_TORCH) and PYTORCH_CPU_INDEX in text
    pins = dict(
        line.split("==") for line in (ROOT / "cluster/constraints.txt").read_text().splitlines() if line and not line.startswith("#")
    )
    assert "triton" not in pins, "torch's build for CUDA needs another one than lies beside its build for CPUs: pip could not resolve both"
    for target in ("cpu", "gpu"):
        assert f"requirements.py {target} trackers" in text
        command = [sys.executable, str(ROOT / "cluster/requirements.py"), target, "trackers"]
        asked = [
            Requirement(line) for line in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        ]
        assert len(asked) == len(PROJECT["dependencies"]) + sum(
            len(PROJECT["optional-dependencies"][extra]) for extra in (target, "trackers")
        )
        for one in asked:
            pin = pins.get(canonicalize_name(one.name))
            exact = any(part.operator == "==" for part in one.specifier)
            assert exact or (pin and one.specifier.contains(pin)), (
                f"{one} has no pin, or one outside its range: renew cluster/constraints.txt"
            )
