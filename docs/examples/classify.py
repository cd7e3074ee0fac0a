"""Says what is in pictures: python classify.py NETWORK.onnx|NETWORK.xml PICTURE ...

Needs numpy, Pillow, and onnxruntime (for .onnx) or openvino (for .xml); neither PyTorch nor octzoo.
"""

import json
import sys

import numpy as np
from PIL import Image


def open_onnx(path):
    """(What runs the network, what the file says of itself)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0], session.get_modelmeta().custom_metadata_map


def open_openvino(path):
    """The same of OpenVINO's .xml, beside which its .bin has to be."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    network = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})  # else it may round to bfloat16
    return lambda x: network([x])[0], model.get_rt_info("octzoo").value


def prepare(picture, config):
    """A picture as the network saw it when it was measured: [1, 3, H, W], float32."""
    _, height, width = config["input_size"]
    edge = int(height / config["crop_pct"])
    if config["crop_mode"] not in ("center", "squash") or height != width:
        sys.exit(f"this example does not crop as {config['crop_mode']} to {height}x{width}")
    picture = picture.convert("RGB")
    w, h = picture.size
    if config["crop_mode"] == "squash":
        w, h = edge, edge
    else:  # the shorter side becomes the edge
        w, h = (edge, int(edge * h / w)) if w <= h else (int(edge * w / h), edge)
    picture = picture.resize((w, h), Image.Resampling[config["interpolation"].upper()])
    left, top = round((w - width) / 2), round((h - height) / 2)
    pixels = np.asarray(picture.crop((left, top, left + width, top + height)), np.float32) / 255
    pixels = (pixels - config["mean"]) / config["std"]
    return pixels.transpose(2, 0, 1)[None].astype(np.float32)


path, *pictures = sys.argv[1:]
run, metadata = (open_onnx if path.endswith(".onnx") else open_openvino)(path)
config = json.loads(metadata["preprocessing"])
labels = json.loads(metadata.get("labels", "null"))
for name in pictures:
    logits = run(prepare(Image.open(name), config))[0]
    shares = np.exp(logits - logits.max())
    best = int(shares.argmax())
    print(f"{name}: {labels[best] if labels else best}, {shares[best] / shares.sum():.1%}")
