"""What cannot run here: workflows, Compose and Kubernetes, held against their schemas and against what they start."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.models.dashboard import Dashboard

from api.metrics import COUNTERS, HISTOGRAMS, Metrics
from scripts.make_openapi import ROOT
from service import Service

MANIFESTS: list[dict[str, Any]] = list(
    yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text(encoding="utf-8"))
)
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))


@pytest.mark.parametrize(
    ("schema", "path"),
    [("github-workflows", path) for path in WORKFLOWS] + [("compose-spec", ROOT / "deploy" / "compose.yaml")],
    ids=lambda value: value.name if isinstance(value, Path) else value,
)
def test_a_file_keeps_to_its_schema(schema: str, path: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest["kind"])
def test_a_manifest_keeps_to_kubernetes_schema(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, "1.34", strict=True)


def test_kubernetes_sets_no_variables_of_its_own() -> None:
    pods = [manifest["spec"]["template"]["spec"] for manifest in MANIFESTS if "template" in manifest["spec"]]
    assert pods and all(pod["enableServiceLinks"] is False for pod in pods)


def test_every_probe_runs_the_probe_with_options_that_it_has() -> None:
    [container] = MANIFESTS[0]["spec"]["template"]["spec"]["containers"]
    [service] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))["services"].values()
    commands = [container[f"{name}Probe"]["exec"]["command"] for name in ("startup", "liveness", "readiness")]
    commands.append(service["healthcheck"]["test"][1:])
    source = (ROOT / "scripts" / "probe.py").read_text(encoding="utf-8")
    for python, script, *options in commands:
        assert (python, script) == ("python", "scripts/probe.py")
        assert all(f'"{option}"' in source for option in options if option.startswith("--"))
    assert commands[1][2:] == ["--live"] and commands[2][2:] == [] and commands[3][2:] == ["--end", "1"]


def test_the_workflows_run_targets_that_make_has() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    runs = [
        step["run"]
        for path in WORKFLOWS
        for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    assert ".ci/run" in runs
    targets = re.findall(r"^make (\w+)", "\n".join(runs), re.MULTILINE)
    assert targets and all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    assert any("cog-safe-push" in run for run in runs)


def test_the_dashboard_loads_and_asks_only_for_metrics_that_there_are() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana.json").read_text(encoding="utf-8"))
    Dashboard.from_json(dashboard)  # Grafana's own model of it
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 8
    exposed = set(re.findall(r"^# TYPE (\w+)", Metrics(Service("small")).exposed().decode(), re.MULTILINE))
    exposed |= {f"{name}_total" for name in COUNTERS} | HISTOGRAMS.keys() | {"te_queue_tokens"}
    for panel in panels:
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "5m")
            assert promql_parser.parse(expression), panel["title"]
            for name in re.findall(r"(\w+)\{", expression):
                assert re.sub(r"_(bucket|count|sum)$", "", name) in exposed or name in exposed, name
