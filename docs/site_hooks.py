"""What the site of the docs has that no file in docs/ holds: pages made from the code, and pages from elsewhere here.

mkdocs calls these functions (mkdocs.yml names this file). `make docs` builds the site.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
REMOTE = re.compile(r'<(?:script|link|img|audio|source|iframe)\b[^>]*?(?:src|href)="((?:https?:)?//[^"]+)"')
BULLET, NUMBER, TABLE = re.compile(r"[-*] "), re.compile(r"\d+\. "), re.compile(r"\|")
LINK = re.compile(r"(\[[^\]\n]*\])\(([^)\s]+)\)")
# The public names by what people look for; a name that is in no list comes last.
CHAPTERS = {
    "Use a model": ("Pipeline", "SuperResolver", "Sampling", "read_settings"),
    "Data": ("load_manifest", "build_cache", "open_cache", "LatentCache", "LatentLoader"),
    "Train": ("load_recipe", "RunConfig", "train"),
    "Parts": ("load_codec", "load_conditioner", "load_teacher", "DiT", "DiTConfig", "preset"),
    "The method in your own loop": (
        "Stage", "Discrepancy", "ConditionGain", "stage_policy", "attach", "StageController", "Policy", "Observation",
        "Decision",
    ),
    "Shared": ("Condition", "ModelOutput", "UserError"),
}  # fmt: skip


def on_config(config):
    """Pages that mkdocs.yml does not order come last in the navigation: none is lost."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    more = [page.name for page in sorted((ROOT / "docs").glob("*.md")) if f": {page.name}\n" not in text]
    if more:
        config.nav.append({"More": more})
    return config


def on_files(files, config):
    """Add the pages that are made here."""
    files.append(File.generated(config, "reference/command-line.md", content=command_line()))
    files.append(File.generated(config, "reference/python.md", content=python_api()))
    for source in outside_pages():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, place_of(source), content=with_links(text, source)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links that lead out of docs/ lead to the same page on the site, and lists are lists as GitHub has them."""
    if page.file.generated_by is None:
        markdown = with_links(markdown, f"docs/{page.file.src_uri}")
    return apart(markdown)


def apart(text: str) -> str:
    """A page with an empty line before each list and table: mkdocs' Markdown wants it, GitHub's does not."""
    lines: list[str] = []
    code = False
    for line in text.splitlines():
        before = lines[-1] if lines else ""
        starts = next((kind for kind in (BULLET, NUMBER, TABLE) if kind.match(line)), None)
        # A line after an item of the same list, or indented as its continuation, goes on with it.
        goes_on = not before or before.startswith(" ") or (starts is not None and starts.match(before))
        if not code and starts is not None and not goes_on:
            lines.append("")
        lines.append(line)
        code ^= line.startswith("```")
    return "\n".join(lines) + "\n"


def on_post_build(config):
    """Refuse pages that load something from elsewhere: the site works without a network."""
    for page in sorted(Path(config.site_dir).rglob("*.html")):
        remote = REMOTE.findall(page.read_text(encoding="utf-8"))
        if remote:
            raise PluginError(f"{page}: loads {remote[0]}")


def links_of(source: str) -> list[str]:
    """Files of the repository that a page links to, relative to its root."""
    found = LINK.findall((ROOT / source).read_text(encoding="utf-8"))
    return [target for _, link in found if (target := target_of(source, link)) is not None]


def target_of(source: str, link: str) -> str | None:
    """The file that a link means, relative to the repository's root; None where it means none."""
    path = link.partition("#")[0]
    if not path or "://" in path:
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    return target if not target.startswith("..") and (ROOT / target).is_file() else None


def outside_pages() -> list[str]:
    """Pages outside of docs/ that pages of the site link to, and those that these link to."""
    todo = [f"docs/{path.relative_to(ROOT / 'docs').as_posix()}" for path in (ROOT / "docs").rglob("*.md")]
    found: list[str] = []
    while todo:
        for target in links_of(todo.pop()):
            if target.endswith(".md") and not target.startswith("docs/") and target not in found:
                found.append(target)
                todo.append(target)
    return sorted(found)


def place_of(source: str) -> str:
    """Where a file of the repository stands on the site."""
    return source.removeprefix("docs/") if source.startswith("docs/") else f"repository/{source}"


def with_links(text: str, source: str) -> str:
    """A page's text with links as the site has them; those to files that are no pages become plain words."""
    here = posixpath.dirname(place_of(source)) or "."

    def change(match: re.Match) -> str:
        words, link = match.groups()
        target = target_of(source, link)
        if target is None:
            return match[0]
        if not target.startswith("docs/") and not target.endswith(".md"):
            return f"{words[1:-1]} (`{target}`)"
        _, hash_, anchor = link.partition("#")
        return f"{words}({posixpath.relpath(place_of(target), here)}{hash_}{anchor})"

    return LINK.sub(change, text)


def command_line() -> str:
    """Every verb with its arguments and options, from the parser itself."""
    from segue.cli.main import VERBS

    parts = ["# The command line\n", "This page is made from the parser: it says what `--help` of each verb says.\n"]
    for name, verb in VERBS.items():
        parts += _verb(f"segue {name}", name, verb)
    return "\n".join(parts)


def _verb(called: str, name: str, verb) -> list[str]:
    from segue.cli.verbs import Group, _Deferred

    if isinstance(verb, Group):
        return [
            f"## {called}\n\n{verb.summary}\n",
            *(line for word, one in verb.verbs.items() for line in _verb(f"{called} {word}", word, one)),
        ]
    command = _Deferred(name, verb).loaded()
    level = "##" if called.count(" ") == 1 else "###"
    shown = [p for p in command.params if p.name != "help" and not getattr(p, "hidden", False)]
    words = [f"{level} {called}\n", f"{_clean(command.help)}\n", "| | meaning | default |", "|---|---|---|"]
    return [*words, *(_row(parameter) for parameter in shown), ""]


def _row(parameter) -> str:
    is_option = parameter.opts[0].startswith("-")
    name = (
        ", ".join(f"`{o}`" for o in parameter.opts) if is_option else f"`{parameter.metavar or parameter.name.upper()}`"
    )
    default = parameter.default
    plain = isinstance(default, (int, float, str, os.PathLike)) and not isinstance(default, bool) and default != ""
    return f"| {name} | {_clean(parameter.help)} | {f'`{default}`' if plain else ''} |"


def _clean(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def python_api() -> str:
    """Every public name, in chapters."""
    from segue import _HOMES

    listed = {name for names in CHAPTERS.values() for name in names}
    chapters = CHAPTERS | {"More": tuple(name for name in _HOMES if name not in listed)}
    parts = ["# Python API\n", "All names are imported from `segue`: `from segue import Pipeline`.\n"]
    for title, names in chapters.items():
        entries = [f"::: {_HOMES[name]}.{name}\n" for name in names if name in _HOMES]
        parts += [f"## {title}\n", *entries] if entries else []
    return "\n".join(parts)
