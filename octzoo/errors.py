"""What ends a run or a command: errors whose text is all that a user needs to see, and their exit codes."""

from collections.abc import Iterable


class UserError(ValueError):
    """Something that cannot work as it was asked for; the text says what, where, and what to do instead."""

    exit_code = 2


class RunError(UserError):
    """Something outside that ended a run (a full disk, a process that died); the text says what, and the remedy."""

    exit_code = 1


def some(names: Iterable[str], most: int = 5) -> str:
    """The first of many names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
