"""Other people's parameter names -> ours, by structure.

They store an octave convolution as up to four tensors (h2h, h2l, l2h, l2l) and a batch norm as two (h, l). Ours is one
ordinary tensor: rows are high outputs, then low ones; columns high inputs, then low ones. So a name says where a tensor
goes, and its shape how much it fills.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

Rules = Sequence[tuple[str, str]]

# The authors' pre-activation ResNets (``utils/symbol``): stages L2 to L5, blocks from B01, conv4 is the shortcut.
SYMBOL_RESNET: Rules = (
    (r"conv1_conv_", "stem.conv."),
    (r"conv1_bn_", "stem.norm."),
    (r"L(\d)_B(\d+)_conv4_bn", "stages.{0-2}.{1-1}.shortcut.0."),
    (r"L(\d)_B(\d+)_conv4_conv", "stages.{0-2}.{1-1}.shortcut.1."),
    (r"L(\d)_B(\d+)_conv(\d)_bn", "stages.{0-2}.{1-1}.norms.{2-1}."),
    (r"L(\d)_B(\d+)_conv(\d)_conv", "stages.{0-2}.{1-1}.convs.{2-1}."),
    (r"L(\d)_B(\d+)_se_fc(\d)", "stages.{0-2}.{1-1}.se.fc{2}."),
    (r"tail_bn_", "norm."),
    (r"classifier_", "head.fc."),
)
# d-li14/octconv.pytorch: timm's names, with a module of their own around each convolution and norm.
DLI14_RESNET: Rules = (
    (r"layer(\d)\.(\d+)\.conv(\d)\.conv\.conv", "layer{0}.{1}.conv{2}."),
    (r"layer(\d)\.(\d+)\.conv(\d)\.bn", "layer{0}.{1}.bn{2}."),
    (r"layer(\d)\.(\d+)\.downsample\.0\.conv\.conv", "layer{0}.{1}.downsample.0."),
    (r"layer(\d)\.(\d+)\.downsample\.0\.bn", "layer{0}.{1}.downsample.1."),
    (r"(conv1|bn1|fc)\.", "{0}."),
)

_KINDS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}
_PART = re.compile(r"^[-_](?:(?P<source>[hl])2)?(?P<target>[hl])[_.]")


class NamesError(ValueError):
    """Names or shapes that do not fit together; the text lists them."""


def our_name(name: str, rules: Rules) -> tuple[str, str, str]:
    """Where a foreign tensor goes: (our key, "h" or "l" of its columns, "h" or "l" of its rows)."""
    bare = re.sub(r"^(arg|aux):|^module\.", "", name)
    for pattern, ours in rules:
        if match := re.match(pattern, bare):
            rest = bare[match.end() :]
            part = _PART.match(rest)
            kind = rest[part.end() :] if part else rest
            prefix = re.sub(r"\{(\d)(?:-(\d))?\}", lambda m: _group(match, int(m[1]), int(m[2] or 0)), ours)
            source, target = ((part["source"] or "h"), part["target"]) if part else ("h", "h")
            return prefix + _KINDS.get(kind, kind), source, target
    raise NamesError(f"no rule for the name {name!r}")


def _group(match: re.Match[str], index: int, less: int) -> str:
    text = match.group(index + 1)
    return str(int(text) - less) if less else text


def to_ours(
    foreign: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]], rules: Rules
) -> dict[str, np.ndarray]:
    """Foreign tensors -> a state dict of ours.

    Args:
        foreign: name -> array.
        shapes: our key -> shape; keys ending in "num_batches_tracked" need no source.
        rules: one of the tables above.

    Raises:
        NamesError: a name without a rule, two tensors in one place, a shape that does not fit, or a gap.
    """
    wanted = {key: tuple(shape) for key, shape in shapes.items() if not key.endswith("num_batches_tracked")}
    filled = {key: np.zeros(shape, bool) for key, shape in wanted.items()}
    ours: dict[str, np.ndarray] = {}
    for name, array in foreign.items():
        key, source, target = our_name(name, rules)
        if key not in wanted:
            raise NamesError(f"{name} would be {key}, which this network does not have")
        region = _region(array.shape, wanted[key], source, target)
        if region is None or filled[key][region].shape != _same_rank(array, wanted[key]).shape:
            raise NamesError(f"{name} of shape {array.shape} does not fit into {key} of shape {wanted[key]}")
        if filled[key][region].any():
            raise NamesError(f"{name} falls where another tensor of {key} already is")
        ours.setdefault(key, np.zeros(wanted[key], array.dtype))[region] = _same_rank(array, wanted[key])
        filled[key][region] = True
    if gaps := sorted(key for key, mask in filled.items() if not mask.all()):
        raise NamesError(f"nothing, or not enough, for {_some(gaps)}")
    return ours


def _same_rank(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A fully connected weight [O, I] as the 1x1 convolution [O, I, 1, 1] that we have in its place."""
    return array.reshape(array.shape + (1,) * (len(shape) - array.ndim))


def _region(part: Sequence[int], whole: Sequence[int], source: str, target: str) -> tuple[slice, ...] | None:
    """The rows and columns that a part fills: from the start if high, up to the end if low."""
    letters = (target, source)[: min(len(part), 2)]
    if any(n > m for n, m in zip(part, whole)):
        return None
    return tuple(slice(0, n) if c == "h" else slice(m - n, m) for c, n, m in zip(letters, part, whole))


def _some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
