"""README and docs: links lead to files and headings that are there, lines are short, and words are the field's."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
WIDTH, README_LINES = 120, 120
# The tables are made by the laboratory.
PROSE = [page for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]]
# Words of our own that readers had to look up -> what the field says. The log is history, and keeps its names.
BANNED = {
    r"METHOD\b": "docs/method.md, section N; or: our first constants",
    r"mend:": "hint:",
    r"\b(dis)?obey(s|ed|ing)?\b": "prompt accuracy; follows its prompt",
    r"\bears?\b": "teacher features; linear classifier",
    r"\barms?\b": "variant, recipe",
    r"\bdeaf\b": "carries nothing above",
    r"\b(the|a|its) judges?\b|\bjudged\b": "note classifier; classified",
    r"\b(ssl|decayed|decaying) guidance\b|\bguidance\.(every|weight|space|law|hidden|tap)\b": "alignment",
    r"\blaws? of (training )?times\b|\btimesteps\.law\b": "timestep distribution",
    r"\blean(s|ing|ed)?\b": "shift toward high noise",
    r"\b(is|are|was|were) heard\b|\bhears?\b|\blistens\b": "measures; teacher features",
}


def anchors(page):
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings} | {
        *re.findall(r'<a id="([^"]+)">', text)
    }


def prose(page):
    """(number, line) of a page outside code blocks."""
    code = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            code = not code
        elif not code and not line.startswith(("    ", "<a id=")):
            yield number, line


def too_long(line):
    """Whether a line is longer than the width though it could be broken: no row of a table, no single long word."""
    if line.lstrip().startswith(("|", "![", "<")):
        return False
    whole = re.sub(r"`[^`]*`|\[[^\]]*\]\([^)]*\)", lambda kept: kept[0].replace(" ", "_"), line)
    return len(line) > WIDTH and len(whole.split()) > 1


def named(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    broken = []
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", page.read_text(encoding="utf-8"))
    for link in (inline or tag for inline, tag in links):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert not broken, f"{page.name}: {broken}"


def test_the_check_can_fail():
    assert "links-inside" not in anchors(ROOT / "README.md") and "results" in anchors(ROOT / "README.md")
    assert too_long("a word " * 20) and not too_long("| a word " * 20) and not too_long("word" * 40)
    assert any(re.search(pattern, "both arms obey the judge") for pattern in BANNED)


def test_readme_fits_two_screens():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


@pytest.mark.parametrize("page", PROSE, ids=named)
def test_lines_are_wrapped(page):
    long = [f"line {number}: {line[:60]}..." for number, line in prose(page) if too_long(line)]
    assert not long, f"{page.name} has lines over {WIDTH} columns: {long}"


@pytest.mark.parametrize("page", [p for p in PROSE if p.name not in ("log.md", "CHANGELOG.md")], ids=named)
def test_words_are_the_fields(page):
    found = [
        f"line {number}: '{word[0]}' (say: {instead})"
        for number, line in prose(page)
        for pattern, instead in BANNED.items()
        for word in re.finditer(pattern, line, 0 if pattern.startswith("METHOD") else re.I)
    ]
    assert not found, f"{page.name}: {found}"


def test_the_table_of_rooms_is_what_the_walls_allow():
    spec = importlib.util.spec_from_file_location("walls", ROOT / "tests/test_walls.py")
    walls = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(walls)
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|", text, re.M))
    free = {"types", "files", "hub", "memory", "devices", "_version", "provenance", "__init__"}
    assert set(table) == set(walls.ALLOWED) - free
    written = {room: set(cell.split(", ")) - {"nothing"} for room, cell in table.items()}
    whole = {"training", "recipes", "workflows", "cli"}  # said in words
    assert {room: written[room] for room in written if room not in whole} == {
        room: walls.ALLOWED[room] for room in written if room not in whole
    }


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    missing = [
        page.name for page in ROOT.glob("docs/*.md") if page.name != "index.md" and f"({page.name})" not in index
    ]
    assert not missing


@pytest.mark.parametrize("page", PROSE, ids=named)
def test_files_and_tests_that_a_page_names_exist(page):
    words = re.findall(r"`([^`\s]+)`", page.read_text(encoding="utf-8"))
    sources = {path: path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/*.py")}
    missing = []
    for word in words:
        path, _, test = word.partition("::")
        if test and not any(f"def {test}(" in text for text in sources.values()):
            missing.append(word)
        if re.fullmatch(r"[\w/]+\.py", path) and not any(
            list(ROOT.glob(f"{room}/**/{path.removeprefix(room + '/')}")) or (ROOT / path).exists()
            for room in ("src", "tests", "benchmarks", "examples", "docs")
        ):
            missing.append(word)
    assert not missing, f"{page.name} names what is not there: {missing}"


def test_the_settings_page_is_what_the_code_says_and_whole():
    """After a change of a setting: python docs/make_settings.py > docs/settings.md"""
    spec = importlib.util.spec_from_file_location("make_settings", ROOT / "docs/make_settings.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    page = made.page()
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == page
    assert not re.findall(r"^.*\|  \|$", page, re.M), "settings without a meaning in the docstring of their dataclass"
    assert "`train.batch_size`" in page and "`probe.space`" in page
