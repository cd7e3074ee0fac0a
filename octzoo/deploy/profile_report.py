"""What profiles say: a table by kind of work, one by layer, and why a network is as fast as it is, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median, quantiles
from typing import Any

from octzoo.deploy.ceilings import Ceilings
from octzoo.deploy.profile import VIEW, Profile, Row, by_kind, is_path, multiplies, total

COLUMNS = ["calls", "MACs M", "params M", "out MB", "moved MB", "ms", "of ms", "of MACs", "bound ms", "ms/bound"]
FEW = 0.01  # of the peer's time: a kind that changed by less is not worth a word

STEADY = 1.15  # the third quartile of a pass over the first, where nothing else runs


def by_kind_table(profile: Profile) -> list[list[str]]:
    """A network's kinds of work: the head, one row a kind, and the sums."""
    whole = total(profile.rows)
    rows = [[row.kind, *_cells(row, whole)] for row in by_kind(profile.rows)]
    return [["work", *COLUMNS], *rows, ["all", *_cells(whole, whole)]]


def layer_table(profile: Profile) -> list[list[str]]:
    """A network layer by layer, in order of execution: the head, one row a kind of work in a layer, and the sums."""
    whole = total(profile.rows)
    rows = [[row.layer or "(the network)", row.kind, *_cells(row, whole)] for row in profile.rows if row.kind != VIEW]
    return [["layer", "work", *COLUMNS], *rows, ["all", "", *_cells(whole, whole)]]


def sentences(profiles: Mapping[str, Profile]) -> list[str]:
    """Why the first network is slow or fast beside the second, or where the time of a single one goes."""
    (name, ours), *others = profiles.items()
    if not others:
        return [*_alone(name, ours), *_disturbed(profiles)]
    (peer, theirs), *_ = others
    a, b = total(ours.rows), total(theirs.rows)
    work, their_work = _multiplications(ours), _multiplications(theirs)
    passes, their_passes = median(ours.passes), median(theirs.passes)
    return [
        f"{name} takes {_ratio(passes, their_passes)} of the time of {peer} ({passes:.1f} against {their_passes:.1f} "
        f"ms a batch) for {_ratio(a.macs, b.macs)} of its arithmetic.",
        f"Convolutions and matrix products take {_ratio(work.ms, their_work.ms)} of the peer's ({work.ms:.1f} against "
        f"{their_work.ms:.1f} ms); everything else went from {their_passes - their_work.ms:.1f} to "
        f"{passes - work.ms:.1f} ms{_changes(ours, theirs)}.",
        *_rates(ours, theirs),
        f"At this machine's ceilings these operations take {_ratio(a.bound, b.bound)} of the peer's at least "
        f"({a.bound:.1f} against {b.bound:.1f} ms), and {_ratio(work.bound, their_work.bound)} "
        f"({work.bound:.1f} against {their_work.bound:.1f} ms) if every other pass over memory became part of a "
        "convolution.",
        *_disturbed(profiles),
    ]


def setup(facts: Mapping[str, Any]) -> str:
    """What was measured, in one line, from what `octzoo profile` writes to its file."""
    shape = "x".join(map(str, facts["batch"]))
    threads = f"{facts['threads']} thread{'s' * (facts['threads'] > 1)}"
    where = threads if facts["device"] == "cpu" else facts["gpus"][0]
    form = "float32, channels last" + (", fused" if facts["fused"] else "")
    return f"{shape}, {form}, {facts['device']}, {where}, medians of {facts['rounds']}"


def measured(ceilings: Ceilings) -> str:
    """The ceilings in one line."""
    rates = [rate / 1e9 for _, rate in ceilings.bandwidth]
    return (
        f"ceilings, measured here: {2 * ceilings.macs / 1e9:,.0f} GFLOP/s ({ceilings.fastest}), "
        f"{max(rates):,.0f} GB/s in cache, {rates[-1]:,.0f} GB/s outside"
    )


def as_dict(profiles: Mapping[str, Profile], ceilings: Ceilings) -> dict[str, Any]:
    """All of it, ready for JSON; ``from_dict`` reads it."""
    return {
        "ceilings": {
            **ceilings._asdict(),
            "macs": round(ceilings.macs),
            "bandwidth": [[size, round(rate)] for size, rate in ceilings.bandwidth],
        },
        "columns": list(Row._fields),
        "networks": {
            name: {"passes_ms": [round(ms, 3) for ms in found.passes], "rows": [_rounded(row) for row in found.rows]}
            for name, found in profiles.items()
        },
    }


