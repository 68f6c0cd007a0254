"""Serves a model: OpenAI's chat completions and the agent's events over HTTP, until it is told to stop.

    python jobs/serve.py --config jobs/configs/serve_atlas.yaml        on 127.0.0.1:8000, with the web of Atlas
    python jobs/serve.py --config mine.yaml serving.host=0.0.0.0       needs API keys: serving.keys_file or MMSR_API_KEYS

SIGTERM and Ctrl-C let running requests end, for serving.shutdown_seconds at most.
Exit status: 0 it was stopped; 2 something has to be mended, and one sentence says what.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the jobs package, when this file is run as a script

from ray import serve

from jobs.atlas_stage import world
from jobs.command import run_job
from mmsr_ray.config import Config, to_yaml
from mmsr_ray.serving.app import drain, start
from mmsr_ray.serving.keys import Keys

logger = logging.getLogger("serve")


def serve_until_told(config: Config) -> Path:
    """Returns the run folder. Raises KeysError, CodecError, PromptError, ToolsError, NotReady."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    keys = Keys.read(config.serving, os.environ)
    folder = Path(config.run.dir, config.run.name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    with world(config) as here:
        try:
            start(here, keys)
            logger.info("http://%s:%d answers; API keys: %s", here.serving.host, here.serving.port, "needed" if keys.needed else "none")
            stop.wait()
            logger.info("told to stop: who is inside is answered, for serving.shutdown_seconds=%g at most", config.serving.shutdown_seconds)
            drain(here)
        finally:
            serve.shutdown()
    return folder


def main() -> int:
    return run_job("serve", __doc__, serve_until_told)


if __name__ == "__main__":
    sys.exit(main())
