"""A bound on the kernels that oneDNN keeps on a CPU.

oneDNN compiles a kernel for every shape of matrices that it meets, and keeps 1,024 of them; torch keeps as many of its own making around
them. Micro-batches and batches of an engine have nearly all a shape of their own, so these caches grow for hundreds of steps and are hardly
ever asked. Measured on the tiny policy: a vLLM engine grew by 0.4 GiB, a rank in bfloat16 by 0.7 GiB (float32 does not go through
oneDNN there); with this bound neither grows, at the same CPU time of the engine and 2 to 15 % more of the rank.
"""

from __future__ import annotations

import os

KEPT = 64  # the layers of one micro-batch need about half of them
VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")  # oneDNN's own, and torch's


def bound_kernel_caches() -> None:
    """Keep few kernels in this process and those started from it. Call it before the first product; what the user has set stays."""
    for name in VARIABLES:
        os.environ.setdefault(name, str(KEPT))
