"""Every dependency has a reason and a version that was tested."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


def declared() -> dict[str, list[Requirement]]:
    """Requirements of pyproject.toml by the heading under which they are explained."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"Always installed": project["dependencies"], **project["optional-dependencies"]}
    return {name: [Requirement(line) for line in lines] for name, lines in groups.items()}


def explained() -> dict[str, dict[str, str]]:
    """Packages and reasons of docs/dependencies.md by heading (its first word for the extras)."""
    groups: dict[str, dict[str, str]] = {}
    for section in (ROOT / "docs/dependencies.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        heading = section.splitlines()[0].split(":")[0]
        rows = re.findall(r"^\| (\S+) \| (.+) \|$", section, flags=re.MULTILINE)
        groups[heading] = {name: reason for name, reason in rows if name != "package"}
    return groups


def test_each_dependency_and_nothing_else_is_explained() -> None:
    names = {group: {canonicalize_name(r.name) for r in lines} for group, lines in declared().items()}
    assert {group: set(rows) for group, rows in explained().items()} == names


def test_each_reason_says_something() -> None:
    for rows in explained().values():
        assert all(len(reason.split()) >= 2 or reason == "types" for reason in rows.values())


def test_the_tested_versions_satisfy_what_is_declared() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pins = {canonicalize_name(r.name): r for r in map(Requirement, lines)}
    for requirement in (r for group in declared().values() for r in group):
        pin = pins[canonicalize_name(requirement.name)]
        version = str(pin.specifier).removeprefix("==")
        assert requirement.specifier.contains(version), f"{requirement} against {pin}"
