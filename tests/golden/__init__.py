"""What the authors' networks and d-li14's gave on formula-made parameters and pictures, and what they are called here.

- goldens.json: by key, the size and number of the pictures, the parameters' gains, checksums
- KEY.npz: the logits and summaries of every block's output, float64
- params.json.gz: by key, the names and shapes in the published file: all 31, the authors' plain networks, d-li14's
- macs.json: multiply-accumulates at 224x224 and parameters of every network
- formula.py: parameters and pictures as a function of names
"""

ARCHS = {
    "densenet-121": "oct_densenet121",
    "resnet-26": "oct_resnet26",
    "resnet-50": "oct_resnet50",
    "resnet-101": "oct_resnet101",
    "resnet-200": "oct_resnet200",
    "resnext-50_32x4d": "oct_resnext50_32x4d",
    "resnext-101_32x4d": "oct_resnext101_32x4d",
    "se-resnet-50": "oct_seresnet50",
    "mobilenet_v1_075": "oct_mobilenetv1_075",
    "mobilenet_v1_100": "oct_mobilenetv1_100",
    "mobilenet_v2_100": "oct_mobilenetv2_100",
    "mobilenet_v2_1125": "oct_mobilenetv2_112",
    "resnet152_v1f": "oct_resnet152",
    "se-resnet152_v1e": "oct_seresnet152",
}
DLI14 = {"d-li14/oct_resnet50": "oct_resnet50_v1", "d-li14/oct_mobilenet": "oct_mobilenetv1_100"}  # at alpha 0.5


def our_network(key: str) -> tuple[str, float]:
    """The network and alpha of a key: "resnet-50_alpha-0.250" is ("oct_resnet50", 0.25), a baseline has alpha 0."""
    if key in DLI14:
        return DLI14[key], 0.5
    arch, _, alpha = key.rpartition("_")
    return ARCHS[arch], 0.0 if alpha == "baseline" else float(alpha.removeprefix("alpha-"))
