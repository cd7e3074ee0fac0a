"""From an exception to one line and an exit code."""

import sys
from collections.abc import Callable

MISTAKE = 2  # the user's settings, names or files cannot work
FAILURE = 1  # anything else
INTERRUPTED = 130  # as a shell says of Ctrl-C
TERMINATED = 143  # and of SIGTERM
LONGEST = 900


def report(action: Callable[[], None], debug: bool) -> int:
    """Runs `action`; 0, or one line on stderr and the exit code. With `debug` the exception comes through."""
    try:
        action()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as problem:
        if debug:
            raise
        print(f"error: {line(problem)}", file=sys.stderr)
        return getattr(problem, "exit_code", MISTAKE) if is_mistake(problem) else FAILURE
    return 0


def is_mistake(problem: Exception) -> bool:
    """Whether the user can mend it by other settings, names or files."""
    from omegaconf.errors import OmegaConfBaseException

    from octzoo.errors import UserError

    return isinstance(problem, UserError | OmegaConfBaseException)


def line(problem: Exception) -> str:
    """What went wrong, in one line."""
    text = " ".join(str(problem).split())
    text = text if len(text) <= LONGEST else text[:LONGEST] + " ..."
    return text if is_mistake(problem) else f"{type(problem).__name__}: {text} (--debug shows the traceback)"
