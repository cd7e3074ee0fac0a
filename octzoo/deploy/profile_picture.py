"""A picture of profiles: bars of the arithmetic, of the bound and of the time, cut by kind of work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from octzoo.deploy.profile import VIEW, Profile, Row, by_kind, total

COLOURS = {
    "h2h": "#1f4e79",
    "h2l": "#5b9bd5",
    "l2h": "#2e8b8b",
    "l2l": "#7fc8a9",
    "h2l+l2l": "#9fc5e8",
    "l2h+l2l": "#57b09a",
    "linear": "#8e7cc3",
    "norm": "#f1a340",
    "activation": "#fdd49e",
    "pooling": "#d7301f",
    "upsampling": "#fc8d59",
    "add": "#b2182b",
    "copy": "#8c510a",
    "other": "#bdbdbd",
}
MORE_PATHS = "#a8c4c4"  # a convolution of other paths together
BETWEEN = "#e8e8e8"
READABLE = 0.04  # of the axis: a narrower piece has no figure in it


def draw(profiles: Mapping[str, Profile], title: str) -> Figure:
    """The first network, and the second if there is one, as shares of the last one's whole: arithmetic, bound, time.

    The bars of time end where the whole pass does: what lies behind the operations is PyTorch's and Python's own.
    """
    names = list(profiles)
    figure = Figure(figsize=(10.5, 1.5 + 1.25 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=9.5, loc="left")
    seen: dict[str, str] = {}
    measures: dict[str, tuple[str, Callable[[Row], float]]] = {
        "arithmetic": ("{:,.0f} M", lambda row: row.macs / 1e6),
        "bound": ("{:.1f} ms", lambda row: row.bound),
        "time": ("{:.1f} ms", lambda row: row.ms),
    }
    longest, ticks = 0.0, {}
    for i, (measure, (form, figure_of)) in enumerate(measures.items()):
        unit = _whole(profiles[names[-1]], measure, figure_of) / 100
        for j, name in enumerate(reversed(names)):
            y, end = -(i * (len(names) + 0.6) + j), 0.0
            for kind, colour, value in _pieces(profiles[name], measure, figure_of):
                width = value / unit
                axes.barh(y, width, left=end, color=colour, height=0.86, edgecolor="white", linewidth=0.4)
                if width > 100 * READABLE:
                    axes.text(
                        end + width / 2, y, f"{width:.0f}", ha="center", va="center", fontsize=7.5, color=_ink(colour)
                    )
                seen[kind] = colour
                end += width
            axes.text(end + 0.7, y, form.format(end * unit), va="center", fontsize=8.5)
            ticks[y] = f"{measure}   {name}"
            longest = max(longest, end)
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=9)
    axes.set_xlim(0, longest * 1.09)
    axes.set_xlabel(f"% of {names[-1]}'s")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    order = [*COLOURS, *sorted(set(seen) - set(COLOURS))]
    handles = [Patch(color=seen[kind], label=kind) for kind in order if kind in seen]
    figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False, fontsize=8.5)
    return figure


def _pieces(profile: Profile, measure: str, figure_of: Callable[[Row], float]) -> list[tuple[str, str, float]]:
    """Kind, colour and size of the pieces of one bar."""
    rows = [row for row in by_kind(profile.rows) if row.kind != VIEW]
    found = [(row.kind, COLOURS.get(row.kind, MORE_PATHS), figure_of(row)) for row in rows]
    between = _whole(profile, measure, figure_of) - sum(size for _, _, size in found)
    return [*found, ("views, and between operations", BETWEEN, max(between, 0.0))]


def _whole(profile: Profile, measure: str, figure_of: Callable[[Row], float]) -> float:
    """All of a bar: of time, the whole pass as nothing watched it."""
    return median(profile.passes) if measure == "time" else figure_of(total(profile.rows))


def _ink(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 140 else "#333333"
