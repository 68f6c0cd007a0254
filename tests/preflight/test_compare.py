"""Nodes against the driver: another image, a folder that is not shared, not writable or too small."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import save_file

from mmsr_ray.preflight.compare import checkpoint_bytes, no_room_on_disk, parameters_in, wrong_image, wrong_storage
from mmsr_ray.preflight.look import NodeReport, report, versions

DRIVER = NodeReport("driver", "3.11", {"ray": "2.60.0", "vllm": "0.32.0"})
NODE = dataclasses.replace(DRIVER, node="10.0.0.7-ab")
FOLDER = Path("/shared/runs/mine")


def test_another_release_is_told_by_package_and_node() -> None:
    assert wrong_image(DRIVER, [NODE]) == ""
    told = wrong_image(DRIVER, [NODE, dataclasses.replace(NODE, node="10.0.0.8", python="3.12", packages={"ray": "2.59.0"})])
    assert told.startswith("node 10.0.0.8 runs another image than the driver: Python 3.12 instead of 3.11, ray 2.59.0 instead of 2.60.0")
    assert "vllm none instead of 0.32.0" in told
    more = dataclasses.replace(NODE, packages=NODE.packages | {"torch": "2.13.0"})
    assert wrong_image(DRIVER, [more]) == "", "what the driver has not, nobody needs from it"


def test_storage_that_is_not_shared_or_not_writable() -> None:
    assert wrong_storage(FOLDER, [NODE], [NODE.node]) == ""
    assert "another folder on node 10.0.0.7-ab" in wrong_storage(FOLDER, [dataclasses.replace(NODE, sees=False)], [NODE.node])
    assert "another folder on node 10.0.0.7-ab" in wrong_storage(FOLDER, [NODE], []), "it sees ours, we do not see its"
    read_only = dataclasses.replace(NODE, error="Read-only file system")
    assert "cannot write to /shared/runs/mine: Read-only file system" in wrong_storage(FOLDER, [read_only], [])


def test_a_volume_that_is_full_and_one_that_soon_will_be() -> None:
    gib = 1 << 30
    assert no_room_on_disk(FOLDER, 50 * gib, 10 * gib, keep=2) == ("", "")
    wrong, warning = no_room_on_disk(FOLDER, 9 * gib, 10 * gib, keep=2)
    assert wrong.startswith("/shared/runs/mine has 9.0 GiB free, and one checkpoint needs about 10.0 GiB") and not warning
    wrong, warning = no_room_on_disk(FOLDER, 30 * gib, 10 * gib, keep=2)
    assert not wrong and "the 4 checkpoints" in warning and "40.0 GiB" in warning


def test_a_checkpoint_is_reckoned_from_the_weights(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(100, 10, dtype=torch.bfloat16), "b": torch.zeros(500)}, tmp_path / "model.safetensors")
    assert (parameters_in(tmp_path), parameters_in(tmp_path / "nowhere")) == (1500, 0)
    assert checkpoint_bytes(1500, itemsize=2) == 1500 * (2 + 12)
    assert checkpoint_bytes(1500, itemsize=2, frozen_model=True) == 1500 * (2 + 2 + 12)
    assert checkpoint_bytes(1500, itemsize=2, trained=0.1) == 1500 * 2 + 150 * 12, "weights that do not learn lie there too"
    assert checkpoint_bytes(1500, itemsize=4, frozen_model=True) == 1500 * (4 + 4 + 12)


def test_a_node_says_what_it_has_and_sees(tmp_path: Path) -> None:
    (tmp_path / "mark").touch()
    seen = report("n", tmp_path, "mark", patience=0.0)
    assert seen.sees and not seen.error and seen.free > 0 and (tmp_path / "mark-n").is_file()
    assert seen.packages == versions() and seen.packages["vllm"] and "+" not in "".join(seen.packages.values())
    (tmp_path / "file").touch()
    blind = report("n", tmp_path / "file", "mark", patience=0.0)
    assert not blind.sees and blind.error
