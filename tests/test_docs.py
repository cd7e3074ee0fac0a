"""What README and docs say is so: their Python runs, their tables are the counts, their links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def name_of(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text()], ids=name_of)
def test_python_in_the_docs_runs(page):
    """All blocks of a page, in order, in one namespace."""
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, name_of(page), "exec"), namespace)


def test_the_tables_of_networks_are_what_was_counted():
    subprocess.run([sys.executable, str(ROOT / "docs" / "make_tables.py"), "--check"], check=True)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"


def test_readme_commands_name_configurations_that_exist():
    for config in re.findall(r"configs/[\w.]+yaml", "".join(page.read_text() for page in PAGES)):
        assert (ROOT / config).is_file(), config
