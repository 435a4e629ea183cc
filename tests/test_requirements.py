"""What is served is locked: every package that the requirements bring, in one version, with its files' hashes."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCKED = re.compile(
    r"(?P<pin>\S+==\S+)(?: ; (?P<marker>[^\\]+?))? \\\n(?P<hashes>(?:    --hash=sha256:[0-9a-f]{64}[ \\]*\n)+)"
)
# torch pins these itself, and which they are depends on where its wheel comes from.
LEFT_TO_TORCH = re.compile(r"(cuda|nvidia)-|triton$")
IMAGE = {
    "python_full_version": "3.11.0",
    "python_version": "3.11",
    "sys_platform": "linux",
    "platform_machine": "x86_64",
}


def lines_of(name: str) -> list[str]:
    """Return a file's lines but for comments."""
    return [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


def requirements(name: str) -> list[Requirement]:
    return [Requirement(line) for line in lines_of(name)]


def locked(name: str) -> list[Requirement]:
    """Return the pins in a lock file, every line of which must be part of one, with hashes, or a comment."""
    text = re.sub(r"^ *#.*\n|^\n", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert LOCKED.sub("", text) == ""
    return [Requirement("; ".join(filter(None, match.group("pin", "marker")))) for match in LOCKED.finditer(text)]


def version(pin: Requirement) -> str:
    [specifier] = pin.specifier
    return specifier.version


def brought(roots: list[Requirement], environment: dict[str, str]) -> dict[NormalizedName, list[Requirement]]:
    """Return what `roots` need and what that needs in turn, as the installed packages say, by name."""
    found: dict[NormalizedName, list[Requirement]] = {}
    waiting = [root for root in roots if root.marker is None or root.marker.evaluate(environment)]
    seen = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        found.setdefault(name, []).append(requirement)
        for extra in requirement.extras or {""}:
            if (name, extra) in seen or LEFT_TO_TORCH.match(name):
                continue
            seen.add((name, extra))
            for line in distribution(name).requires or []:
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate(environment | {"extra": extra}):
                    waiting.append(needed)
    return {name: needs for name, needs in found.items() if not LEFT_TO_TORCH.match(name)}


@pytest.mark.parametrize(
    ("lock", "source", "elsewhere"),
    [
        ("requirements/image.lock", "requirements/image.txt", {"cog", "coglet"}),
        ("requirements/local.lock", "requirements/local.txt", {"torch"}),
    ],
)
def test_a_lock_has_all_that_its_requirements_bring(lock: str, source: str, elsewhere: set[str]) -> None:
    environment = IMAGE if lock == "requirements/image.lock" else {}
    pins = [pin for pin in locked(lock) if pin.marker is None or pin.marker.evaluate(environment)]
    versions = {canonicalize_name(pin.name): version(pin) for pin in pins}
    assert len(versions) == len(pins)
    cog = [pin for pin in requirements("requirements/local.txt") if pin.name == "cog"]
    needs = brought([*requirements(source), *cog], environment)
    assert needs.keys() - versions.keys() == elsewhere, "make lock"
    assert versions.keys() - needs.keys() == set(), "make lock"
    for name, requirements_of_it in needs.items():
        if name not in elsewhere and name != "setuptools":  # which each release of torch wants another of
            assert all(need.specifier.contains(versions[name]) for need in requirements_of_it), f"{name}: make lock"


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("name", ["dev", "evaluate", "tune", "train", "ray"])
def test_what_is_installed_besides_leaves_what_is_locked_as_it_is(name: str, python: str) -> None:
    environment = {"python_full_version": f"{python}.0", "python_version": python}
    pins = [pin for pin in locked("requirements/local.lock") if pin.marker is None or pin.marker.evaluate(environment)]
    versions = {canonicalize_name(pin.name): version(pin) for pin in pins}
    besides = [Requirement(line) for line in lines_of(f"requirements/{name}.txt") if not line.startswith("-r ")]
    locked_too = [pin for pin in besides if canonicalize_name(pin.name) in versions]
    assert [pin for pin in locked_too if versions[canonicalize_name(pin.name)] not in pin.specifier] == []


def test_what_is_installed_is_what_is_locked() -> None:
    pins = [pin for pin in locked("requirements/local.lock") if pin.marker is None or pin.marker.evaluate()]
    assert {pin.name: distribution(pin.name).version for pin in pins} == {pin.name: version(pin) for pin in pins}


def test_cog_reads_the_pins_of_the_images_lock() -> None:
    """Cog keeps `name==version` of a line and drops the rest, so a name must not have a dot nor a pin a marker."""
    config = yaml.safe_load((ROOT / "cog.yaml").read_text(encoding="utf-8"))
    assert config["build"]["python_requirements"] == "requirements/image.lock"
    text = (ROOT / "requirements/image.lock").read_text(encoding="utf-8").replace("\\\n", "")
    read = [
        re.findall(r"(?:([a-zA-Z0-9\-_]+)==([^ ]+)|--find-links=|-f\s+|--extra-index-url=)", line)
        for line in text.splitlines()
        if line and not line.strip().startswith("#")
    ]
    pins = locked("requirements/image.lock")
    assert read == [[(pin.name, version(pin))] for pin in pins] and not any(pin.marker for pin in pins)
    assert not any("." in pin.name for pin in requirements("requirements/image.txt"))


def test_cog_and_its_server_are_those_of_the_tests() -> None:
    versions = {pin.name: version(pin) for pin in requirements("requirements/local.txt")}
    config = yaml.safe_load((ROOT / "cog.yaml").read_text(encoding="utf-8"))
    assert config["build"]["sdk_version"] == versions["cog"]
    for path in (ROOT / "Makefile", ROOT / ".github" / "workflows" / "push.yaml"):
        assert re.findall(r"COGLET_WHEEL\b.*pypi:(\S+)", path.read_text(encoding="utf-8")) == [versions["coglet"]], path


def test_the_two_lists_of_requirements_differ_in_torch_and_cog_alone() -> None:
    image, local = (
        set(lines_of("requirements/image.txt")),
        {line.partition(";")[0] for line in lines_of("requirements/local.txt")},
    )
    assert {line.partition("==")[0] for line in image ^ local} == {"torch", "cog", "coglet"}
    assert all(line.count("==") == 1 and not set(line) & set(" ;[") for line in image)  # Cog's reader misreads more
    for name in ("dev", "ray", "train"):
        assert "-r local.txt" in (ROOT / f"requirements/{name}.txt").read_text(encoding="utf-8")


def test_installing_the_project_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "requirements"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy2)(ROOT / name, tmp_path / name)
    for options in ([], ["--editable"]):
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--disable-pip-version-check"]
        ended = subprocess.run([*command, *options, "."], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert ended.returncode != 0 and "Traceback" not in ended.stderr
        assert "embeddinggemma-cog is a container, not a package, so it cannot be installed: clone it" in ended.stderr
