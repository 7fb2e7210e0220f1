"""The README and the other pages say what is there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", load(ROOT / "docs" / "tables.py").PAGES)
def test_tables_are_those_that_the_scripts_made(page: str) -> None:
    text = (ROOT / page).read_text()
    assert text.count("<!-- table: ") == text.count("<!-- end of table -->") > 0
    assert load(ROOT / "docs" / "tables.py").filled(page) == text


def pages() -> list[Path]:
    found = [*ROOT.glob("*.md")]
    for folder in ("docs", "csrc", "models", "benches"):
        found += ROOT.glob(f"{folder}/**/*.md")
    return found


def test_links_lead_somewhere() -> None:
    for page in pages():
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_example_in_the_readme_runs() -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["y"].shape == (8, 64, 56, 56)
    assert names["conv"].weight.grad is not None


def test_examples_of_the_operator_run() -> None:
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "operator.md").read_text(), re.DOTALL
    )
    names: dict = {}
    exec(compile("\n".join(blocks), "operator.md", "exec"), names)
    assert names["output"].shape == names["images"].shape
    assert (names["weights"] == 0).sum() == 4 * 6
    assert names["block"].conv.weight.grad is not None
    assert names["large"].shape == (3, 4, 20, 24)
