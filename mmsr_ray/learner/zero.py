"""What DeepSpeed is told of a run's learner.

Promise: every stage, dtype and offload that `settings.complaint` lets through is one that DeepSpeed takes, and whose optimiser can do what
`residence.py` and `rank.py` ask of it.
"""

from __future__ import annotations

from typing import Any

from mmsr_ray.config import Config

BUCKET_PARAMETERS = 200_000_000  # of a bucket of gradients, of which there are two


def deepspeed_config(config: Config) -> dict[str, Any]:
    """DeepSpeed's settings. Buckets are large enough that a small model travels in one message."""
    learner = config.learner
    zero: dict[str, Any] = {"stage": learner.zero_stage, "contiguous_gradients": True}
    # Below stage 3 gradients are summed on the stream that computes them. On a second one DeepSpeed 0.19 reads the gradient of a weight larger than
    # a bucket (a head, an embedding) after a rank that does not own it has given its memory back to the first.
    zero |= {"overlap_comm": learner.zero_stage == 3 and learner.gpus_per_rank > 0}
    if learner.zero_stage in (1, 2):
        zero |= {"reduce_bucket_size": BUCKET_PARAMETERS, "allgather_bucket_size": BUCKET_PARAMETERS}
        # gloo has no reduce-scatter of its own: DeepSpeed would emulate it by one reduce per rank
        zero |= {"reduce_scatter": learner.gpus_per_rank > 0}
    if learner.zero_stage == 3:
        zero |= {"stage3_gather_16bit_weights_on_model_save": False, "stage3_param_persistence_threshold": 100_000}
    if learner.offload != "none":
        zero |= {"offload_optimizer": {"device": "cpu", "pin_memory": learner.gpus_per_rank > 0}}
    if learner.offload == "all":
        zero |= {"offload_param": {"device": "cpu", "pin_memory": learner.gpus_per_rank > 0}}
    return {
        # In bfloat16 the sum over a step's micro-batches loses what they add: 0.7 % of its norm after 200 of them, on a CPU. Below stage 2
        # DeepSpeed would take another optimiser for it, which cannot leave a device.
        "data_types": {"grad_accum_dtype": "fp32" if learner.dtype == "float32" or learner.zero_stage >= 2 else "bf16"},
        "zero_force_ds_cpu_optimizer": False,  # torch's own fused AdamW runs on the CPU too and needs no compiling
        "train_micro_batch_size_per_gpu": 1,  # rows are counted by the plan, not by DeepSpeed
        "gradient_accumulation_steps": 1,
        "gradient_clipping": learner.grad_clip,
        "zero_optimization": zero,
        "bf16": {"enabled": learner.dtype == "bfloat16", "check_grad_overflow": True},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 60,
        "wall_clock_breakdown": False,
    }
