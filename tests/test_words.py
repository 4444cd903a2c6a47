"""Words that the field does not use stay out of the code: names, messages, help, docstrings and comments."""

import re
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
FILES = sorted([*SRC.rglob("*.py")])
# Pattern -> what the code says instead.
BANNED = {
    r"\bMETHOD\b": "docs/method.md, section N; or: our first constants",
    r"(?i)\bmend(s|ed|ing)?\b": "hint:",
    r"(?i)(?<![a-z])ears?(?![a-z])": "teacher features; linear classifier",
    r"(?i)(?<![a-z])(hear|hears|heard|hearing|deaf)(?![a-z])": "encode, measure, evaluate; carries nothing above",
    r"(?i)(?<![a-z])listen(s|ed|er|ers|ing)?(?![a-z])": "teacher features, network",
    r"(?i)(?<![a-z])obey(s|ed)?(?![a-z])": "prompt accuracy",
    r"(?i)(?<![a-z])lean(s|ing|ed)?(?![a-z])": "shift toward high noise",
    r"(?i)(?<![a-z])law of times": "timestep distribution",
}
# Lines that must name what older versions wrote, and people who really listen.
ALLOWED = (
    '"latent ears"',  # the name of a random stream decides its draws
    '"online.listener."',  # names of tensors in older states
    '"lean_back"',  # a setting's former name
    "first name: finished runs keep theirs",
    "first name: finished runs keep their keys",
    '"listening.json"',  # files and folders of earlier studies
    '"eval-set": "listening"',
    '"listening": "eval_set"',
    '"ear": LOG_MEL',
    'stored.get("ear")',
    "matters to listeners",
    "and to listen to.",
    "<h2>Listen</h2>",
)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_words_are_the_fields(path):
    name = path.relative_to(SRC).as_posix()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not any(kept in line for kept in ALLOWED):
            for pattern, instead in BANNED.items():
                assert not re.search(pattern, line), f"{name}:{number}: say '{instead}': {line.strip()}"
