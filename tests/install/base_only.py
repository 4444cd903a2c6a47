"""Python as a base install has it: what pyproject.toml's `dependencies` do not bring, nothing can import.

    python base_only.py segue upsample old.wav new.wav
    python base_only.py -c "import segue; segue.Pipeline"

What the base brings is worked out here from pyproject.toml, dependencies of dependencies included.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = {"segue", "segue_lab"}


def normalised(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def asked_for(extras: tuple[str, ...] = ()) -> set[str]:
    """Distributions that pyproject.toml names, for a base install or with extras."""
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    named = set()
    for line in lines:
        requirement = Requirement(line)
        if normalised(requirement.name) == normalised(PROJECT["name"]):
            named |= asked_for(tuple(requirement.extras))
        else:
            named.add(normalised(requirement.name))
    return named


def brought(extras: tuple[str, ...] = ()) -> set[str]:
    """Distributions that an install has: those that are named, and all that they require."""
    todo, have = list(asked_for(extras)), set()
    while todo:
        name = todo.pop()
        if name in have:
            continue
        have.add(name)
        try:
            lines = requires(name) or []
        except PackageNotFoundError:  # asked for on another platform or Python
            continue
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(normalised(requirement.name))
    return have


def modules_of(distributions: set[str]) -> set[str]:
    """Top-level modules that these distributions install."""
    return {
        module
        for module, owners in packages_distributions().items()
        if any(normalised(owner) in distributions for owner in owners)
    }


class Without:
    """A finder of modules that does not see some of them."""

    def __init__(self, finder, hidden: set[str]) -> None:
        self._finder, self._hidden = finder, hidden

    def find_spec(self, name, path=None, target=None):
        """As if what is hidden were not installed."""
        if name.partition(".")[0] in self._hidden:
            return None
        return self._finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)


def hide_all_but_the_base() -> set[str]:
    """Hide what a base install has not; return the names of those modules."""
    hidden = set(packages_distributions()) - modules_of(brought()) - OURS
    for name in [name for name in sys.modules if name.partition(".")[0] in hidden]:
        del sys.modules[name]  # what computed this set
    sys.meta_path[:] = [Without(finder, hidden) for finder in sys.meta_path]
    return hidden


if __name__ == "__main__":
    hide_all_but_the_base()
    what, *arguments = sys.argv[1:]
    if what == "-c":
        exec(arguments[0], {"__name__": "__main__"})
    else:
        from importlib import import_module

        import_module(f"{what}.cli.main").main(arguments)
