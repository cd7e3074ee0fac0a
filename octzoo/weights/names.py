"""Full names of weights, and where they are on the Hub. What a user types reaches no path and no URL unless it fits."""

from __future__ import annotations

import re
from typing import NamedTuple

from octzoo.errors import UserError

ORGANISATION = "octzoo"  # of our own repositories
_NAME = r"(?P<network>oct_\w{1,60})_a0\.(?P<digits>\d{1,10})\.(?P<tag>[a-zA-Z][\w-]{0,49})"
_OWNER = r"[a-zA-Z0-9](?:[\w-]|\.(?!\.)){0,94}"


ANY = "oct_any"  # the network that is told which one it is; its folders are called as their makers like


class FullName(NamedTuple):
    """ "oct_resnet50_a0.25.fb_in1k" in its parts."""

    network: str
    digits: str
    tag: str

    @property
    def alpha(self) -> float:
        return float(f"0.{self.digits}")

    @property
    def untagged(self) -> str:
        """ "oct_resnet50_a0.25"."""
        return f"{self.network}_a0.{self.digits}"


def parse(full_name: str) -> FullName:
    """The parts of a full name. UserError if it is none, or does not write its alpha the one way (.5, not .50)."""
    match = re.fullmatch(_NAME, full_name, re.ASCII)
    if not match:
        raise UserError(f"{full_name!r} is not NETWORK_a0.ALPHA.TAG, such as oct_resnet50_a0.25.fb_in1k")
    found = FullName(**match.groupdict())
    if (plain := found.digits.rstrip("0") or "0") != found.digits:
        right = f"{found.network}_a0.{plain}.{found.tag}"
        raise UserError(f"{full_name}: write alpha 0.{found.digits} as 0.{plain}, {right}")
    return found


def repository(name: str) -> str:
    """The repository that "owner/NAME.TAG" means, or "NAME.TAG", which is one of ours; UserError if it is neither.

    One that has an owner may hold an octavized network, and be called otherwise.
    """
    owner, _, called = name.rpartition("/")
    if "/" in name:
        check_owner(owner)
    if "/" not in name or "_a0." in called:
        parse(called)
    elif not re.fullmatch(_OWNER, called, re.ASCII):
        raise UserError(f"{called!r} is no name of a repository: letters, digits, dots and dashes")
    return f"{owner or ORGANISATION}/{called}"


def check_owner(owner: str) -> str:
    """``owner`` if it can be a user or organisation of the Hub, else UserError."""
    if not re.fullmatch(_OWNER, owner, re.ASCII):
        raise UserError(f"{owner!r} is no user or organisation of the Hub")
    return owner


def check_revision(revision: str) -> str:
    """``revision`` if it can be a tag, branch or commit, else UserError."""
    if not re.fullmatch(_OWNER, revision, re.ASCII):
        raise UserError(f"{revision!r} is no tag, branch or commit: letters, digits, dots and dashes")
    return revision
