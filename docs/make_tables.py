"""Count every network's parameters and multiply-accumulates, and write the tables: ``python docs/make_tables.py``

Writes docs/networks.json (the counts) and the table between the markers in README.md and docs/networks.md.
``--check`` writes nothing and fails if a table is not what the counts in docs/networks.json say.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import octzoo  # noqa: F401 (registers the names)

HERE = Path(__file__).parent
COUNTS = HERE / "networks.json"
PAGES = (HERE.parent / "README.md", HERE / "networks.md")
START, END = "<!-- networks: made by docs/make_tables.py -->", "<!-- end of networks -->"
ALPHAS = (0.0, 0.125, 0.25, 0.5, 0.75)


def count(name: str) -> dict:
    """Parameters, and multiply-accumulates of convolutions and linear layers at the network's own size, by alpha."""
    macs = {}
    for alpha in ALPHAS:
        model = timm.create_model(name, alpha=alpha, device="meta").eval()
        size = model.pretrained_cfg["input_size"]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, *size, device="meta"))
        macs[str(alpha)] = counter.get_total_flops() // 2
    return {"name": name, "size": size[1], "parameters": sum(p.numel() for p in model.parameters()), "macs": macs}


def table(counts: list[dict]) -> str:
    """The Markdown table of all networks."""
    head = ["network", "input", "parameters, M", *(f"alpha {alpha:g}" for alpha in ALPHAS)]
    rows = [head, ["---"] * 2 + ["--:"] * (len(head) - 2)]
    for record in counts:
        macs = [f"{record['macs'][str(alpha)] / 1e6:,.0f}" for alpha in ALPHAS]
        size = f"{record['size']}x{record['size']}"
        rows.append([f"`{record['name']}`", size, f"{record['parameters'] / 1e6:.2f}", *macs])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def with_table(page: str, text: str) -> str:
    """``page`` with ``text`` between the markers."""
    before, rest = page.split(START)
    return f"{before}{START}\n{text}\n{rest[rest.index(END) :]}"


def main(arguments: list[str]) -> int:
    if "--check" not in arguments:
        names = [name for name in timm.list_models("oct_*") if not name.endswith("_a0")]
        COUNTS.write_text(json.dumps([count(name) for name in names], indent=1) + "\n")
    text = table(json.loads(COUNTS.read_text()))
    stale = [page for page in PAGES if with_table(page.read_text(), text) != page.read_text()]
    if "--check" in arguments:
        print("\n".join(f"{page} is not what {COUNTS.name} says: run docs/make_tables.py" for page in stale))
        return int(bool(stale))
    for page in stale:
        page.write_text(with_table(page.read_text(), text))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
