"""Writes docs/settings.md from the dataclasses of a run's config: every setting, its default, and what it means.

python docs/make_settings.py > docs/settings.md
"""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass

from segue.recipes import load_recipe
from segue.training.config import RunConfig

INTRODUCTION = """# Settings

`--set SECTION.NAME=VALUE` of `segue train` changes any of these, and `config.json` of a run folder holds all of them.
This page is made from the code by `docs/make_settings.py`. A value in the column "`stage`" is what the recipe `stage`
sets; other recipes differ in a few lines each (`segue recipes`).
"""


def sections(config: RunConfig) -> dict[str, object]:
    """The names before the dot: the parts of a run's config, and the policy's parts by their own names."""
    parts = {f.name: getattr(config, f.name) for f in fields(config)} | {
        f.name: getattr(config.policy, f.name) for f in fields(config.policy)
    }
    # The static timestep distribution is a dataclass too, but a recipe chooses it, and no setting reaches it.
    return {
        name: part
        for name, part in parts.items()
        if is_dataclass(part) and name != "policy" and not hasattr(part, "to_json")
    }


def described(section: type) -> dict[str, str]:
    """Setting -> what the docstring of its dataclass says under "Attributes:", on one line."""
    text = (section.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^ {8}(\w[\w, ]*): (.*(?:\n {12}.*)*)", text, re.M)
    return {name: re.sub(r"\s+", " ", words).strip() for names, words in entries for name in re.split(r", ", names)}


def shown(value: object) -> str:
    if isinstance(value, tuple):
        value = ",".join(str(part) for part in value)
    if isinstance(value, bool):
        value = str(value).lower()
    return f"`{value}`" if value != "" else "empty"


def page() -> str:
    defaults, stage = sections(RunConfig("")), sections(load_recipe("stage"))
    parts = [INTRODUCTION]
    for name, section in defaults.items():
        summary = (section.__doc__ or "").strip().splitlines()[0]
        rows = [f"## {name}", summary, "", "| setting | default | `stage` | meaning |", "|---|---|---|---|"]
        words = described(type(section))
        for setting in (field.name for field in fields(section)):
            default, chosen = getattr(section, setting), getattr(stage[name], setting)
            meaning = words.get(setting, "").replace("|", "\\|")
            rows.append(
                f"| `{name}.{setting}` | {shown(default)} | {shown(chosen) if chosen != default else ''} | {meaning} |"
            )
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
