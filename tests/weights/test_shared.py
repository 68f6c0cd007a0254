"""Weights that another process opens where they lie."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from mmsr_ray.weights import shared

READS = """
import sys
from pathlib import Path
from mmsr_ray.weights import shared
for line in sys.stdin:
    for name, tensor in shared.opened(Path(sys.argv[1]).read_bytes()):
        print(name, tuple(tensor.shape), tensor.dtype, float(tensor.double().sum()), tensor.requires_grad)
    shared.let_go()
    print("done", flush=True)
"""


def test_another_process_sees_the_memory_itself(tmp_path: Path) -> None:
    flat = torch.zeros(100, dtype=torch.bfloat16)  # as ZeRO keeps its parameters: views of one buffer
    weights = {"a": nn.Parameter(flat[:60].view(6, 10)), "b": nn.Parameter(flat[60:].view(4, 10))}
    (tmp_path / "handles").write_bytes(shared.offer(weights.items()))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", READS, str(tmp_path / "handles")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as reader:
        asked, answers = reader.stdin, reader.stdout
        assert asked is not None and answers is not None

        def seen() -> list[str]:
            asked.write("\n")
            asked.flush()
            return [line.strip() for line in iter(answers.readline, "done\n")]

        flat[60:] = 1
        assert seen() == ["a (6, 10) torch.bfloat16 0.0 False", "b (4, 10) torch.bfloat16 40.0 False"]
        flat[:60] = 2  # the optimiser's next step
        assert seen() == ["a (6, 10) torch.bfloat16 120.0 False", "b (4, 10) torch.bfloat16 40.0 False"]
        asked.close()
    assert float(weights["a"].detach().double().sum()) == 120.0


def test_memory_in_expandable_segments_cannot_be_shared() -> None:
    said = shared.complaint({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64,expandable_segments:True"})
    assert said.endswith("take expandable_segments out of PYTORCH_CUDA_ALLOC_CONF")
    assert shared.complaint({"PYTORCH_ALLOC_CONF": "expandable_segments:False"}) == ""
