"""Training the policy: batches, losses, the plan of an update, and the DeepSpeed ranks that carry it out.

`positions`, `batch`, `losses`, `schedule`, `plan`, `cost`, `fitting`, `pictures`, `attention` and `model` need torch and
transformers only, so that they run on a machine without Ray or DeepSpeed; `rank` and `group` need both. README.md beside this
file explains a step, packing, and what to do about memory.
"""
