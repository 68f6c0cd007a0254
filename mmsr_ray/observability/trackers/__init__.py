"""Numbers of a run to the tools that draw them: TensorBoard always, Weights & Biases and MLflow where `run.trackers` says so.

Training writes one file, metrics.jsonl, and knows nothing of trackers. They follow that file from the job's own process, each
in a thread of its own (`follow`), so that none of them can hold up or fail a step, or keep the others from their records.
"""
