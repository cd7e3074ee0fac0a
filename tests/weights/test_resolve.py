"""``pretrained=True``: which places are asked, in which order, and what is said when none has the weights.

timm in processes of its own, against loopback servers that stand for the Hub and for the authors' server.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from octzoo.errors import UserError
from octzoo.weights.folder import checked
from octzoo.weights.records import find
from tests.clients import contents
from tests.fileserver import serving
from tests.hubserver import hub as a_hub
from tests.released import parameters, write_released

REPOSITORY = Path(__file__).parents[2]
# the smallest released file: no checksum of it is known; and the smallest with a known one
NAME, KEY = "oct_mobilenetv1_075_a0.375", "mobilenet_v1_075_alpha-0.375"
FILE = f"{KEY}.params"
SOURCE = "https://github.com/facebookresearch/OctConv"
CHECKED, CHECKED_FILE = "oct_densenet121_a0.125", "a01_densenet-121_alpha-0.125.tar"
CREATE = """
import logging, sys, timm, octzoo, resource, signal
logging.basicConfig(format="%(name)s: %(message)s", level=logging.INFO)
if len(sys.argv) > 2:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
model = timm.create_model(sys.argv[1], pretrained=True)
print("sum", float(sum(p.double().abs().sum() for p in model.parameters())))
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    return write_released(KEY, folder, FILE).read_bytes()


@pytest.fixture(scope="module")
def total():
    """What ``CREATE`` prints of the right weights: statistics are not parameters."""
    arrays = parameters(KEY)
    return sum(abs(a.astype("float64")).sum() for n, a in arrays.items() if "running" not in n)


def start(tmp_path, *arguments, hub=None, mirror=None, code=CREATE, **environment):
    """A process with caches of its own, that knows no other server than these."""
    nobody = "http://127.0.0.1:9"  # the discard port: refused
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "OCTZOO_", "TORCH_HOME"))},
        "TORCH_HOME": str(tmp_path / "torch"),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_ENDPOINT": hub or nobody,
        "OCTZOO_MIRROR": mirror or nobody,
        **environment,
    }
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, **pipes)


def finish(process):
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def sum_of(out):
    return float(re.search(r"sum (\S+)", out)[1])


def cache(tmp_path):
    place = tmp_path / "torch" / "hub" / "octzoo"
    return sorted(p.name for p in place.iterdir()) if place.is_dir() else []


def test_the_publishers_file_is_converted_once_and_then_taken_from_the_cache(tmp_path, published, total):
    with serving({f"/{FILE}": published}, [503, ("drop", 4_000_000)]) as publisher, serving() as hub:
        code, out, err = finish(start(tmp_path, NAME, hub=hub.url, mirror=publisher.url))
        assert code == 0, err
        assert sum_of(out) == pytest.approx(total, rel=1e-6)
        assert len(re.findall(rf"{NAME}.fb_in1k: weights from", err)) == 1
        assert f"octzoo.weights.resolve: {NAME}.fb_in1k: weights from the publisher ({SOURCE})" in err
        assert [r[2] for r in publisher.requests] == [None, None, "bytes=4000000-"]
        assert ("GET", f"/api/models/octzoo/{NAME}.fb_in1k", None) in hub.requests
        asked = len(publisher.requests), len(hub.requests)
        code, out, err = finish(start(tmp_path, f"{NAME}.fb_in1k", hub=hub.url, mirror=publisher.url))
        assert code == 0, err
        assert sum_of(out) == pytest.approx(total, rel=1e-6)
        assert "weights from the cache" in err
        assert (len(publisher.requests), len(hub.requests)) == asked
    assert cache(tmp_path) == [f"{NAME}.fb_in1k", f"{NAME}.fb_in1k.lock"]


def test_two_processes_at_once_download_once(tmp_path, published, total):
    with serving({f"/{FILE}": published}) as publisher:
        both = [start(tmp_path, NAME, mirror=publisher.url) for _ in range(2)]
        for code, out, err in map(finish, both):
            assert code == 0, err
            assert sum_of(out) == pytest.approx(total, rel=1e-6)
        assert len(publisher.requests) == 1


def test_the_hub_is_asked_before_the_publisher_and_a_flipped_byte_is_fetched_again(tmp_path, made, total):
    with a_hub() as server:
        server.publish(f"octzoo/{made.name}", contents(made))
        server.faults = {"GET model.safetensors": [("flip", 5_000_000)]}
        code, out, err = finish(start(tmp_path, NAME, hub=server.url))
        assert code == 0, err
        assert sum_of(out) == pytest.approx(total, rel=1e-6)
        assert f"weights from the Hub (octzoo/{made.name})" in err
        assert len([r for r in server.asked("GET resolve") if r.path.endswith("/model.safetensors")]) == 2
    code, out, err = finish(start(tmp_path, NAME, HF_HUB_OFFLINE="1"))  # and from then on, from our cache
    assert (code, sum_of(out)) == (0, pytest.approx(total, rel=1e-6)), err


