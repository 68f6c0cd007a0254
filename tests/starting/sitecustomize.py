"""Python's start-up in every process of the tests (`make test` puts this folder on PYTHONPATH; Ray's and vLLM's processes inherit it).

The tests start some hundred processes that import torch, transformers, vLLM or Ray, and a quarter of the CPU time of such an
import goes into garbage collections that find nothing. So they come later: nothing else is different.
"""

import gc

gc.set_threshold(100_000, 50, 100)
