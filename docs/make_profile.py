"""Profile networks here, and write the figures, the page and its pictures: ``python docs/make_profile.py``

Each of ``PROFILES`` is one run of `octzoo profile`, which writes docs/profile/<name>.json. The parts of docs/profile.md
between the markers are made of that, and docs/img/profile_<name>.png. With names, only those are measured again.
``--page`` measures nothing. ``--check`` writes nothing either: it fails if the page or a picture is not what the files
say.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from generated import between, shown_by

from octzoo.deploy.profile import Profile
from octzoo.deploy.profile_picture import draw
from octzoo.deploy.profile_report import by_kind_table, from_dict, measured, sentences, setup

HERE = Path(__file__).parent
PAGE = HERE / "profile.md"
PROFILES = {
    "resnet50": ["resnet50@0.25", "--batch", "8"],
    "resnet50_fused": ["resnet50@0.25", "--batch", "8", "--fused"],
    "resnet50_fused_one": ["resnet50@0.25", "--batch", "1", "--fused", "--rounds", "30"],
}


def file_of(name: str) -> Path:
    return HERE / "profile" / f"{name}.json"


def picture_of(name: str) -> Path:
    return HERE / "img" / f"profile_{name}.png"


def measure(name: str) -> None:
    command = [sys.executable, "-m", "octzoo_cli", "profile", *PROFILES[name], "--json", str(file_of(name))]
    subprocess.run(command, cwd=HERE.parent, check=True)


def table(network: str, found: Profile) -> str:
    head, *rows, whole = by_kind_table(found)
    low, high = min(found.passes), max(found.passes)
    title = [f"`{network}` ({low:.0f} to {high:.0f} ms)", *head[1:]]
    lines = [title, ["---", *["--:"] * len(head[1:])], *rows, [f"**{cell}**" if cell else "" for cell in whole]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def text(name: str) -> str:
    """One profile as Markdown."""
    facts = json.loads(file_of(name).read_text())
    profiles, ceilings = from_dict(facts)
    machine = f"{facts['cpus']} cores of {facts['cpu']}, PyTorch {facts['packages']['torch']}"
    parts = [
        f"`{facts['command']}` ({machine}; {setup(facts)}; {measured(ceilings)}):",
        *(table(network, found) for network, found in profiles.items()),
        "\n".join(f"> {sentence}  " for sentence in sentences(profiles)),
        f"![Arithmetic, bound and time by kind of work](img/{picture_of(name).name})",
    ]
    return "\n\n".join(parts)


def with_text(page: str, name: str) -> str:
    """``page`` with the profile between the markers of that name."""
    start, end = f"<!-- {name}: made by docs/make_profile.py -->", f"<!-- end of {name} -->"
    return between(page, start, end, f"\n{text(name)}\n")


def figures(name: str) -> str:
    """What tells a picture's figures from others; it is kept inside the picture, for the check."""
    return hashlib.sha256(file_of(name).read_bytes()).hexdigest()


def paint(name: str) -> None:
    facts = json.loads(file_of(name).read_text())
    figure = draw(from_dict(facts)[0], setup(facts))
    figure.savefig(picture_of(name), dpi=110, metadata={"Description": figures(name), "Software": None})


def main(arguments: list[str]) -> int:
    flags, names = [word for word in arguments if word.startswith("--")], list(PROFILES)
    if not flags:
        for name in arguments or names:
            measure(name)
    stale, page = [], PAGE.read_text()
    for name in names:
        if (new := with_text(page, name)) != page:
            stale.append(f"{PAGE} ({name})")
            page = new
        picture = picture_of(name)
        if shown_by(picture) != figures(name):
            stale.append(str(picture))
            if "--check" not in flags:
                paint(name)
    if "--check" in flags:
        print("\n".join(f"{each} is not what docs/profile says: run docs/make_profile.py --page" for each in stale))
        return int(bool(stale))
    PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
