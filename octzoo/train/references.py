"""Values that a config takes from the environment (${oc.env:NAME}): what is saved has the reference instead."""

import os
import re
from copy import deepcopy
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

_NAME = re.compile(r"\$\{oc\.env:([^},]+)")
SHORTEST = 6  # characters of a value that is looked for anywhere; a shorter one may well stand there by itself


def environment_references(configs: list[str], arguments: list[str]) -> dict[str, str]:
    """Where configs (YAML texts) and command-line arguments take a value from the environment: {dotted key: text}.

    A later config wins, and a flag over all.
    """
    found: dict[str, str] = {}
    given = [leaf for text in configs for leaf in _leaves(yaml.safe_load(text))]
    for key, value in given + _flags(arguments):
        found.pop(key, None)
        if _NAME.search(str(value)):
            found[key] = value
    return found


def with_references(content: dict[str, Any], references: dict[str, str]) -> dict[str, Any]:
    """A resolved config with the references in place of what they gave.

    A value of theirs that came elsewhere by another way (${other.key}, a list that was appended to) is taken out too.
    """
    content = deepcopy(content)
    for key, text in references.items():
        *groups, last = [int(word) if word.isdigit() else word for word in key.split(".")]
        place: Any = content
        for group in groups:
            place = _member(place, group)
        if _same(_member(place, last), _resolved(text, content)):
            place[last] = text
    names = {name for text in references.values() for name in _NAME.findall(text)}
    values = {name: value for name in names if len(value := os.environ.get(name, "")) >= SHORTEST}
    return _without(content, values)


def _without(content: Any, values: dict[str, str]) -> Any:
    if isinstance(content, dict):
        return {key: _without(value, values) for key, value in content.items()}
    if isinstance(content, list):
        return [_without(value, values) for value in content]
    for name, value in values.items():
        content = content.replace(value, f"${{oc.env:{name}}}") if isinstance(content, str) else content
    return content


def _member(place: Any, key: str | int) -> Any:
    """place[key]; None where there is none."""
    if isinstance(place, dict):
        return place.get(key)
    return place[key] if isinstance(place, list) and isinstance(key, int) and key < len(place) else None


def _resolved(text: str, content: dict[str, Any]) -> str:
    """What a reference gives, among the other values; "" where it cannot be told."""
    try:
        return str(OmegaConf.create({**content, "": text})[""])
    except OmegaConfBaseException:
        return ""


def _same(value: Any, text: str) -> bool:
    """Whether a parsed value came from a text."""
    if value is None or not text or isinstance(value, dict | list):
        return False
    if str(value) == text or yaml.safe_load(text) == value:
        return True
    try:
        return float(text) == value
    except ValueError:
        return False


def _flags(arguments: list[str]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for place, word in enumerate(arguments):
        if not word.startswith("--"):
            continue
        name, joined, value = word[2:].partition("=")
        if not joined and place + 1 < len(arguments):
            value = arguments[place + 1]
        content = yaml.safe_load(value) if value.startswith(("{", "[")) and _NAME.search(value) else value
        found += _leaves(content, name)
    return found


def _leaves(content: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of everything that is no dictionary or list."""
    if not isinstance(content, dict | list) or not content:
        return [(prefix, content)]
    members = content.items() if isinstance(content, dict) else enumerate(content)
    dot = f"{prefix}." if prefix else ""
    return [leaf for key, value in members for leaf in _leaves(value, f"{dot}{key}")]
