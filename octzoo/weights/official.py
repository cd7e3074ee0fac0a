"""Other people's parameter names <-> ours, by structure.

They store an octave convolution as up to four tensors (h2h, h2l, l2h, l2l) and a batch norm as two (h, l). Ours is one
ordinary tensor: rows are high outputs, then low ones; columns high inputs, then low ones. So a name says where a tensor
goes, and its shape how much it fills.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from octzoo.errors import UserError, some

ALL = ""  # the source of a tensor that holds the columns of both parts


class Rule(NamedTuple):
    """One row of a table of names.

    Attributes:
        pattern: what a foreign name starts with; what follows are the paths (-h2l, .bn_l) and the kind of tensor.
        ours: the start of our key. {0} is the pattern's first group, {0-2} the same less two.
        note: "fixed": MXNet took 1 for this batch norm's gamma, whatever the file holds. "joined": this one has high
            and low columns in one tensor.
    """

    pattern: str
    ours: str
    note: Literal["", "fixed", "joined"] = ""


Rules = Sequence[Rule]


def _table(*rows: tuple) -> Rules:
    return tuple(Rule(*row) for row in rows)


# The authors' pre-activation ResNets (``utils/symbol``): stages L2 to L5, blocks from B01, conv4 is the shortcut.
SYMBOL_RESNET = _table(
    (r"conv1_conv", "stem.conv."),
    (r"conv1_bn", "stem.norm."),
    (r"L(\d)_B(\d+)_conv4_bn", "stages.{0-2}.{1-1}.shortcut.0."),
    (r"L(\d)_B(\d+)_conv4_conv", "stages.{0-2}.{1-1}.shortcut.1."),
    (r"L(\d)_B(\d+)_conv(\d)_bn", "stages.{0-2}.{1-1}.norms.{2-1}."),
    (r"L(\d)_B(\d+)_conv(\d)_conv", "stages.{0-2}.{1-1}.convs.{2-1}."),
    (r"L(\d)_B(\d+)_se_fc(\d)", "stages.{0-2}.{1-1}.se.fc{2}."),
    (r"tail_bn", "tail."),
    (r"classifier", "head.fc."),
)
# Their DenseNet; ours has timm's names.
SYMBOL_DENSENET = _table(
    (r"conv1_conv", "features.conv0."),
    (r"conv1_bn", "features.norm0."),
    (r"L(\d)_B(\d+)_conv(\d)_bn", "features.denseblock{0-1}.denselayer{1}.norm{2}."),
    (r"L(\d)_B(\d+)_conv(\d)_conv", "features.denseblock{0-1}.denselayer{1}.conv{2}."),
    (r"L(\d)_Trans_conv_bn", "features.transition{0-2}.norm."),
    (r"L(\d)_Trans_conv_conv", "features.transition{0-2}.conv."),
    (r"tail_bn", "features.norm5."),
    (r"classifier", "classifier."),
)
# Their MobileNets, V1 and V2 (``utils/gluon``): stages L1 to L5, blocks from B0, but L1's only one is B1.
GLUON_MOBILENET = _table(
    (r"conv1\.0", "stem.conv."),
    (r"conv1\.1", "stem.norm."),
    (r"L1_B1\.conv(\d)\.conv", "stages.0.0.convs.{0-1}."),
    (r"L1_B1\.bn(\d)\.bn", "stages.0.0.norms.{0-1}."),
    (r"L(\d)_B(\d)\.conv(\d)\.conv", "stages.{0-1}.{1}.convs.{2-1}."),
    (r"L(\d)_B(\d)\.bn(\d)\.bn", "stages.{0-1}.{1}.norms.{2-1}."),
    (r"tail\.0", "tail.conv."),
    (r"tail\.1", "tail.norm."),
    (r"classifer", "head.fc."),
)
# Their ResNet-152s: the stem counts its activations, conv2 is the bottleneck in place of a pool, conv4 the shortcut.
GLUON_RESNET = _table(
    (r"conv1\.0", "stem.conv1."),
    (r"conv1\.1", "stem.norm1."),
    (r"conv1\.3", "stem.conv2."),
    (r"conv1\.4", "stem.norm2."),
    (r"conv1\.6", "stem.conv3."),
    (r"conv1\.7", "stem.norm3."),
    (r"conv2\.conv4", "pool.shortcut.1."),
    (r"conv2\.bn4", "pool.shortcut.2."),
    (r"conv2\.conv(\d)", "pool.convs.{0-1}."),
    (r"conv2\.bn(\d)", "pool.norms.{0-1}."),
    (r"L(\d)_B(\d+)\.bn1a\.bn", "stages.{0-1}.{1}.pre.", "fixed"),
    (r"L(\d)_B(\d+)\.bn4a\.bn", "stages.{0-1}.{1}.shortcut.0.", "fixed"),
    (r"L(\d)_B(\d+)\.conv4\.conv", "stages.{0-1}.{1}.shortcut.1."),
    (r"L(\d)_B(\d+)\.bn4\.bn", "stages.{0-1}.{1}.shortcut.2."),
    (r"L(\d)_B(\d+)\.conv(\d)\.conv", "stages.{0-1}.{1}.convs.{2-1}."),
    (r"L(\d)_B(\d+)\.bn(\d)\.bn", "stages.{0-1}.{1}.norms.{2-1}."),
    (r"L(\d)_B(\d+)\.se_block\.conv1", "stages.{0-1}.{1}.se.fc1.", "joined"),
    (r"L(\d)_B(\d+)\.se_block\.conv2", "stages.{0-1}.{1}.se.fc2."),
    (r"classifer", "head.fc."),
)
# d-li14/octconv.pytorch's ResNets: timm's names, with a module of their own around each convolution and norm.
DLI14_RESNET = _table(
    (r"layer(\d)\.(\d+)\.conv(\d)\.conv\.conv", "layer{0}.{1}.conv{2}."),
    (r"layer(\d)\.(\d+)\.conv(\d)\.bn", "layer{0}.{1}.bn{2}."),
    (r"layer(\d)\.(\d+)\.downsample\.0\.conv\.conv", "layer{0}.{1}.downsample.0."),
    (r"layer(\d)\.(\d+)\.downsample\.0\.bn", "layer{0}.{1}.downsample.1."),
    (r"(conv1|bn1|fc)\.", "{0}."),
)
# Their MobileNetV1 counts its blocks through: these are our (stage, block), in order.
_BLOCKS = [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), *[(3, i) for i in range(6)], (4, 0), (4, 1)]
DLI14_MOBILENET = _table(
    (r"features\.0\.0", "stem.conv."),
    (r"features\.0\.1", "stem.norm."),
    *((rf"features\.{n}\.(\d)\.conv\.conv", f"stages.{i}.{j}.convs.{{0}}.") for n, (i, j) in enumerate(_BLOCKS, 1)),
    *((rf"features\.{n}\.(\d)\.bn", f"stages.{i}.{j}.norms.{{0}}.") for n, (i, j) in enumerate(_BLOCKS, 1)),
    (r"fc", "head.fc."),
)
# What their batch norms add to the variance: networks with the same tensors may differ in it.
EPSILON = {SYMBOL_RESNET: 1e-4, SYMBOL_DENSENET: 1e-4}
TABLES = (SYMBOL_RESNET, SYMBOL_DENSENET, GLUON_MOBILENET, GLUON_RESNET, DLI14_RESNET, DLI14_MOBILENET)

_KINDS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}
_REST = re.compile(r"[-_.]?(?:(?P<source>[hl])2)?(?:(?P<target>[hl])[_.])?[_.]?(?P<kind>[a-z]\w*)")


class NamesError(UserError):
    """Names or shapes that do not fit together; the text lists them."""


def our_name(name: str, rules: Rules) -> tuple[str, str, str]:
    """Where a foreign tensor goes: (our key, "h" or "l" of its columns, "h" or "l" of its rows); "" for all columns."""
    return _place(name, rules)[:3]


def says_part(name: str) -> bool:
    """Whether a name belongs to an octave layer: one of alpha 0 has its "h" too, an ordinary layer has not."""
    return bool(re.search(r"[-_](?:[hl]2)?[hl][_.]", name))


def with_fixed_scales(foreign: Mapping[str, np.ndarray], rules: Rules) -> dict[str, np.ndarray]:
    """``foreign`` with ones for every scale that MXNet took to be 1, whatever it holds."""
    return {name: np.ones_like(a) if _place(name, rules)[3] else a for name, a in foreign.items()}


def _place(name: str, rules: Rules) -> tuple[str, str, str, bool]:
    bare = re.sub(r"^(arg|aux):|^module\.", "", name)
    for rule in rules:
        if (match := re.match(rule.pattern, bare)) and (rest := _REST.fullmatch(bare, match.end())):
            prefix = re.sub(r"\{(\d)(?:-(\d))?\}", lambda m: _group(match, int(m[1]), int(m[2] or 0)), rule.ours)
            kind = _KINDS.get(rest["kind"], rest["kind"])
            source = ALL if rule.note == "joined" else rest["source"] or "h"
            return prefix + kind, source, rest["target"] or "h", rule.note == "fixed" and kind == "weight"
    raise NamesError(f"no rule for the name {name!r}")


def _group(match: re.Match[str], index: int, less: int) -> str:
    text = match.group(index + 1)
    return str(int(text) - less) if text.isdigit() else text


def choose_rules(names: Iterable[str], keys: Collection[str]) -> Rules:
    """The table that gives every foreign name one of our ``keys``.

    Raises NamesError, with what the table that fits best does not place, if there is none.
    """
    names, keys = list(names), set(keys)
    strays = [[name for name in names if _key(name, rules) not in keys] for rules in TABLES]
    best = min(range(len(TABLES)), key=lambda i: len(strays[i]))
    if not names or strays[best]:
        raise NamesError(
            f"{len(strays[best])} of {len(names)} names have no place in this network: {some(strays[best])}"
        )
    return TABLES[best]


def _key(name: str, rules: Rules) -> str | None:
    try:
        return our_name(name, rules)[0]
    except NamesError:
        return None
