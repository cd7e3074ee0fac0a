"""Run docs/examples/octavize.ipynb and keep what it shows: ``python docs/make_notebook.py``"""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

PATH = Path(__file__).parent / "examples" / "octavize.ipynb"


def main() -> None:
    notebook = nbformat.read(PATH, as_version=4)
    NotebookClient(notebook, timeout=600, record_timing=False).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # warnings are of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            cell.metadata.pop("execution", None)
    nbformat.write(notebook, PATH)


if __name__ == "__main__":
    main()
