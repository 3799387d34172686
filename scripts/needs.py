"""Says which packages this Python lacks to run llmtool, and how they come to a machine without a network.

    python scripts/needs.py [PACKAGE ...]      exit 1 where one is missing; these are looked for too

It needs none of them itself.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def names(requirements: list[str]) -> list[tuple[str, str]]:
    """("torch", "2.11") of "torch>=2.11"; "" where any version will do."""
    found = []
    for requirement in requirements:
        match = re.match(r"([\w.-]+)(?:\[.*?\])?\s*(?:[>=]=\s*([\d.]+))?", requirement)
        assert match is not None, requirement
        found.append((match[1], match[2] or ""))
    return found


def numbers(version: str) -> list[int]:
    """2.11.0+cu130 as [2, 11, 0]."""
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])]


def lacking(wanted: list[tuple[str, str]]) -> list[str]:
    """Those that are missing or too old, with why; what a missing one needs itself cannot be known here."""
    found = []
    seen: set[str] = set()
    while wanted:
        name, least = wanted.pop(0)
        if name in seen:
            continue
        seen.add(name)
        try:
            have = metadata.version(name)
        except metadata.PackageNotFoundError:
            found.append(f"{name}{'>=' + least if least else ''}")
            continue
        if least and numbers(have) < numbers(least):
            found.append(f"{name}>={least} (here: {have})")
        needs = [need for need in metadata.requires(name) or [] if ";" not in need]
        wanted += [(needed, "") for needed, _ in names(needs)]
    return found


def main() -> None:
    """Print what is missing, or nothing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    missing = lacking(names(project["dependencies"] + sys.argv[1:]))
    if not missing:
        return
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    print(f"{sys.executable} (Python {version}) lacks: {', '.join(missing)}", file=sys.stderr)
    print(
        "with a network: pip install them. Without one, fetch their wheels elsewhere (and those that they "
        f"need): pip download --only-binary=:all: --python-version {version} --platform "
        "manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --no-deps -d .whl NAME ...; bring the folder "
        "along, and: pip install --no-index --no-deps --target /tmp/site .whl/*.whl; "
        "export PYTHONPATH=/tmp/site",
        file=sys.stderr,
    )
    raise SystemExit(1)


if __name__ == "__main__":
    main()
