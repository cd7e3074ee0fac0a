"""An argparse parser that speaks like the rest of the command: one line on a mistake, an example in the help."""

import argparse
import sys
from typing import NoReturn

from octzoo.cli.errors import MISTAKE


class Parser(argparse.ArgumentParser):
    """``octzoo VERB``'s parser; every verb has --debug."""

    def __init__(self, verb: str, description: str, example: str) -> None:
        super().__init__(
            prog=f"octzoo {verb}",
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} ({self.prog} --help tells more)", file=sys.stderr)
        sys.exit(MISTAKE)
