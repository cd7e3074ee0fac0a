"""What ends a run beside its end: signals, as users and schedulers send them, a process that is lost, a full disk."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.faults import TINY, command, environment, fault, finish, pictures, record, run, start

FIT = ("fit", "--config", TINY)
TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
FEW = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("stopping")
    pictures(place / "pictures")
    return place


def until(condition, process: subprocess.Popen[str], timeout: float = 120) -> None:
    """Waits for a condition while the process lives."""
    end = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}/stat").exists() and _state(pid) != "Z"]


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def family(pid: int) -> list[int]:
    """A process's session: it, its ranks, their reading processes."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == pid:
                    found.append(int(entry.name))
            except (ProcessLookupError, PermissionError):
                pass
    return found


def endless(place: Path, name: str, *flags: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A run that would not end by itself, some steps on, and its processes."""
    log = place / f"{name}.log-0"
    flags = ("--trainer.max_epochs", "10000", "--last.every_n_steps", "100", *flags)
    process = start(*FIT, "--run_dir", name, *flags, *record(place / f"{name}.log"), folder=place)
    until(lambda: log.exists() and len(log.read_text().splitlines()) > 4, process)
    return process, family(process.pid)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_to_all_processes_saves_and_ends_them_reading_ones_too(place: Path, number: int, code: int) -> None:
    """As a terminal sends Ctrl-C and a scheduler SIGTERM: to every process of the run."""
    name = f"all{number}"
    process, everybody = endless(place, name, *TWO, "--data.num_workers", "1")
    assert len(everybody) >= 4
    os.killpg(process.pid, number)
    ended, said = finish(process, timeout=60)
    assert ended == code, said
    assert f"stopped by {signal.Signals(number).name}; to resume: octzoo fit --run_dir {name} --ckpt_path last" in said
    assert alive(everybody) == []
    saved = torch.load(place / name / "last.ckpt", weights_only=True)
    done = len((place / f"{name}.log-0").read_text().splitlines())
    assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"] in (done, done - 1)


def test_a_second_ctrl_c_ends_at_once(place: Path) -> None:
    """The first waits for the step's end, which here never comes."""
    flags = ("--trainer.callbacks+=tests.faults.Sleep",)
    process = start(*FIT, "--run_dir", "twice", *flags, folder=place)
    until((place / "sleeping").exists, process)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    code, said = finish(process, timeout=30)
    assert code == 130, said


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_is_lost_ends_the_others(place: Path, rank: int) -> None:
    name = f"lost{rank}"
    flags = (*TWO, "--group_timeout", "60", *fault(hook="train_batch_end", epoch=1, batch=0, rank=rank))
    begun = time.monotonic()
    process = start(*FIT, "--run_dir", name, *flags, folder=place)
    until((place / name / "last.ckpt").exists, process)
    everybody = family(process.pid)
    code = process.wait(timeout=90)
    time.sleep(8)  # Lightning looks after its processes every five seconds
    left = alive(everybody)
    finish(process)
    assert code != 0
    assert left == []
    assert time.monotonic() - begun < 120
    torch.load(place / name / "last.ckpt", weights_only=True)


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_others_after_the_group_timeout(place: Path) -> None:
    flags = (*TWO, "--group_timeout", "30", *fault(hook="train_batch_end", epoch=1, batch=0, rank=1, number=19))
    process = start(*FIT, "--run_dir", "hangs", *flags, folder=place)
    code = process.wait(timeout=120)
    _, said = finish(process)
    assert code == 1, said
    assert "error: another process of this run ended or does not answer" in said


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def torchrun(place: Path, name: str, *launcher: str, more: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """An agent of torchrun with the command below it."""
    script = command(*FIT, "--run_dir", name, *more, "--trainer.strategy", "ddp")[1:]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *launcher, *script],
        cwd=place,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_torchruns_agent_is_signalled(place: Path) -> None:
    log = place / "agent.log-0"
    more = ("--trainer.devices", "2", "--trainer.max_epochs", "10000", *record(place / "agent.log"))
    process = torchrun(place, "agent", "--nproc_per_node", "2", f"--master_port={free_port()}", more=more)
    until(lambda: log.exists() and len(log.read_text().splitlines()) > 4, process)
    everybody = family(process.pid)
    os.kill(process.pid, signal.SIGTERM)
    code, said = finish(process, timeout=60)
    assert code != 0
    assert "stopped by SIGTERM" in said
    assert alive(everybody) == []
    done = len(log.read_text().splitlines())
    progress = torch.load(place / "agent" / "last.ckpt", weights_only=True)["loops"]["fit_loop"]
    assert progress["epoch_loop.batch_progress"]["total"]["processed"] in (done, done - 1)


@pytest.mark.slow
def test_two_machines_by_torchrun_are_two_processes_on_one(place: Path) -> None:
    """Two agents on loopback: the bits of two processes of one machine."""
    run(*FIT, "--run_dir", "here", *TWO, *record(place / "here.log"), folder=place)
    port = free_port()
    more = ("--trainer.devices", "1", "--trainer.num_nodes", "2", *record(place / "nodes.log"))
    meet = ("--nnodes", "2", "--nproc_per_node", "1", "--master_addr=127.0.0.1", f"--master_port={port}")
    agents = [torchrun(place, "nodes", *meet, "--node_rank", str(n), more=more) for n in (0, 1)]
    for agent in agents:
        code, said = finish(agent)
        assert code == 0, said
    for rank in "01":
        assert (place / f"nodes.log-{rank}").read_text() == (place / f"here.log-{rank}").read_text()


@pytest.mark.slow
def test_slurms_warning_saves_and_requeues_as_lightning_does_and_auto_goes_on_from_it(place: Path) -> None:
    """No SLURM here: its variables, and a scontrol that writes down how it was called."""
    (place / "bin").mkdir()
    (place / "bin" / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {place}/scontrol.log\n')
    (place / "bin" / "scontrol").chmod(0o755)
    job = {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "octzoo", "SLURM_PROCID": "0"}
    job |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "PATH": f"{place}/bin:{os.environ['PATH']}"}
    log = place / "slurm.log-0"
    flags = ("--trainer.max_epochs", "10000", "--last.every_n_steps", "0", *record(place / "slurm.log"))
    process = start(*FIT, "--run_dir", "slurm", "--ckpt_path", "auto", *flags, folder=place, **job)
    until(lambda: log.exists() and len(log.read_text().splitlines()) > 8, process)
    os.kill(process.pid, signal.SIGUSR1)
    until((place / "scontrol.log").exists, process)
    process.kill()
    assert "nothing to resume in slurm: starting new" in finish(process)[1]
    assert (place / "scontrol.log").read_text() == "requeue 77\n"
    assert (place / "slurm" / "hpc_ckpt_1.ckpt").exists()
    said = run(*FIT, "--run_dir", "slurm", "--ckpt_path", "auto", *FEW, "--trainer.max_epochs", "30", folder=place)
    assert "resuming slurm from hpc_ckpt_1.ckpt" in said or "resuming slurm from last.ckpt" in said


def test_a_reading_process_that_dies_is_one_line(place: Path) -> None:
    process, everybody = endless(place, "reader", "--data.num_workers", "1")
    (reader,) = [pid for pid in everybody if pid != process.pid and "spawn" not in _cmdline(pid)][-1:]
    os.kill(reader, signal.SIGKILL)
    code, said = finish(process, timeout=60)
    assert code == 1
    assert "error: a process that reads pictures died" in said
    assert "lower data.num_workers or data.batch_size" in said


def _cmdline(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


@pytest.mark.slow
def test_broken_pictures_are_replaced_named_and_counted_and_in_validation_fatal(place: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "pictures")
    (tmp_path / "pictures" / "train" / "class1" / "4.png").write_bytes(b"no picture")
    said = run(*FIT, *FEW, "--trainer.limit_train_batches", "6", "--run_dir", "r", folder=tmp_path)
    assert "epoch 0: 1 pictures that do not decode, replaced: " in said
    assert "train/class1/4.png (UnidentifiedImageError" in said
    assert '"split": "train"' in (tmp_path / "r" / "broken_pictures.jsonl").read_text()
    header, *rows = (tmp_path / "r" / "metrics.csv").read_text().splitlines()
    assert any(row.split(",")[header.split(",").index("data/broken")] == "1.0" for row in rows)
    said = run(*FIT, *FEW, "--data.broken.train", "fail", "--trainer.limit_train_batches", "6", folder=tmp_path, code=2)
    assert "4.png does not decode (UnidentifiedImageError" in said
    assert "data.broken.train replace takes another picture instead" in said
    (tmp_path / "pictures" / "val" / "class0" / "1.png").write_bytes(b"no picture")
    said = run(*FIT, *FEW, "--trainer.num_sanity_val_steps", "0", folder=tmp_path, code=2)
    assert "val/class0/1.png does not decode" in said
    said = run(*FIT, *FEW, "--data.broken.val", "skip", folder=tmp_path)
    assert "epoch 0: 1 pictures that do not decode, left out" in said


def test_a_vanished_data_root_is_one_line(place: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "pictures")
    process = start(*FIT, "--run_dir", "r", "--trainer.callbacks+=tests.faults.Vanish", folder=tmp_path)
    code, said = finish(process)
    assert code == 2
    assert "100 in a row: are the data still there?" in said


def test_a_full_disk_is_one_line_and_the_former_checkpoint_stays(place: Path) -> None:
    run(*FIT, *FEW, "--run_dir", "full", folder=place)
    former = (place / "full" / "last.ckpt").read_bytes()
    more = ("--trainer.callbacks+=tests.faults.SmallDisk", "--trainer.max_epochs", "3")
    said = run("fit", "--run_dir", "full", "--ckpt_path", "last", *more, folder=place, code=1)
    assert "error: full/last.ckpt cannot be written: File too large; the former one is kept" in said
    assert (place / "full" / "last.ckpt").read_bytes() == former
    assert not list((place / "full").glob(".writing-*"))


@pytest.mark.slow
def test_a_bad_step_of_one_process_ends_both_with_its_code(place: Path) -> None:
    """The second process's loss is not a number; both know it before the step."""
    flags = (*TWO, "--trainer.callbacks+=tests.faults.NotANumber")
    said = run(*FIT, "--run_dir", "nan", *flags, folder=place, code=4)
    assert "error: step 2 (epoch 1, batch 1): the loss or the gradient is not finite or too large" in said
    assert torch.load(place / "nan" / "last.ckpt", weights_only=True)["global_step"] <= 2
    processes = [json.loads(line) for line in (place / "nan" / "bad_steps.jsonl").read_text().splitlines()]
    assert sorted(step["process"] for step in processes) == [0, 1]
    assert all(len(step["samples"]) == 8 for step in processes)


@pytest.mark.slow
def test_stopped_before_the_first_update_of_an_accumulation_it_waits_for_it_and_saves(place: Path) -> None:
    flags = ("--trainer.accumulate_grad_batches", "4", *fault(hook="before_backward", epoch=0, batch=0, number=15))
    said = run(*FIT, "--run_dir", "early", *flags, folder=place, code=143)
    assert "to resume: octzoo fit --run_dir early --ckpt_path last" in said
    assert torch.load(place / "early" / "last.ckpt", weights_only=True)["global_step"] == 1
