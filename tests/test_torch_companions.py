"""transformers and torchvision import beside the torch that is installed, in fresh processes and in either order."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "code",
    [
        "import torchvision; import torchvision.transforms.v2",
        "from transformers import AutoProcessor, Qwen2VLImageProcessor; Qwen2VLImageProcessor()",
        "import torch; from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor; Qwen2VLVideoProcessor()",
    ],
)
def test_imports(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_importing_torch_stays_cheap() -> None:
    """The entry point runs in every process that imports torch: it must bring in nothing of ours but itself."""
    code = "import torch, sys; print(sorted(m for m in sys.modules if m.startswith(('mmsr_ray', 'torchvision', 'transformers', 'ray'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "['mmsr_ray', 'mmsr_ray.torch_companions']"
