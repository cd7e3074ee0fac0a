"""Run docs/examples/octavize.ipynb and keep what it shows: ``python docs/make_notebook.py``"""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

PATH = Path(__file__).parent / "examples" / "octavize.ipynb"


def main() -> None:
    notebook = nbformat.read(PATH, as_version=4)
    NotebookClient(notebook, timeout=600, record_timing=False).execute()
    nbformat.write(notebook, PATH)


if __name__ == "__main__":
    main()
