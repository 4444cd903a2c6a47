"""The names that `import segue` gives: where they come from, and what a type checker sees of them."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import segue

FILE = Path(segue.__file__)


def names_for_type_checkers():
    """name -> module, of the imports under TYPE_CHECKING."""
    (block,) = (node for node in ast.parse(FILE.read_text()).body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    return {alias.asname: node.module for node in block.body for alias in node.names}


def test_type_checkers_see_what_is_there():
    assert names_for_type_checkers() == segue._HOMES
    assert (FILE.parent / "py.typed").is_file()


def test_dir_and_all_agree():
    assert set(dir(segue)) == set(segue.__all__) == {"__version__", *segue._HOMES}
    with pytest.raises(AttributeError, match="no attribute 'Pipelin'"):
        _ = segue.Pipelin


@pytest.mark.parametrize("name", segue._HOMES)
def test_a_name_is_what_its_home_defines_and_says_what_it_is(name):
    value, home = getattr(segue, name), segue._HOMES[name]
    assert value is getattr(importlib.import_module(home), name)
    assert inspect.getdoc(value) and value.__module__.startswith("segue.")
    assert name in segue.__doc__
