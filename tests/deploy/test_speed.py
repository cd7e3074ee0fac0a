"""What times say beside a peer and the arithmetic, and that the speed page says what was measured."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octzoo.deploy.speed import COLUMNS, Measured, beside, compare, figures, read, rows, spread, write
from octzoo.errors import UserError

DOCS = Path(__file__).parent.parent.parent / "docs"
specification = importlib.util.spec_from_file_location("make_speed", DOCS / "make_speed.py")
make_speed = importlib.util.module_from_spec(specification)
specification.loader.exec_module(make_speed)

PEER = Measured("plain", "plain", "eager", False, 8, (3, 64, 64), 1000, (4.0, 4.0, 8.0), 2.0, 100, 300)
OURS = replace(PEER, network="octave", macs=600, seconds=(3.0, 2.0, 5.0), ready_seconds=3.0, peak_bytes=200)
SECONDS = st.lists(st.floats(1e-4, 1e3), min_size=1, max_size=30)


def test_median_and_quartiles():
    assert spread([5.0, 1.0, 4.0, 2.0, 3.0]) == (3, 2, 4)
    assert spread([1.0, 2.0, 3.0, 4.0]) == (2.5, 1.75, 3.25)
    assert spread([7.0]) == (7, 7, 7)


@given(SECONDS)
def test_the_median_lies_between_the_quartiles_and_those_within_the_values(values):
    s = spread(values)
    tiny = 1e-12 * max(values)
    assert min(values) - tiny <= s.low <= s.median + tiny <= s.high + 2 * tiny <= max(values) + 3 * tiny
    assert spread(sorted(values)) == s


def test_everything_is_compared_with_the_peer_round_by_round():
    c = beside(OURS, PEER)
    assert c.time == (0.625, 0.5625, 0.6875)  # of 0.75, 0.5, 0.625
    assert c.seconds == (3, 2.5, 4)
    assert c.pictures_per_second == pytest.approx(8 / 3)
    assert c.macs == 0.6
    assert c.above == pytest.approx(0.025)
    assert c.memory == 0.75  # (100 + 200) / (100 + 300)
    assert c.ready == 1.5


@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0.1, 9), st.floats(0.1, 9)), min_size=1, max_size=12))
def test_what_slows_both_in_a_round_changes_no_ratio(measured):
    ours, peer, slower = zip(*measured)
    quiet = beside(replace(OURS, seconds=ours), replace(PEER, seconds=peer))
    loud = beside(
        replace(OURS, seconds=tuple(a * s for a, s in zip(ours, slower))),
        replace(PEER, seconds=tuple(b * s for b, s in zip(peer, slower))),
    )
    assert loud.time == pytest.approx(quiet.time)


def test_each_is_compared_in_its_own_engine_and_batch():
    others = [replace(m, mode="fused", batch=1, seconds=(1.0, 1.0, 1.0)) for m in (PEER, OURS)]
    assert [c.time.median for c in compare([PEER, OURS, *others])] == [1, 0.625, 1, 1]


def test_rows_of_the_table():
    unknown = [replace(m, mode="onnx", held_bytes=None, peak_bytes=None) for m in (PEER, OURS)]
    peer, ours, _, other = rows(compare([PEER, OURS, *unknown]))
    assert len(peer) == len(COLUMNS)
    assert ours[:6] == ["eager", "8", "octave", "3000", "2500 to 4000", "2.67"]
    assert ours[6:] == ["0.62", "0.56 to 0.69", "0.60", "+0.03", "0.0", "0.75", "3.00", "1.50"]
    assert peer[6:10] == [""] * 4
    assert other[10:12] == ["", ""]


@pytest.mark.parametrize(("value", "text"), [(1234.5, "1234"), (99.96, "100.0"), (12.34, "12.3"), (0.567, "0.57")])
def test_three_figures(value, text):
    assert figures(value) == text


def test_a_file_is_read_as_it_was_written(tmp_path):
    write(tmp_path / "a.json", {"finished": True}, [PEER, OURS])
    assert read(tmp_path / "a.json") == ({"finished": True}, [PEER, OURS])


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"results": [{"network": "x"}]}', '{"results": 3}'])
def test_another_file_is_refused(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a.json is not a file of `octzoo bench model` .*: measure again"):
        read(tmp_path / "a.json")


# ---- the page ------------------------------------------------------------------------------------------------------

FACTS = {
    "command": "octzoo bench model octave",
    "finished": True,
    "cpu": "a processor",
    "cpus": 4,
    "gpus": [],
    "python": "3.11",
    "packages": {"torch": "2", "timm": "1", "onnxruntime": None, "openvino": None},
    "settings": {
        "threads": 2,
        "device": "cpu",
        "layout": "channels_last",
        "precision": "float32",
        "pretrained": False,
    },
}


def test_the_page_and_its_pictures_are_what_the_files_say():
    subprocess.run([sys.executable, str(DOCS / "make_speed.py"), "--check"], check=True)


@pytest.fixture
def docs(tmp_path):
    """A folder of docs with two files measured, the second of two peers."""
    (tmp_path / "speed").mkdir()
    (tmp_path / "speed.md").write_text((DOCS / "speed.md").read_text())
    write(tmp_path / "speed" / "a.json", FACTS, [PEER, OURS])
    others = [replace(m, network=f"{m.network}2", peer="plain2") for m in (PEER, OURS)]
    both = [replace(m, batch=batch) for batch in (8, 1) for m in (PEER, OURS, *others)]
    write(tmp_path / "speed" / "b.json", FACTS, both)
    return tmp_path


def test_the_page_has_command_hardware_ratios_and_pictures(docs):
    assert make_speed.main(["--docs", str(docs)]) == 0
    text = (docs / "speed.md").read_text()
    assert text.count("```bash\noctzoo bench model octave\n```") == 2
    assert "Measured on a processor, 4 cores, 2 threads; float32, channels last, random weights; 3 rounds." in text
    assert text.count("| multiply-accumulates |  |  | 0.60 |") == 3  # a table a peer
    assert text.count("| eager | 8 | 4000 | **0.62** (0.56 to 0.69) |") == 3
    for name in ("a", "b"):
        assert f"(img/speed_{name}.png)" in text
        assert (docs / "img" / f"speed_{name}.png").is_file()
    assert make_speed.main(["--docs", str(docs), "--check"]) == 0


def test_a_stale_page_or_picture_is_found_and_one_without_a_file_goes(docs, capsys):
    make_speed.main(["--docs", str(docs)])
    write(docs / "speed" / "a.json", FACTS, [PEER, replace(OURS, seconds=(4.0, 4.0, 4.0))])
    (docs / "speed" / "b.json").unlink()
    assert make_speed.main(["--docs", str(docs), "--check"]) == 1
    stale = [Path(line.split(" is not ")[0]).name for line in capsys.readouterr().out.splitlines()]
    assert stale == ["speed.md", "speed_a.png", "speed_b.png"]
    make_speed.main(["--docs", str(docs)])
    assert make_speed.main(["--docs", str(docs), "--check"]) == 0
    assert [path.name for path in (docs / "img").iterdir()] == ["speed_a.png"]


def test_a_measurement_that_was_cut_off_is_no_page(docs):
    write(docs / "speed" / "a.json", {**FACTS, "finished": False}, [PEER, OURS])
    with pytest.raises(UserError, match="speed/a.json is not of a whole measurement: measure again, octzoo bench"):
        make_speed.main(["--docs", str(docs)])


def test_the_engines_kernels_on_the_page_are_what_the_file_says() -> None:
    specification = importlib.util.spec_from_file_location("make_kernels", DOCS / "make_kernels.py")
    make_kernels = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(make_kernels)
    found = json.loads((DOCS / "kernels.json").read_text())
    text = (DOCS / "speed.md").read_text()
    assert found["networks"].keys() == make_kernels.NETWORKS.keys()
    assert all(make_kernels.table(network, rows) in text for network, rows in found["networks"].items())
    assert found["cpu"] in text
