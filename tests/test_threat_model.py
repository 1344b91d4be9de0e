"""The threat model names tests that exist, and leaves no letter of STRIDE out for any flow."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "threat-model.md").read_text()
FLOWS = re.findall(r"^## (\d\. .*?)\n(.*?)(?=^## )", PAGE, re.DOTALL | re.MULTILINE)
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize(("file", "name"), NAMED, ids=str)
def test_every_test_it_names_exists(file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert name in defined


@pytest.mark.parametrize(("flow", "text"), FLOWS, ids=[title for title, _ in FLOWS])
def test_every_flow_has_every_letter_each_with_a_test_and_says_what_does_not_hold(flow: str, text: str) -> None:
    rows = re.findall(r"^\| ([STRIDE]) \|(.*)\|$", text, re.MULTILINE)
    assert {letter for letter, _ in rows} == set("STRIDE")
    assert all("`tests/" in row for _, row in rows)
    assert "**Does not hold.**" in text


def test_all_flows_are_there_and_triggers_to_read_it_again() -> None:
    assert len(FLOWS) == 7
    assert len(NAMED) > 50
    assert "## When this page must be read again" in PAGE
