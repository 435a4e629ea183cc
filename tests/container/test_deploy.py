"""What cannot run here: workflows, Compose and Kubernetes, held against their schemas and against what they start."""

import ipaddress
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
from container.make_openapi import ROOT
from service import Service

MANIFESTS: list[dict[str, Any]] = list(
    yaml.safe_load_all((ROOT / "container" / "kubernetes.yaml").read_text(encoding="utf-8"))
)
COMPOSE = yaml.safe_load((ROOT / "container" / "compose.yaml").read_text(encoding="utf-8"))
[COMPOSED] = COMPOSE["services"].values()
POD: dict[str, Any] = MANIFESTS[0]["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))


@pytest.mark.parametrize(
    ("schema", "path"),
    [("github-workflows", path) for path in WORKFLOWS] + [("compose-spec", ROOT / "container" / "compose.yaml")],
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
    assert POD["enableServiceLinks"] is False


def test_every_probe_runs_the_probe_with_options_that_it_has() -> None:
    commands = [CONTAINER[f"{name}Probe"]["exec"]["command"] for name in ("startup", "liveness", "readiness")]
    commands.append(COMPOSED["healthcheck"]["test"][1:])
    source = (ROOT / "container" / "probe.py").read_text(encoding="utf-8")
    for python, script, *options in commands:
        assert (python, script) == ("python", "container/probe.py")
        assert all(f'"{option}"' in source for option in options if option.startswith("--"))
    assert commands[1][2:] == ["--live"] and commands[2][2:] == [] and commands[3][2:] == ["--end", "1"]


def test_kubernetes_asks_for_all_of_the_restricted_standard() -> None:
    """Each field that the Pod Security Standard `restricted` wants, and a root file system that nobody writes."""
    pod = POD["securityContext"]
    assert (
        pod["runAsNonRoot"] is True and pod["runAsUser"] > 10_000 and pod["seccompProfile"]["type"] == "RuntimeDefault"
    )
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & POD.keys()
    assert POD["automountServiceAccountToken"] is False
    assert all(volume["emptyDir"]["sizeLimit"] for volume in POD["volumes"])
    assert {"memory", "ephemeral-storage"} <= CONTAINER["resources"]["limits"].keys()


def test_compose_gives_no_rights_and_sets_limits() -> None:
    assert int(COMPOSED["user"].split(":")[0]) > 10_000 and COMPOSED["read_only"] is True
    assert COMPOSED["cap_drop"] == ["ALL"] and COMPOSED["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "devices", "network_mode", "pid", "ipc", "volumes"} & COMPOSED.keys()
    assert COMPOSED["mem_limit"] and COMPOSED["pids_limit"]
    assert all(port.startswith("127.0.0.1:") for port in COMPOSED["ports"])


def test_both_start_the_same_server_for_the_same_user_in_the_same_folders() -> None:
    assert COMPOSED["command"] == CONTAINER["args"] == ["python", "-m", "scripts.server", "--host", "0.0.0.0"]
    pod = POD["securityContext"]
    assert COMPOSED["user"] == f"{pod['runAsUser']}:{pod['runAsGroup']}"
    mounts = dict(mount.split(":") for mount in COMPOSED["tmpfs"])
    assert mounts.keys() == {mount["mountPath"] for mount in CONTAINER["volumeMounts"]} == {"/tmp", "/cache"}
    environment = {each["name"]: each["value"] for each in CONTAINER["env"]}
    assert environment == {name: str(value) for name, value in COMPOSED["environment"].items()}
    # Docker mounts noexec unless told otherwise, and Triton loads what it has compiled from its cache in HOME.
    assert environment["HOME"] == environment["WEIGHTS_CACHE"] == "/cache" and "exec" in mounts["/cache"].split(",")


def test_the_image_lets_that_user_reach_python() -> None:
    """On its CUDA images Cog installs Python below /root, whose mode is 700."""
    config = yaml.safe_load((ROOT / "cog.yaml").read_text(encoding="utf-8"))
    assert config["build"]["run"] == ["chmod o+x /root"]


def test_the_network_policy_keeps_the_server_from_private_addresses() -> None:
    [policy] = [manifest["spec"] for manifest in MANIFESTS if manifest["kind"] == "NetworkPolicy"]
    assert policy["podSelector"]["matchLabels"] == MANIFESTS[0]["spec"]["template"]["metadata"]["labels"]
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    [port] = policy["ingress"][0]["ports"]
    assert port["port"] == CONTAINER["ports"][0]["name"]
    blocks = [rule["ipBlock"] for egress in policy["egress"] for rule in egress["to"] if "ipBlock" in rule]
    kept_out = [ipaddress.ip_network(network) for block in blocks for network in block["except"]]
    for address in ("10.96.0.1", "127.0.0.1", "169.254.169.254", "172.20.1.1", "192.168.1.1", "100.64.0.1", "0.0.0.0"):
        assert any(ipaddress.ip_address(address) in network for network in kept_out), address
    for address in ("::1", "fd00:ec2::254", "fe80::1", "::ffff:10.0.0.1"):
        assert any(ipaddress.ip_address(address) in network for network in kept_out), address


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_the_least_rights_and_names_commits(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in text and "github.event" not in text
    for use in re.findall(r"uses: (.*)", text):
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use), use
    assert not re.search(r"\bgit\+https://\S+@(?![0-9a-f]{40}\b)", text)
    for job in workflow["jobs"].values():
        assert "permissions" not in job and "secrets" not in json.dumps(job.get("env", {}))
        for step in job["steps"]:
            if "checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False
            assert "${{" not in step.get("run", "")
            if "pip " in step.get("run", ""):
                assert "--no-deps" in step["run"] and "--require-hashes" in step["run"]


def test_only_the_push_knows_secrets() -> None:
    assert [path.name for path in WORKFLOWS if "secrets." in path.read_text(encoding="utf-8")] == ["push.yaml"]


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


def test_plain_make_lists_the_targets_on_one_page() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    groups = re.findall(r"^(\w+)$", shown, re.MULTILINE)
    assert groups == ["Try", "Serve", "Measure", "Test", "Ship"]
    listed = set(re.findall(r"^  ([a-z-]+)  ?", shown, re.MULTILINE))
    steps = {"help", "tune-named", "tune-checked", "named", "clients", "test-clients-newest", "test-clients-held"}
    steps |= {"example-named"}
    declared = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)$", makefile, re.MULTILINE)
    assert declared and listed | steps == set(declared[1].replace("\\", " ").split()) and not listed & steps
    lines = shown.splitlines()
    assert len(lines) < 40 and max(map(len, lines)) <= 80


def test_the_dashboard_loads_and_asks_only_for_metrics_that_there_are() -> None:
    dashboard = json.loads((ROOT / "container" / "grafana.json").read_text(encoding="utf-8"))
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