def test_a_folder_of_the_users_own_comes_first(tmp_path, published, total):
    folder = tmp_path / "mine"
    with serving({f"/{FILE}": published}) as publisher:
        assert finish(start(tmp_path, NAME, mirror=publisher.url))[0] == 0
    (tmp_path / "torch/hub/octzoo").rename(folder)
    code, out, err = finish(start(tmp_path, NAME, OCTZOO_CHECKPOINTS=str(folder)))
    assert (code, sum_of(out)) == (0, pytest.approx(total, rel=1e-6)), err
    assert f"weights from the folder {folder}" in err


def test_all_missing_is_one_error_that_says_what_was_tried_and_how_to_go_on(tmp_path):
    code, _, err = finish(start(tmp_path, NAME))
    last = err.strip().splitlines()[-1]
    assert code == 1
    assert re.match(
        rf".*WeightsNotFoundError: {NAME}.fb_in1k: no weights found. By hand: .*, then `octzoo import FILE --name "
        rf"{NAME}.fb_in1k --out DIR`, and set OCTZOO_CHECKPOINTS=DIR. Tried the folder .*: no {NAME}.fb_in1k there; "
        rf"the cache .*: no {NAME}.fb_in1k there; the Hub's cache: none there; "
        rf"the Hub \(octzoo/{NAME}.fb_in1k\): .*refused; the publisher "
        rf"\({SOURCE}\): http://127.0.0.1:9/{FILE}: .*refused.*$",
        last,
    ), last
    code, _out, err = finish(start(tmp_path, NAME, HF_HUB_OFFLINE="1"))
    assert code == 1
    assert f"the Hub (octzoo/{NAME}.fb_in1k): HF_HUB_OFFLINE is set; the publisher" in err.strip().splitlines()[-1]


@pytest.mark.slow
def test_silent_servers_are_given_up_within_half_a_minute(tmp_path):
    with serving(silent=True) as hub, serving(silent=True) as publisher:
        code = CREATE.replace("model = ", "import time; t = time.time()\nmodel = ")
        code = code.replace("model = timm", "try: timm").replace(
            "print(", "except RuntimeError: print(time.time() - t); 0 and print("
        )
        done, out, err = finish(start(tmp_path, NAME, hub=hub.url, mirror=publisher.url, code=code))
        assert done == 0, err
        assert float(out.split()[-1]) < 30
        assert hub.requests
        assert publisher.requests


def test_a_file_that_is_not_the_published_one_is_refused(tmp_path, published):
    with serving({f"/{CHECKED_FILE}": published}) as publisher:
        code, _out, err = finish(start(tmp_path, CHECKED, mirror=publisher.url))
    assert code == 1
    assert re.search(r"has 10,\d+,\d+ bytes, not 32,983,040: it is not the file that was published", err)
    assert cache(tmp_path) == [f"{CHECKED}.fb_in1k.lock"]


def test_a_published_file_that_does_not_hold_the_network_is_refused(tmp_path, published):
    other = "mobilenet_v1_100_alpha-0.5.params"
    with serving({f"/{other}": published}) as publisher:
        code, _out, err = finish(start(tmp_path, "oct_mobilenetv1_100_a0.5", mirror=publisher.url))
    assert code == 1
    assert f"does not hold oct_mobilenetv1_100_a0.5: it holds {NAME}" in err
    assert cache(tmp_path) == ["oct_mobilenetv1_100_a0.5.fb_in1k.lock"]


def test_a_full_disk_leaves_nothing_half_written_and_the_next_call_goes_on(tmp_path, published, total):
    with serving({f"/{FILE}": published}) as publisher:
        code, _, err = finish(start(tmp_path, NAME, 6_000_000, mirror=publisher.url))
        assert code == 1
        assert "OSError: [Errno 27] File too large" in err.strip().splitlines()[-1]
        assert {name.rpartition(".")[2] for name in cache(tmp_path)} == {"part", "etag", "lock"}
        code, out, err = finish(start(tmp_path, NAME, mirror=publisher.url))
        assert (code, sum_of(out)) == (0, pytest.approx(total, rel=1e-6)), err
        assert publisher.requests[-1][2] == "bytes=6000000-"


def test_weights_that_only_exist_by_hand_say_so(tmp_path):
    code, _out, err = finish(start(tmp_path, "oct_resnet50_v1_a0.5"))
    assert code == 1
    assert "the publisher (https://github.com/d-li14/octconv.pytorch): only to be fetched by hand" in err


# ---- what is in the way --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory, published):
    """The checkpoint folder of the published file."""
    place = tmp_path_factory.mktemp("made")
    with serving({f"/{FILE}": published}) as publisher:
        code, _, err = finish(start(place, NAME, mirror=publisher.url))
    assert code == 0, err
    return place / "torch/hub/octzoo" / f"{NAME}.fb_in1k"


def copy_of(made, folder, change=None):
    """A copy of the folder, changed."""
    copied = folder / made.name
    shutil.copytree(made, copied)
    if change:
        change(copied)
    return copied


