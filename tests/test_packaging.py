"""The two-step install: the lock is exact, complete by itself, and bound to nobody's package index."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LOCK_LINES = (ROOT / "requirements.lock").read_text().splitlines()
TORCH = "2.13.0"

LIFTED = {"torch", "numpy", "aiohttp", "huggingface-hub", "safetensors", "sounddevice", "bitsandbytes"}
"""Requirements of `moshi` that we do not follow: docs/decisions/0001-lift-upstream-pins.md."""

UNFOLLOWED = {"trl": {"accelerate", "datasets", "pandas", "pyarrow", "transformers"}}
"""Requirements of packages of which tests read single files: `trl`'s losses are run from its source."""

OURS = {"benchmarks", "client", "kernels", "online_align", "recipes", "server"}
DEMO = {
    ROOT / "client" / name for name in ("demo.py", "demo_learning.py", "judge.py", "timeline.py", "load/picture.py")
}
"""`make demo` comes with the development extra; a caller needs none of it."""

OTHER_NAMES = {"hibari": "hibari-tts"}
"""Modules that are not called like their package."""


def pinned(line: str) -> tuple[str, str]:
    """Name and version of a line of the lock, without the systems it is for."""
    name, _, number = line.partition(";")[0].strip().partition("==")
    return name, number


pins = {
    canonicalize_name(name): Version(number)
    for name, number in (pinned(line) for line in LOCK_LINES if line and not line.startswith("#"))
} | {"torch": Version(TORCH)}


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def expand(names: list[str]) -> list[Requirement]:
    """Requirements of the project, with its own extras followed."""
    extras = project()["optional-dependencies"]
    found = [Requirement(line) for name in names for line in extras[name]]
    for own in [each for each in found if each.name == "duologue"]:
        found += expand(sorted(own.extras))
    return [each for each in found if each.name != "duologue"]


def test_every_line_is_a_name_and_an_exact_version() -> None:
    lines = [line for line in LOCK_LINES if line and not line.startswith("#")]
    assert len(lines) > 50
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*(; platform_system == \"Linux\")?", line), line
    assert len({canonicalize_name(line.split("==")[0]) for line in lines}) == len(lines)


def test_nothing_says_where_packages_come_from() -> None:
    for file in ("requirements.lock", "pyproject.toml", "Makefile", ".ci/run"):
        text = (ROOT / file).read_text()
        assert not re.search(r"index-url|find-links|trusted-host|https?://(?!127\.0\.0\.1)", text), file


@pytest.mark.parametrize("extra", ["client", "server", "dev"])
def test_the_lock_has_what_the_extras_ask_for(extra: str) -> None:
    for requirement in [*map(Requirement, project()["dependencies"]), *expand([extra])]:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def imported(path: Path) -> set[str]:
    """First parts of what a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            names.add(node.module.partition(".")[0])
    return names


def foreign(path: Path) -> set[str]:
    """Packages of others that a file needs; `moshi` is in no extra, on purpose (docs/decisions/0001)."""
    names = imported(path) - sys.stdlib_module_names - OURS - {"moshi"}
    return {canonicalize_name(OTHER_NAMES.get(name, name)) for name in names}


@pytest.mark.parametrize(
    ("extra", "files"),
    [
        ("client", set((ROOT / "client").rglob("*.py")) - DEMO),
        ("dev", DEMO),
        ("server", set((ROOT / "server").rglob("*.py"))),
        ("recipes", set((ROOT / "recipes").rglob("*.py"))),
    ],
)
def test_what_is_imported_is_asked_for(extra: str, files: set[Path]) -> None:
    asked = {canonicalize_name(each.name) for each in [*map(Requirement, project()["dependencies"]), *expand([extra])]}
    missing = {f"{path.relative_to(ROOT)} imports {name}" for path in files for name in foreign(path) - asked}
    assert files
    assert not missing


def test_extras_agree_about_versions() -> None:
    lines = {line for extra in project()["optional-dependencies"].values() for line in extra}
    names = [Requirement(line).name for line in lines if not line.startswith("duologue[")]
    assert len(names) == len(set(names))


def test_the_client_needs_neither_torch_nor_moshi() -> None:
    names = {canonicalize_name(each.name) for each in expand(["client"])}
    assert names.isdisjoint({"torch", "moshi", "aiohttp"})


def test_the_lock_is_complete_by_itself() -> None:
    """What `pip check` says of the locked packages, without the pins that are lifted on purpose."""
    problems = {
        f"{name} wants {requirement}, the lock has {pins.get(canonicalize_name(requirement.name))}"
        for name in pins
        for requirement in map(Requirement, _requirements(name))
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if canonicalize_name(requirement.name) not in {"setuptools", *_not_followed(name)}
        if not _met(requirement)
    }
    assert not problems


def _not_followed(name: str) -> set[str]:
    return LIFTED if name == "moshi" else UNFOLLOWED.get(name, set())


def _requirements(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:
        assert name == "hf-xet", "it has no wheel for some processors; everything else must be here"
        return []


def _met(requirement: Requirement) -> bool:
    pin = pins.get(canonicalize_name(requirement.name))
    return pin is not None and requirement.specifier.contains(pin, prereleases=True)


def test_lifted_pins_are_still_pins() -> None:
    """When upstream lifts one, the decision is to be looked at again."""
    violated = {
        canonicalize_name(requirement.name)
        for requirement in map(Requirement, requires("moshi") or [])
        if requirement.marker is None or "extra" not in str(requirement.marker)
        if not _met(requirement)
    }
    assert violated == LIFTED


def test_what_is_installed_is_what_is_locked() -> None:
    installed = {name: Version(version(name).partition("+")[0]) for name in pins if name != "hf-xet"}
    assert installed == {name: pin for name, pin in pins.items() if name != "hf-xet"}


def test_the_makefile_installs_this_torch() -> None:
    assert f"TORCH := torch=={TORCH}\n" in (ROOT / "Makefile").read_text()
    assert f"torch=={TORCH}" in project()["optional-dependencies"]["server"]


@pytest.mark.parametrize("newer", [None, "requirements.lock", "pyproject.toml"])
def test_only_a_change_of_the_requirements_installs_again(tmp_path: Path, newer: str | None) -> None:
    for file in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / file).write_text((ROOT / file).read_text())
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()
    if newer is not None:
        later_s = (tmp_path / ".venv" / ".installed").stat().st_mtime + 10
        os.utime(tmp_path / newer, (later_s, later_s))
    done = subprocess.run(["make", "-n", "test"], cwd=tmp_path, capture_output=True, text=True, check=True)
    planned = done.stdout
    assert ("pip" in planned) is (newer is not None)
    assert "pytest" in planned


@pytest.mark.parametrize("program", ["duologue", "duologue-server"])
def test_programs_are_installed(program: str) -> None:
    done = subprocess.run([Path(sys.prefix) / "bin" / program, "--help"], capture_output=True, text=True, check=True)
    assert f"usage: {program}" in done.stdout
