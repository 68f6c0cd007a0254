"""Ray's autoscaler over made-up nodes of this machine, for tests.

`ray.cluster_utils.AutoscalingCluster` as it comes in the wheel lacks a file that it reads, and starts and ends with
`ray stop --force`, which ends every Ray of the machine: here it brings its own config, folder and port, and ends what it
started.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.cluster_utils import AutoscalingCluster

PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
STORE_BYTES = 100 << 20
QUICK = {  # of the autoscaler's rounds, and until a node that is gone is known to be
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
}


class QuietAutoscalingCluster(AutoscalingCluster):
    """A head of one CPU and workers of one CPU each, `max_workers` at most, in `folder` (a short path: sockets lie in it).

    A worker that has had nothing on it for `idle_minutes` is removed.
    """

    def __init__(self, folder: Path, max_workers: int, idle_minutes: float = 10.0) -> None:
        self.folder = folder
        self.port = _free_port()
        self.address = f"{ray.util.get_node_ip_address()}:{self.port}"
        worker = {
            "resources": {"CPU": 1, "object_store_memory": STORE_BYTES},
            "node_config": {},
            "min_workers": 0,
            "max_workers": max_workers,
        }
        super().__init__({"CPU": 1}, {"spot": worker}, autoscaler_v2=True, max_workers=max_workers, idle_timeout_minutes=idle_minutes)

    def _generate_config(self, head_resources: dict[str, Any], worker_node_types: dict[str, Any], autoscaler_v2: bool = False, **settings: Any) -> dict[str, Any]:  # fmt: skip
        nothing: dict[str, Any] = {
            name: []
            for name in (
                "setup_commands", "head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
                "initialization_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter",
            )
        }  # fmt: skip
        provider = {
            "type": "external",
            "module": PROVIDER,
            "gcs_address": self.address,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "foreground_node_launch": True,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
        }
        head = {"resources": head_resources, "node_config": {}, "max_workers": 0}
        made = {
            "cluster_name": "fake_multinode",
            "provider": provider,
            "head_node_type": "ray.head.default",
            "available_node_types": {**worker_node_types, "ray.head.default": head},
            "upscaling_speed": 1.0,
            "auth": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
        }
        return made | nothing | settings

    def start(self, _system_config: Any = None, override_env: dict[str, str] | None = None) -> None:
        file = self.folder / "autoscaler.yaml"
        file.write_text(json.dumps(self._config))
        identity = {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}  # fmt: skip
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", f"--autoscaling-config={file}", f"--port={self.port}", f"--temp-dir={self.folder}",
            "--num-cpus=1", "--include-dashboard=false", f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats",
            f"--ray-client-server-port={_free_port()}", f"--dashboard-agent-listen-port={_free_port()}", f"--metrics-export-port={_free_port()}",
        ]  # fmt: skip
        env = {**os.environ, **identity, **QUICK, "RAY_FAKE_CLUSTER": "1", **(override_env or {})}
        subprocess.check_call(command, env=env, stdout=subprocess.DEVNULL)

    def shutdown(self) -> None:
        """End the processes whose command line names this cluster's folder or address."""
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            if str(self.folder) in line or self.address in line:
                process.kill()


def _free_port() -> int:
    """Outside the range of Ray's workers (10002 to 19999)."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