def from_dict(facts: Mapping[str, Any]) -> tuple[dict[str, Profile], Ceilings]:
    """What ``as_dict`` was given, but for digits that were rounded off."""
    ceilings = facts["ceilings"]
    bandwidth = tuple((size, rate) for size, rate in ceilings["bandwidth"])
    profiles = {
        name: Profile(tuple(Row(*row) for row in found["rows"]), tuple(found["passes_ms"]))
        for name, found in facts["networks"].items()
    }
    return profiles, Ceilings(ceilings["macs"], ceilings["fastest"], bandwidth)


def _cells(row: Row, whole: Row) -> list[str]:
    return [
        f"{row.calls:,}",
        f"{row.macs / 1e6:,.1f}" if row.macs else "",
        f"{row.parameters / 1e6:.3f}" if row.parameters else "",
        f"{row.written / 1e6:,.1f}" if row.written else "",
        f"{row.moved / 1e6:,.1f}" if row.moved else "",
        f"{row.ms:.2f}",
        f"{100 * row.ms / whole.ms:.1f}",
        f"{100 * row.macs / whole.macs:.1f}" if row.macs else "",
        f"{row.bound:.2f}" if row.bound else "",
        f"{row.ms / row.bound:.1f}" if row.bound >= 0.005 else "",
    ]


def _multiplications(profile: Profile) -> Row:
    return total(row for row in profile.rows if multiplies(row))


def _rest(profile: Profile) -> dict[str, float]:
    """Milliseconds of each kind of work that is not arithmetic, and of what lies between operations."""
    found = {row.kind: row.ms for row in by_kind(profile.rows) if not multiplies(row)}
    return {**found, "between operations": median(profile.passes) - total(profile.rows).ms}


def _changes(ours: Profile, theirs: Profile) -> str:
    """ ": add +12.1, pooling +9.8": the kinds that changed most, up to four."""
    now, then = _rest(ours), _rest(theirs)
    changed = {kind: now.get(kind, 0) - then.get(kind, 0) for kind in {**now, **then}}
    least = FEW * median(theirs.passes)
    found = sorted((kind for kind, ms in changed.items() if abs(ms) > least), key=lambda kind: -abs(changed[kind]))
    return ": " + ", ".join(f"{kind} {changed[kind]:+.1f}" for kind in found[:4]) if found else ""


def _rates(ours: Profile, theirs: Profile) -> list[str]:
    """What a multiply-accumulate costs in each path, against the peer's convolutions."""
    peer = total(row for row in theirs.rows if is_path(row.kind))
    high = total(row for row in ours.rows if row.kind == "h2h")
    others = total(row for row in ours.rows if is_path(row.kind) and row.kind != "h2h")
    if not (peer.ms and high.macs and others.macs):
        return []
    costs = [_ratio(row.ms / row.macs, peer.ms / peer.macs) for row in (high, others)]
    return [
        f"For the same arithmetic its h2h convolutions take {costs[0]} of the peer's time, the other paths {costs[1]}."
    ]


def _alone(name: str, found: Profile) -> list[str]:
    work, whole, passes = _multiplications(found), total(found.rows), median(found.passes)
    rest = sorted(_rest(found).items(), key=lambda each: -each[1])
    worst = max(by_kind(found.rows), key=lambda row: row.ms - row.bound)
    return [
        f"{name} takes {passes:.1f} ms a batch: convolutions and matrix products {work.ms:.1f}, everything else "
        f"{passes - work.ms:.1f} ({', '.join(f'{kind} {ms:.1f}' for kind, ms in rest[:3])}).",
        f"At this machine's ceilings its operations take {whole.bound:.1f} ms at least; most is lost in {worst.kind}, "
        f"{worst.ms:.1f} ms where {worst.bound:.1f} would do.",
    ]


def _disturbed(profiles: Mapping[str, Profile]) -> list[str]:
    """A warning, where the middle half of a network's passes lies too far apart."""
    for name, found in profiles.items():
        low, _, high = quantiles(found.passes, n=4) if len(found.passes) > 3 else (1, 1, 1)
        if high > STEADY * low:
            return [
                f"Something else ran on this machine ({name}: quartiles {low:.1f} and {high:.1f} ms): measure again."
            ]
    return []


def _ratio(a: float, b: float) -> str:
    return f"{a / b:.2f}" if b else "none"


def _rounded(row: Row) -> list[Any]:
    return [round(figure, 5) if isinstance(figure, float) else figure for figure in row]