def flip(path):
    content = bytearray(path.read_bytes())
    content[5_000_000] ^= 0xFF
    path.write_bytes(content)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:1_000_000])


def rewrite(config, old, new):
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))


CHANGES = {
    "flipped byte": ("model.safetensors", flip, r"model.safetensors is damaged: its SHA-256 is not that in"),
    "cut off": ("model.safetensors", cut_off, r"is damaged \(SafetensorError"),
    "no config": ("config.json", Path.unlink, r"is damaged \(FileNotFoundError"),
    "another alpha": ("config.json", lambda p: rewrite(p, '"alpha": 0.375', '"alpha": 0.5'), r"does not say one alpha"),
    "another tag": ("config.json", lambda p: rewrite(p, "375.fb_in1k", "375.mine"), rf"holds {NAME}.mine, alpha 0.375"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_folder_that_is_not_what_its_name_says_is_refused(tmp_path, made, what):
    file, change, text = CHANGES[what]
    folder = copy_of(made, tmp_path, lambda folder: change(folder / file))
    with pytest.raises(UserError, match=text):
        checked(folder, find(NAME))
    assert checked(copy_of(made, tmp_path / "whole"), find(NAME)) is not None
    assert checked(tmp_path / "nowhere", find(NAME)) is None


def test_a_damaged_cache_is_made_anew_and_a_users_folder_is_left_alone(tmp_path, made, published, total):
    cached = tmp_path / "torch/hub/octzoo"
    copy_of(made, cached, lambda f: flip(f / "model.safetensors"))
    (cached / f"{NAME}.fb_in1k.tmpkilled").mkdir()  # what a process that was killed left
    with serving({f"/{FILE}": published}) as publisher:
        code, out, err = finish(start(tmp_path, NAME, mirror=publisher.url))
    assert (code, sum_of(out)) == (0, pytest.approx(total, rel=1e-6)), err
    assert cache(tmp_path) == [f"{NAME}.fb_in1k", f"{NAME}.fb_in1k.lock"]
    users = copy_of(made, tmp_path / "mine", lambda f: flip(f / "model.safetensors"))
    before = (users / "model.safetensors").read_bytes()
    code, _, err = finish(start(tmp_path, NAME, OCTZOO_CHECKPOINTS=str(users.parent)))
    assert code == 1
    assert f"UserError: {users}/model.safetensors is damaged" in err.strip().splitlines()[-1]
    assert (users / "model.safetensors").read_bytes() == before


def test_what_other_tools_fetched_is_taken_and_where_it_is_damaged_fetched_again(tmp_path, made, total):
    repo = f"octzoo/{made.name}"
    with a_hub() as server:
        server.publish(repo, contents(made))
        fetch = f"import huggingface_hub as h; print(h.hf_hub_download({repo!r}, 'model.safetensors'))"
        code, out, err = finish(start(tmp_path, hub=server.url, code=fetch))
        assert code == 0, err
        code, out, err = finish(start(tmp_path, NAME, hub=server.url))
        assert (code, sum_of(out)) == (0, pytest.approx(total, rel=1e-6)), err
        assert "weights from the Hub's cache" in err
        flip(next((tmp_path / "hf/hub").rglob("model.safetensors")).resolve())
        code, out, err = finish(start(tmp_path, NAME, HF_HUB_OFFLINE="1"))
        assert code == 1
        assert "the Hub's cache: damaged, or not what was published" in err
        code, out, err = finish(start(tmp_path, NAME, hub=server.url))
    assert (code, sum_of(out)) == (0, pytest.approx(total, rel=1e-6)), err
    assert f"weights from the Hub ({repo})" in err


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        (dict(OCTZOO_MIRROR="/some/folder"), "UserError: OCTZOO_MIRROR=/some/folder is not the http or https URL"),
        (dict(OCTZOO_MIRROR="http://user:s3cret@127.0.0.1:9"), "UserError: OCTZOO_MIRROR holds a name or a password"),
        (dict(TORCH_HOME="/proc/nowhere"), r"the cache /proc/nowhere/hub/octzoo cannot be used .*: set TORCH_HOME"),
    ],
)
def test_settings_that_cannot_work_have_their_line(tmp_path, environment, text):
    code, out, err = finish(start(tmp_path, NAME, **environment))
    assert code == 1
    assert re.search(text, err.strip().splitlines()[-1])
    assert "s3cret" not in out + err


def test_timms_cache_dir_is_where_converted_weights_go(tmp_path, published, total):
    code = CREATE.replace("pretrained=True", f"pretrained=True, cache_dir={str(tmp_path / 'elsewhere')!r}")
    with serving({f"/{FILE}": published}) as publisher:
        done, out, err = finish(start(tmp_path, NAME, mirror=publisher.url, code=code))
    assert (done, sum_of(out)) == (0, pytest.approx(total, rel=1e-6)), err
    assert (tmp_path / "elsewhere/octzoo" / f"{NAME}.fb_in1k" / "model.safetensors").is_file()
    assert cache(tmp_path) == []
