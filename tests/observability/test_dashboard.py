"""The dashboard and the alerts: what is committed is what is described, and every alert fires when it should and not otherwise.

Every panel is asked of a Prometheus that watches a training run in tests/e2e/test_replay.py, and of one that watches the service in
tests/serving/test_app.py.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmsr_ray.metrics.catalogue import METRICS
from mmsr_ray.observability.dashboard.__main__ import files
from mmsr_ray.observability.dashboard.alerts import Patience, alerts
from mmsr_ray.observability.dashboard.panels import ROWS
from mmsr_ray.observability.dashboard.queries import WINDOW
from tests.prometheus import needed

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "cluster" / "monitoring"


@pytest.mark.parametrize("name", files())
def test_what_is_committed_is_what_is_described(name: str) -> None:
    told = "python -m mmsr_ray.observability.dashboard writes them again"
    assert (MONITORING / name).read_text() == files()[name], told


def test_every_metric_has_a_panel_and_every_panel_a_metric() -> None:
    shown = {name for panels in ROWS.values() for panel in panels for query in panel.queries for name in _names(query.expr)}
    watched = {name for alert in alerts(Patience()) for name in _names(alert.expr)}
    known = set(METRICS)
    assert shown | watched <= known
    without = known - shown - watched
    assert without == {"mmsr_train_weight_version", "mmsr_train_turn_seconds"}


def _names(expr: str) -> set[str]:
    """Metrics of ours in an expression, without what Prometheus puts behind."""
    found = re.findall(r"\bray_(mmsr_[a-z_]+)", expr)
    return {name if name in METRICS else re.sub(r"_(total|bucket|sum|count)$", "", name) for name in found}


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    dashboard = json.loads((MONITORING / "mmsr.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [(x, y) for p in panels for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
             for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])]  # fmt: skip
    assert len(set(cells)) == len(cells), "panels lie on each other"
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "run"}
    assert dashboard["uid"] == "mmsr"


def test_an_alert_says_what_to_do() -> None:
    readme = (ROOT / "mmsr_ray" / "observability" / "README.md").read_text()
    for alert in alerts(Patience()):
        assert alert.name in readme
        assert alert.severity in ("critical", "warning") and alert.summary and alert.todo.endswith(".")


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, for its kustomize")
def test_an_overlay_gets_what_prometheus_and_grafana_look_for(tmp_path: Path) -> None:
    overlay = tmp_path / "cluster" / "overlays" / "cpu-demo" / "watched"
    shutil.copytree(ROOT / "cluster", tmp_path / "cluster")
    overlay.mkdir()
    components = ["../../../monitoring", "../../../components/train"]
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["../cluster"], "components": components}))
    built = subprocess.run(["kubectl", "kustomize", str(overlay)], capture_output=True, text=True, check=True).stdout
    objects = {(found["kind"], found["metadata"]["name"]): found for found in yaml.safe_load_all(built)}
    dashboard = objects["ConfigMap", "mmsr-ray-dashboard"]
    assert dashboard["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert json.loads(dashboard["data"]["mmsr.json"])["uid"] == "mmsr"
    rules, monitor = objects["PrometheusRule", "mmsr-ray"], objects["PodMonitor", "mmsr-ray"]
    assert rules["spec"] == yaml.safe_load((MONITORING / "mmsr-rules.yaml").read_text())
    assert {found["metadata"]["namespace"] for found in (dashboard, rules, monitor)} == {"mmsr"}
    head = objects["RayJob", "mmsr-train"]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {variable["name"] for variable in head["env"]} >= {"RAY_PROMETHEUS_HOST", "RAY_GRAFANA_HOST", "RAY_GRAFANA_IFRAME_HOST"}
    assert {port["name"] for port in head["ports"]} >= {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    assert 9090 in [port["port"] for rule in objects["NetworkPolicy", "mmsr-ray"]["spec"]["egress"] for port in rule.get("ports", [])]


# ---------------------------------------------------------------------------------------------------- when they fire


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    """As promtool writes time series: "0+10x20" is 0, 10, ... 200, one a minute; "_" is none."""
    pairs = ",".join(f'{key}="{value}"' for key, value in ({"run": "a"} | labels).items())
    return {"series": f"ray_mmsr_{name}{{{pairs}}}", "values": values}


def served(values: str, outcome: str, model: str = "a") -> dict[str, str]:
    return {"series": f'ray_mmsr_serving_requests_total{{model="{model}",workflow="direct",outcome="{outcome}"}}', "values": values}


def called(values: str, outcome: str) -> dict[str, str]:
    return series("tools_calls_total", values, tool="text", outcome=outcome, cached="False", partial="False")


TRAINING = [series("train_evaluating", "0x60"), series("train_steps_wanted", "100x60")]
STANDING = [*TRAINING, series("train_step", "7x60"), series("train_progress_timestamp", "0x60")]  # promtool's clock begins at 0
GONE = [series("train_steps_wanted", "100x10 stale"), series("train_step", "7x10 stale")]
SERVED = [served("0+100x60", "ok")]

CASES: dict[str, tuple[str, list[dict[str, str]], str, bool]] = {
    "no step within 15 minutes": ("MMSRStepStalled", STANDING, "17m", True),
    "not yet 15 minutes": ("MMSRStepStalled", STANDING, "15m", False),
    "steps take 10 minutes": ("MMSRStepStalled", [*STANDING, series("train_step_seconds", "600x60", part="total")], "40m", False),
    "five steps' time": ("MMSRStepStalled", [*STANDING, series("train_step_seconds", "600x60", part="total")], "55m", True),
    "steps end": (
        "MMSRStepStalled",
        [*TRAINING, series("train_step", "0+1x60"), series("train_progress_timestamp", "0+60x60")],
        "50m",
        False,
    ),
    "it evaluates": ("MMSRStepStalled", [*STANDING[1:], series("train_evaluating", "1x60")], "50m", False),
    "all steps are done": ("MMSRStepStalled", [*STANDING[:1], series("train_steps_wanted", "7x60"), *STANDING[2:]], "50m", False),
    "a run vanishes": ("MMSRRunGone", GONE, "17m", True),
    "a run that was done ends": ("MMSRRunGone", [series("train_steps_wanted", "7x10 stale"), GONE[1]], "17m", False),
    "a run that goes on": ("MMSRRunGone", STANDING, "16m", False),
    "an update is skipped": ("MMSRNotFinite", [series("train_skipped_updates", "0x5 1x20")], "7m", True),
    "the loss is not a number": ("MMSRNotFinite", [series("train_loss", "1 1 NaN NaN")], "3m", True),
    "losses as they should be": ("MMSRNotFinite", [series("train_skipped_updates", "3x20"), series("train_loss", "1x20")], "10m", False),
    "older than the bound": ("MMSRTooStale", [series("train_staleness", "2x9"), series("train_staleness_bound", "1x9")], "5m", True),
    "as old as the bound": ("MMSRTooStale", [series("train_staleness", "1x9"), series("train_staleness_bound", "1x9")], "5m", False),
    "one runner of two": ("MMSRRunnerLost", [series("train_runners", "1x9"), series("train_runners_wanted", "2x9")], "6m", True),
    "it comes back": ("MMSRRunnerLost", [series("train_runners", "2 1 1 2x9"), series("train_runners_wanted", "2x9")], "8m", False),
    "a third of the calls": ("MMSRToolsFailing", [called("0+10x30", "timeout"), called("0+20x30", "ok")], "12m", True),
    "nothing is found": ("MMSRToolsFailing", [called("0+10x30", "no_results"), called("0+20x30", "ok")], "12m", False),
    "a third of the responses": (
        "MMSRResponsesLost",
        [series("train_infra_errors", "0+4x30"), series("train_responses", "0+8x30")],
        "12m",
        True,
    ),
    "one in a hundred": ("MMSRResponsesLost", [series("train_infra_errors", "0+1x30"), series("train_responses", "0+99x30")], "12m", False),
    "nine tenths of the budget": ("MMSRBudgetNearlySpent", [series("train_cost", "95x9"), series("train_budget", "100x9")], "1m", True),
    "half the budget": ("MMSRBudgetNearlySpent", [series("train_cost", "50x9"), series("train_budget", "100x9")], "1m", False),
    "no budget": ("MMSRBudgetNearlySpent", [series("train_cost", "50x9"), series("train_budget", "0x9")], "1m", False),
    "questions are refused": ("MMSRServingFull", [*SERVED, served("0+5x60", "overloaded")], "10m", True),
    "there is room": ("MMSRServingFull", SERVED, "10m", False),
    "one in ten breaks": ("MMSRServingBroken", [*SERVED, served("0+10x60", "internal")], "12m", True),
    "one model of two breaks, of which little is asked": (
        "MMSRServingBroken",
        [*SERVED, served("0+2x60", "unavailable", "b")],
        "12m",
        True,
    ),
    "clients go away": ("MMSRServingBroken", [*SERVED, served("0+50x60", "left")], "12m", False),
}


@needed
def test_the_rules_load() -> None:
    _promtool("check", "rules", str(MONITORING / "mmsr-rules.yaml"))


@needed
def test_every_query_is_promql(tmp_path: Path) -> None:
    """Those of panels that need what no test has, such as a GPU, too."""
    exprs = {
        query.expr.replace(WINDOW, "1m").replace("$run", ".*") for panels in ROWS.values() for panel in panels for query in panel.queries
    }
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(sorted(exprs))]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    _promtool("check", "rules", str(tmp_path / "panels.yaml"))


@needed
def test_every_alert_fires_when_it_should_and_not_otherwise(tmp_path: Path) -> None:
    """All cases in one file: promtool says which of them went wrong."""
    groups = [_case(name, *case) for name, case in CASES.items()]
    content = {"rule_files": [str(MONITORING / "mmsr-rules.yaml")], "evaluation_interval": "1m", "tests": groups}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(content))
    _promtool("test", "rules", str(tmp_path / "tests.yaml"))
    assert {alert for alert, _, _, fires in CASES.values() if fires} == {alert.name for alert in alerts(Patience())}


def _case(name: str, alert: str, given: list[dict[str, str]], at: str, fires: bool) -> dict[str, Any]:
    """promtool compares whole alerts, texts included; whether one fires is what `ALERTS` says."""
    asked = {
        "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
        "eval_time": at,
        "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
    }
    return {"name": name, "interval": "1m", "input_series": given, "promql_expr_test": [asked]}


def _promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
