"""What a user can mend: the base of every error that a setting, a name or a file of theirs causes."""

from collections.abc import Iterable


class UserError(ValueError):
    """Something that cannot work as it was asked for; the text says what, where, and what to do instead."""


def some(names: Iterable[str], most: int = 5) -> str:
    """The first of many names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
