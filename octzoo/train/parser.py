"""A LightningArgumentParser whose error is one line, with a hint."""

import re
import sys
from argparse import RawDescriptionHelpFormatter
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch import callbacks, loggers
from lightning.pytorch.cli import LightningArgumentParser

LONGEST = 400  # characters of an error message; jsonargparse lists every member of a Union


class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """jsonargparse's help, with the example below it as it is written."""


class Parser(LightningArgumentParser):
    """Parser of one verb (or, with verb="", of the command above the verbs)."""

    def __init__(self, *args: Any, verb: str = "", **kwargs: Any) -> None:
        super().__init__(*args, formatter_class=Formatter, **kwargs)
        self.verb = verb

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints one line with what was probably meant, and exits with 2."""
        place = getattr(ex, "subcommand_parser", None) or self
        text = " ".join(message.split())
        if len(text) > LONGEST:
            text = text[:LONGEST] + " ..."
        sys.stderr.write(f"error: {place.unknown_class(message) or text + place.hint(message)}\n")
        sys.exit(2)

    def hint(self, message: str) -> str:
        """'; did you mean x?' where the message names an option or a key that is nearly one of this parser's."""
        known = [action.dest for action in self._actions]
        for dashes, word in re.findall(r"(--|')([\w.]+)", message):
            if word not in known and (near := get_close_matches(word, known, n=1, cutoff=0.7)):
                return f"; did you mean {dashes.strip(chr(39))}{near[0]}?"
        return ""

    def unknown_class(self, message: str) -> str:
        """The one useful line of what jsonargparse says of a class_path that it cannot find; "" for another message."""
        found = re.search(r'Parser key "([\w.]+)".*Expected a dot import path string: (\w+)', message, re.DOTALL)
        if not found:
            return ""
        near = get_close_matches(found[2], [*callbacks.__all__, *loggers.__all__], n=1)
        return f"{found[1]}: no class {found[2]}" + (f"; did you mean {near[0]}?" if near else "")
