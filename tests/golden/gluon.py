"""The authors' Gluon networks in the plainest form, run by their parameters' names: the oracle where no golden is.

Written from their published rules: high and low are two tensors (low may be None), every path has a weight of its own.
"""

import torch
import torch.nn.functional as F
from torch import relu


def relu6(x):
    return x.clamp(0, 6)


class Layers:
    """Their layers over a dict of parameters."""

    def __init__(self, parameters):
        self.p = parameters

    def norm(self, name, x, act=None):
        """Batch norm of one tensor; of bn1a and bn4a the stored gamma is ignored."""
        gamma, beta, mean, var = (
            self.p[f"{name}.{kind}"][:, None, None] for kind in ("gamma", "beta", "running_mean", "running_var")
        )
        gamma = torch.ones_like(gamma) if ".bn1a." in name or ".bn4a." in name else gamma
        y = (x - mean) / (var + 1e-5).sqrt() * gamma + beta
        return act(y) if act else y

    def norms(self, name, parts, act=None):
        return [None if x is None else self.norm(f"{name}.bn_{part}", x, act) for x, part in zip(parts, "hl")]

    def plain(self, conv, norm, x, stride=1, act=relu):
        """An ordinary convolution and its norm."""
        weight = self.p[f"{conv}.weight"]
        return self.norm(norm, F.conv2d(x, weight, None, stride, weight.shape[-1] // 2), act)

    def conv(self, name, parts, stride=1):
        """An octave convolution: pooled, never strided; depthwise where a channel sees only itself."""
        high, low = parts
        half, quarter = (pool(high), pool(pool(high))) if stride == 2 else (high, pool(high))
        small = low if low is None or stride == 1 else pool(low)
        to_high = self.path(name, "h2h", half), self.path(name, "l2h", low)
        if to_high[1] is not None and stride == 1:
            to_high = to_high[0], to_high[1].repeat_interleave(2, 2).repeat_interleave(2, 3)
        return total(*to_high), total(self.path(name, "h2l", quarter), self.path(name, "l2l", small))

    def path(self, name, path, x):
        weight = self.p.get(f"{name}.conv_{path}.weight")
        if weight is None or x is None:
            return None
        return F.conv2d(x, weight, None, 1, weight.shape[-1] // 2, 1, x.shape[1] // weight.shape[1])

    def gate(self, name, parts):
        """Squeeze-excite over both parts."""
        vector = torch.cat([mean(x) for x in parts if x is not None], 1)
        hidden = relu(F.conv2d(vector, self.p[f"{name}.conv1.weight"], self.p[f"{name}.conv1.bias"]))
        gates = [f"{name}.conv2_{part}" for part in "hl"]
        return [
            None if x is None else x * F.conv2d(hidden, self.p[f"{g}.weight"], self.p[f"{g}.bias"]).sigmoid()
            for x, g in zip(parts, gates)
        ]

    def classify(self, x):
        return F.conv2d(mean(x), self.p["classifer.weight"], self.p["classifer.bias"]).flatten(1)


def pool(x):
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


def mean(x):
    return x.mean((2, 3), keepdim=True)


def total(*terms):
    terms = [x for x in terms if x is not None]
    return sum(terms) if terms else None


def seresnet152_v1e(parameters, x):
    net = Layers(parameters)
    for i, stride in ((0, 2), (3, 1), (6, 1)):
        x = net.plain(f"conv1.{i}", f"conv1.{i + 1}", x, stride)
    parts = F.max_pool2d(x, 3, 2, 1), None
    for stage, depth in enumerate((3, 8, 36, 3), start=1):
        for i in range(depth):
            name, stride = f"L{stage}_B{i}", 2 if stage > 1 and not i else 1
            y = net.norms(f"{name}.bn1a", parts)
            y = net.norms(f"{name}.bn1", net.conv(f"{name}.conv1", y), relu)
            y = net.norms(f"{name}.bn2", net.conv(f"{name}.conv2", y), relu)
            y = net.norms(f"{name}.bn3", net.conv(f"{name}.conv3", y, stride))
            y = net.gate(f"{name}.se_block", y)
            if not i:
                parts = net.conv(f"{name}.conv4", net.norms(f"{name}.bn4a", parts), stride)
                parts = net.norms(f"{name}.bn4", parts)
            parts = [None if a is None else relu(a + b) for a, b in zip(y, parts)]
    return net.classify(parts[0])


def mobilenet_v1(parameters, x):
    net = Layers(parameters)
    parts = net.plain("conv1.0", "conv1.1", x, 2), None
    for stage, blocks in enumerate(([1], range(2), range(2), range(6), range(2)), start=1):
        for i in blocks:
            name, stride = f"L{stage}_B{i}", 2 if not i else 1
            parts = net.norms(f"{name}.bn1", net.conv(f"{name}.conv1", parts, stride), relu)
            parts = net.norms(f"{name}.bn2", net.conv(f"{name}.conv2", parts), relu)
    return net.classify(parts[0])


def mobilenet_v2(parameters, x):
    net = Layers(parameters)
    x = net.plain("conv1.0", "conv1.1", x, 2, relu6)
    for stage, blocks in enumerate(([1], range(2), range(3), range(7), range(4)), start=1):
        for i in blocks:
            name, stride = f"L{stage}_B{i}", 2 if not i else 1
            y = net.norms(f"{name}.bn1", net.conv(f"{name}.conv1", (x, None)), relu6)
            y = net.norms(f"{name}.bn2", net.conv(f"{name}.conv2", y, stride), relu6)
            y, _ = net.norms(f"{name}.bn3", net.conv(f"{name}.conv3", y))
            x = y + x if y.shape == x.shape else y
    return net.classify(net.plain("tail.0", "tail.1", x, 1, relu6))
