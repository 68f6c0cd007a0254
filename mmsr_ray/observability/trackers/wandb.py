"""Weights & Biases. Its own process uploads: what the network does not take lies in the run folder and can be synced later.

Key, server and mode are W&B's own variables (WANDB_API_KEY, WANDB_BASE_URL, WANDB_MODE=offline).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsr_ray.observability.trackers.port import TrackerError
from mmsr_ray.observability.trackers.settings import TrackingConfig

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

OFFLINE = ("offline", "dryrun", "disabled")
START_SECONDS = 30.0
END_SECONDS = 20.0


class WandbTracker:
    """One W&B run over all submissions. A step that W&B has cannot be told again."""

    supersedes = False

    def __init__(self, folder: Path, tracking: TrackingConfig) -> None:
        """Raises TrackerError where package or key is missing. Asks nobody yet."""
        if importlib.util.find_spec("wandb") is None:
            raise TrackerError("run.trackers names wandb, which is not installed: pip install 'mmsr-ray[trackers]', or leave it out")
        if not _has_key():
            raise TrackerError("run.trackers names wandb, which has no key: set WANDB_API_KEY, or WANDB_MODE=offline to sync it later")
        self._folder = folder
        self._tracking = tracking
        self._run: wandb.Run | None = None

    def start(self, name: str, settings: Mapping[str, Any], run_id: str | None) -> str:
        import wandb

        self._run = wandb.init(
            project=self._tracking.project,
            entity=self._tracking.entity or None,
            id=run_id or secrets.token_hex(6),
            name=name,
            config=dict(settings),
            resume="allow",
            dir=str(self._folder),
            settings=wandb.Settings(
                console="off",  # the job's log stays here
                silent=True,
                init_timeout=START_SECONDS,
                finish_timeout=END_SECONDS,
                save_code=False,
                disable_git=True,
                x_save_requirements=False,
            ),
        )
        logger.info("Weights & Biases: %s", self._run.url or f"offline, to be synced from {self._folder / 'wandb'}")
        return self._run.id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        assert self._run is not None, "start comes first"
        self._run.log(dict(values), step=step, commit=True)

    def close(self, *, ok: bool) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if ok else 1)


def _has_key() -> bool:
    """Whether W&B can be expected to find one: a variable of its own, or a netrc that may hold it."""
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    named = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    return os.environ.get("WANDB_MODE", "") in OFFLINE or any(os.environ.get(name) for name in named) or netrc.is_file()
