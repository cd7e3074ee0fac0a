"""The model card of a checkpoint folder."""

from __future__ import annotations

from huggingface_hub import ModelCardData

from octzoo.weights.records import Accuracy, Record


def make_card(full_name: str, alpha: float, record: Record | None) -> str:
    """README.md of a folder of imported weights; ``record`` says whose they are, None that only the importer knows."""
    data = ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["timm", "octave-convolution", "image-classification"],
        license=record.licence if record else None,
        datasets=[record.dataset] if record else None,
    )
    whose = (
        f"Weights by {record.owner} ({record.source}, licence {record.licence}), trained on {record.dataset}.\n\n"
        f"{_accuracy(record.accuracy)}" + (f"\n{_accuracy(record.remeasured)}" if record.remeasured else "")
        if record
        else "Imported with `octzoo import`; whose weights these are, and how good, only the importer knows."
    )
    return f"""---
{data.to_yaml()}
---

# {full_name}

An octave network ([Chen et al., 2019](https://arxiv.org/abs/1904.05049)): a share of {alpha:g} of its channels is kept
at half the resolution.

{whose}

```python
import octzoo, timm

model = timm.create_model("local-dir:.", pretrained=True)  # in this folder
```
"""


def _accuracy(a: Accuracy) -> str:
    return f"- top-1 {a.top1:g} %, top-5 {a.top5:g} %, measured by {a.measured_by}, {a.how}; not measured by octzoo"
