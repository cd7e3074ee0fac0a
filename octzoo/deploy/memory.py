"""How much memory one run takes at its peak."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], Any], device: str = "cpu") -> int:
    """Bytes of the tensors that ``run`` has at once, at the most, beside those that were there before it.

    On a CPU the sum over what PyTorch's profiler saw allocated and freed, exact and the same every time; oneDNN's own
    scratch space is not PyTorch's and is not in it. On a GPU what CUDA's allocator says.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [event for event in events if event["name"] == "[memory]" and event["args"]["Device Type"] == 0]
    now = peak = 0
    for change in sorted(changes, key=lambda event: event["ts"]):
        now += change["args"]["Bytes"]
        peak = max(peak, now)
    return peak
