"""docs/adapt.md is what the files in docs/adapt say, and its notebook runs."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

DOCS = Path(__file__).parent.parent.parent / "docs"
NOTEBOOK = DOCS / "examples" / "octavize.ipynb"
specification = importlib.util.spec_from_file_location("make_adapt", DOCS / "make_adapt.py")
make_adapt = importlib.util.module_from_spec(specification)
specification.loader.exec_module(make_adapt)


def test_the_page_is_what_was_measured():
    subprocess.run([sys.executable, str(DOCS / "make_adapt.py"), "--check"], check=True)


FILES = sorted((DOCS / "adapt").glob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_another_figure_makes_the_page_and_its_picture_stale(file, tmp_path, capsys):
    docs = tmp_path / "docs"
    for part in ("adapt", "img"):
        shutil.copytree(DOCS / part, docs / part)
    shutil.copy(DOCS / "adapt.md", docs)
    facts = json.loads(file.read_text())
    facts["plain"] += 0.01
    (docs / "adapt" / file.name).write_text(json.dumps(facts))
    assert make_adapt.main(["--docs", str(docs), "--check"]) == 1
    told = capsys.readouterr().out
    assert "adapt.md is not what the files in docs/adapt say" in told
    assert f"adapt_{file.stem}.png is not what" in told
    assert make_adapt.main(["--docs", str(docs)]) == 0
    assert make_adapt.main(["--docs", str(docs), "--check"]) == 0


def test_no_line_is_left_out_of_a_picture():
    lines = {f"planned: {i}": [[1.0, 80.0], [0.5, float(i)]] for i in range(12)}
    for draw in (make_adapt.draw_curves, make_adapt.draw_courses):
        (axes,) = draw(lines).axes
        assert [line.get_label() for line in axes.get_lines()] == list(lines)


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_says():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(cell.outputs for cell in notebook.cells[2:] if cell.cell_type == "code")  # the first one only prepares
    NotebookClient(notebook, timeout=600).execute()
    shown = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    assert "refitted" in shown
    assert "distilled" in shown
