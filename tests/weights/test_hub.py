"""`octzoo publish`, `pull` and `verify`, and loading by name, against a Hub on this machine that fails as told.

Most commands run one after the other in one process (``Session``); what is killed has a process of its own.
"""

import json
import resource
import shutil
import time

import pytest

from tests.clients import ALPHA, FULL_NAME, Session, checkpoint, contents, digest_of, finish, load, start
from tests.hubserver import hub

TOKEN = "hf_Zx7secret"
REPO = f"lab/{FULL_NAME}"
COMMAND = "import sys, octzoo_cli; sys.exit(octzoo_cli.main(sys.argv[1:]))"
WEIGHTS, CONFIG, CARD = FILES = ("model.safetensors", "config.json", "README.md")
HALF = 600_000  # bytes of the 1.1 MB of weights


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """The Hub, and a process that knows it."""
    home = tmp_path_factory.mktemp("session")
    with hub({TOKEN: ["lab", "octzoo"]}, elsewhere=True) as server:
        session = Session(home, hub=server, token=TOKEN, OCTZOO_CHECKPOINTS=str(home / "none"))
        yield server, session
        session.close()


@pytest.fixture
def server(running):
    """The Hub, empty and well."""
    server, _ = running
    server.reset()
    yield server
    server.release.set()


@pytest.fixture
def octzoo(running):
    """Runs an `octzoo` command."""
    return running[1]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("original"), seed=1)


@pytest.fixture
def folder(original, tmp_path):
    """A checkpoint folder that a test may change."""
    return copy(original, tmp_path / "mine")


def copy(folder, parent):
    return shutil.copytree(folder, parent / folder.name)


def flip(path):
    """Invert a byte of a file."""
    content = bytearray(path.read_bytes())
    content[HALF] ^= 0xFF
    path.write_bytes(content)


def rewrite(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def other_card(folder):
    (folder / CARD).write_text((folder / CARD).read_text() + "\nMore.\n")


# ---- publish -------------------------------------------------------------------------------------------------------


def test_a_folder_is_created_uploaded_in_one_commit_tagged_and_read_back(server, octzoo, folder):
    done = octzoo("publish", folder, "--org", "lab", "--tag", "v1")
    assert done.code == 0, done
    assert server.changes() == ["POST create", "POST preupload", "POST batch", "PUT object", "POST verify"] + [
        "POST commit",
        "POST tag",
    ]
    (_, first), (commit, _) = server.repositories[REPO].commits
    assert list(first) == [".gitattributes"]
    assert server.repositories[REPO].tags == {"v1": commit}
    assert server.files(REPO).items() >= contents(folder).items()
    since = server.requests[server.requests.index(server.asked("POST commit")[0]) :]
    read = {request.path for request in since if request.kind == "GET resolve"}
    assert read == {f"/{REPO}/resolve/{commit}/{name}" for name in FILES}
    assert f'timm.create_model("hf-hub:{REPO}", pretrained=True)' in done.out
    assert f'"hf-hub:{REPO}"' in server.files(REPO)[CARD].decode()
    assert {request.token for request in server.asked("PUT object", "GET object")} == {None}


def test_the_second_run_uploads_nothing(server, octzoo, folder):
    for _ in range(2):
        server.requests.clear()
        done = octzoo("publish", folder, "--org", "lab", "--tag", "v1")
        assert done.code == 0, done
    assert server.changes() == []
    assert "nothing to upload" in done.out
    assert len(server.asked("GET resolve")) == len(FILES)


def test_only_what_differs_is_uploaded(server, octzoo, folder):
    octzoo("publish", folder, "--org", "lab", "--tag", "v1")
    other_card(folder)
    server.requests.clear()
    server.faults = {"GET refs": [503]}
    done = octzoo("publish", folder, "--org", "lab", "--tag", "v2")
    assert done.code == 0, done
    assert f"uploaded {CARD} (" in done.out
    assert WEIGHTS not in done.out
    assert not server.asked("PUT object")
    assert len(server.asked("POST commit")) == 1
    (_, (old, _), (new, _)) = server.repositories[REPO].commits
    assert server.repositories[REPO].tags == {"v1": old, "v2": new}


def test_a_dry_run_tells_and_changes_nothing(server, octzoo, folder):
    before = contents(folder)
    done = octzoo("publish", folder, "--org", "lab", "--tag", "v1", "--dry-run")
    assert done.code == 0, done
    assert f"{REPO}: would create it, upload {WEIGHTS} (" in done.out
    assert server.repositories == {}
    assert octzoo("publish", folder, "--org", "lab").code == 0
    server.requests.clear()
    other_card(folder)
    done = octzoo("publish", folder, "--org", "lab", "--dry-run")
    assert f"{REPO}: would upload {CARD} (" in done.out
    assert server.changes() == []
    assert before.keys() == contents(folder).keys()
    assert before[WEIGHTS] == contents(folder)[WEIGHTS]


def test_a_new_repository_is_private_if_that_is_asked(server, octzoo, folder, tmp_path):
    another = checkpoint(tmp_path, full_name="oct_cifar_resnet20_a0.25.test")
    assert octzoo("publish", folder, another, "--org", "lab", "--private").code == 0
    assert octzoo("publish", folder, "--org", "octzoo").code == 0
    private = {repo_id: repository.private for repo_id, repository in server.repositories.items()}
    assert private == {REPO: True, f"lab/{another.name}": True, f"octzoo/{FULL_NAME}": False}
    server.requests.clear()
    done = octzoo("publish", folder, "--org", "octzoo", "--private")
    assert (done.code, server.changes()) == (2, [])
    assert f"octzoo/{FULL_NAME} is there already and public" in done.error


def test_other_files_are_named_and_stay_here(server, octzoo, folder):
    (folder / "notes.txt").write_text("mine")
    done = octzoo("publish", folder, "--org", "lab")
    assert done.code == 0, done
    assert "not uploaded: notes.txt" in done.out
    assert server.files(REPO).keys() == {".gitattributes", *FILES}


REFUSED = {
    "a pickle": (lambda f: (f / "pytorch_model.bin").write_bytes(b"x"), r"pytorch_model.bin, which can run code"),
    "a flipped byte": (lambda f: flip(f / WEIGHTS), "is damaged: its SHA-256 is not that in config.json"),
    "no config": (lambda f: (f / CONFIG).unlink(), "is damaged (FileNotFoundError"),
    "no alpha": (lambda f: rewrite(f / CONFIG, '"alpha": 0.125', ""), "does not say one alpha"),
    "two alphas": (lambda f: rewrite(f / CONFIG, '"alpha": 0.125', '"alpha": 0.25'), "does not say one alpha"),
    "another name": (lambda f: rewrite(f / CONFIG, "125.test", "125.other"), "which is not what lab/"),
    "no card": (lambda f: (f / CARD).unlink(), "has no README.md"),
    "only a pickle": (lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"), "only pytorch_model.bin, which can run"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_folder_that_is_not_right_is_refused_before_a_request(server, octzoo, folder, what):
    spoil, text = REFUSED[what]
    spoil(folder)
    done = octzoo("publish", folder, "--org", "lab")
    assert (done.code, server.requests) == (2, []), done
    assert text in done.error


@pytest.mark.parametrize("org", ["", "..", "a/b", "../lab", "lab\\x", "/lab", "lab\n"])
def test_an_organisation_that_is_none_is_refused_before_a_request(server, octzoo, folder, org):
    done = octzoo("publish", folder, "--org", org)
    assert (done.code, server.requests) == (2, [])
    assert "is no user or organisation of the Hub" in done.error


def test_a_tag_of_another_state_is_an_error_before_anything_is_uploaded(server, octzoo, folder):
    server.publish(REPO, contents(folder), tag="v1")
    other_card(folder)
    done = octzoo("publish", folder, "--org", "lab", "--tag", "v1")
    assert (done.code, server.changes()) == (2, []), done
    assert f"{REPO} has a tag v1 already, of another state: choose another" in done.error


ONCE = {
    "busy": {
        kind: [503]
        for kind in ("POST create", "POST preupload", "POST batch", "PUT object", "POST commit", "POST tag")
        + ("GET info", "GET model.safetensors", "GET README.md")
    },
    "asks for patience": {kind: [429] for kind in ("POST create", "POST commit", "GET info", "GET object")},
    "does it and cannot say so": {kind: ["lost"] for kind in ("POST create", "PUT object", "POST commit", "POST tag")},
    "breaks off": {
        "POST create": [("drop", 5)],
        "PUT object": [("drop", HALF)],
        "POST commit": [("drop", 100)],
        "GET info": [("drop", 5)],
        "GET object": [("drop", HALF)],
        "GET README.md": [("drop", 5)],
    },
    "hears of another commit first": {"POST commit": [412]},
    "sends a wrong byte": {"GET object": [("flip", HALF)], "GET config.json": [("flip", 10)]},
}


@pytest.mark.parametrize("what", ONCE)
def test_a_server_that_fails_once_at_each_step_is_outlived(server, octzoo, folder, what):
    server.faults = {kind: list(faults) for kind, faults in ONCE[what].items()}
    done = octzoo("publish", folder, "--org", "lab", "--tag", "v1", timeout=120)
    assert done.code == 0, done
    assert not any(server.faults.values()), "a fault that was not met"
    assert len(server.asked("GET object")) == 1 + len(ONCE[what].get("GET object", []))
    _, (commit, _) = server.repositories[REPO].commits
    assert server.repositories[REPO].tags == {"v1": commit}
    assert server.files(REPO).items() >= contents(folder).items()


def test_what_arrived_wrong_is_noticed_when_it_is_read_back(server, octzoo, folder):
    server.faults = {"PUT object": [("flip", HALF)]}
    done = octzoo("publish", folder, "--org", "lab")
    assert done.code == 1
    assert f"resolve/{server.repositories[REPO].commits[-1][0]}/{WEIGHTS}" in done.error
    assert "has the checksum" in done.error


def test_a_server_that_keeps_failing_is_one_error_and_the_next_run_goes_on(server, octzoo, folder):
    server.faults = {"POST commit": [503] * 9}
    done = octzoo("publish", folder, "--org", "lab")
    assert done.code == 1
    assert f"{REPO}: the Hub answers 503" in done.error
    server.faults.clear()
    server.requests.clear()
    assert octzoo("publish", folder, "--org", "lab").code == 0
    assert not server.asked("POST create", "PUT object")
    assert server.files(REPO).items() >= contents(folder).items()


def test_an_upload_that_is_refused_says_why(server, octzoo, folder):
    server.faults = {"PUT object": [403]}
    done = octzoo("publish", folder, "--org", "lab")
    assert done.code == 1
    assert "403" in done.error


@pytest.mark.parametrize("step", ["PUT object", "POST commit", "POST tag"])
def test_what_was_killed_is_finished_by_the_next_run(server, octzoo, folder, tmp_path, step):
    server.faults = {step: ["hold"]}
    arguments = ("publish", folder, "--org", "lab", "--tag", "v1")
    process = start(["-c", COMMAND, *arguments], home=tmp_path, hub=server, token=TOKEN)
    assert server.held.wait(60)
    process.kill()
    process.communicate()
    done = octzoo(*arguments)
    assert done.code == 0, done
    _, (commit, _) = server.repositories[REPO].commits
    assert server.repositories[REPO].tags == {"v1": commit}
    assert server.files(REPO).items() >= contents(folder).items()
    assert len(server.asked("POST create")) == 1


def test_who_may_not_write_is_told_so(server, octzoo, folder):
    for environment, org, status in [
        ({}, "others", 403),
        ({"HF_TOKEN": "hf_Wrong7secret"}, "lab", 401),
        ({"HF_TOKEN": "", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}, "lab", 401),
    ]:
        done = octzoo("publish", folder, "--org", org, **environment)
        assert done.code == 1
        assert f"{org}/{FULL_NAME}: the Hub answers {status}" in done.error
        assert "HF_TOKEN" in done.error
        assert "7secret" not in done.error
    assert server.repositories == {}


# ---- pull ----------------------------------------------------------------------------------------------------------


def left(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_a_folder_comes_as_it_was_published_at_every_revision(server, octzoo, original, folder, tmp_path):
    first = server.publish(REPO, {".gitattributes": b"x", **contents(original)}, tag="v1")
    other_card(folder)
    server.publish(REPO, contents(folder))
    for out, more in [("main", ()), ("tag", ("--revision", "v1")), ("commit", ("--revision", first))]:
        done = octzoo("pull", REPO, "--out", tmp_path / out, *more)
        assert done.code == 0, done
        assert f"{tmp_path / out / FULL_NAME}: 3 files of {REPO}" in done.out
        expected = folder if out == "main" else original
        assert contents(tmp_path / out / FULL_NAME) == contents(expected)
        assert left(tmp_path / out) == [FULL_NAME]
    assert {request.token for request in server.asked("GET object")} == {None}


def test_a_name_alone_is_one_of_octzoos_own_and_checkpoints_is_where_folders_go(server, octzoo, original):
    server.publish(f"octzoo/{FULL_NAME}", contents(original))
    done = octzoo("pull", FULL_NAME)
    assert done.code == 0, done
    assert contents(octzoo.home / "checkpoints" / FULL_NAME) == contents(original)
    shutil.rmtree(octzoo.home / "checkpoints")


def test_a_folder_that_is_there_is_left_and_compared(server, octzoo, original, tmp_path):
    server.publish(REPO, contents(original))
    assert octzoo("pull", REPO, "--out", tmp_path).code == 0
    server.requests.clear()
    done = octzoo("pull", REPO, "--out", tmp_path)
    assert done.code == 0, done
    assert f"{tmp_path / FULL_NAME}: as it is on the Hub" in done.out
    assert not server.asked("GET resolve")
    flip(tmp_path / FULL_NAME / WEIGHTS)
    before = contents(tmp_path / FULL_NAME)
    done = octzoo("pull", REPO, "--out", tmp_path)
    assert done.code == 2
    assert f"{tmp_path / FULL_NAME} exists, and is not {REPO} ({WEIGHTS})" in done.error
    assert contents(tmp_path / FULL_NAME) == before


@pytest.mark.parametrize(
    ("faults", "ranges"),
    [
        ({"GET object": [("drop", HALF)], "GET config.json": [("drop", 10)]}, [None, f"bytes={HALF}-"]),
        ({"GET info": [503], "GET object": [503], "GET README.md": [503]}, [None, None]),
        ({"GET info": ["lost"], "GET object": ["lost"], "GET model.safetensors": [429]}, [None, None]),
        ({"GET object": [("flip", HALF)], "GET README.md": [("flip", 10)]}, [None, None]),
    ],
)
def test_a_server_that_fails_once_is_outlived_and_no_wrong_byte_arrives(
    server, octzoo, original, tmp_path, faults, ranges
):
    server.publish(REPO, contents(original))
    server.faults = {kind: list(once) for kind, once in faults.items()}
    done = octzoo("pull", REPO, "--out", tmp_path)
    assert done.code == 0, done
    assert not any(server.faults.values()), "a fault that was not met"
    assert contents(tmp_path / FULL_NAME) == contents(original)
    assert [request.range for request in server.asked("GET object")] == ranges
    assert left(tmp_path) == [FULL_NAME]


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_twice_not_what_the_hub_says_is_refused(server, octzoo, original, tmp_path, name):
    server.publish(REPO, contents(original))
    server.faults = {"GET object" if name == WEIGHTS else f"GET {name}": [("flip", 10)] * 2}
    done = octzoo("pull", REPO, "--out", tmp_path)
    assert done.code == 1
    assert f"/{name} has the checksum" in done.error
    assert FULL_NAME not in left(tmp_path)


def without(files, *names):
    return {name: content for name, content in files.items() if name not in names}


ABSURD = {
    "no alpha": (lambda files: {**files, CONFIG: files[CONFIG].replace(b'"alpha": 0.125', b"")}, "say one alpha"),
    "other weights": (lambda files: {**files, WEIGHTS: files[WEIGHTS][:-1] + b"x"}, "its SHA-256 is not that in"),
    "another network": (lambda files: {**files, CONFIG: files[CONFIG].replace(b"resnet20", b"resnet56")}, "resnet56"),
    "no JSON": (lambda files: {**files, CONFIG: b"<html>"}, "is damaged (JSONDecodeError"),
    "JSON of another kind": (lambda files: {**files, CONFIG: b"[1]"}, "is damaged (TypeError"),
    "a pickle only": (
        lambda files: {**without(files, WEIGHTS), "pytorch_model.bin": files[WEIGHTS]},
        f"it has no {WEIGHTS}, only pytorch_model.bin, which can run code and is not read",
    ),
    "no config": (lambda files: without(files, CONFIG), f"is no checkpoint folder: it has no {CONFIG}"),
}


@pytest.mark.parametrize("what", ABSURD)
def test_a_repository_that_does_not_hold_such_a_folder_is_refused(server, octzoo, original, tmp_path, what):
    spoil, text = ABSURD[what]
    server.publish(REPO, spoil(contents(original)))
    done = octzoo("pull", REPO, "--out", tmp_path)
    assert done.code == 2, done
    assert text in done.error
    assert REPO in done.error
    assert FULL_NAME not in left(tmp_path)
    assert not [request for request in server.requests if request.path.endswith(".bin")]


TRICKS = """
. .. / NAME/ ../NAME /NAME ~/NAME a/b/NAME lab/../NAME lab/.. lab/ lab//NAME lab/NAME/.. lab/NAME/../../x
lab\\NAME C:\\x lab/NAME?x lab/NAME#x lab/NAME%2f.. lab/NAME@v1 lab/\0NAME http://127.0.0.1/x
lab/oct_cifar_resnet20_a0.1250.test
"""
TRICKS = [name.replace("NAME", FULL_NAME) for name in TRICKS.split()]


@pytest.mark.parametrize("name", ["", f"lab/{FULL_NAME}\n", f"lab/{FULL_NAME} ", *TRICKS])
def test_a_name_with_a_trick_is_refused_before_a_request(server, octzoo, tmp_path, name):
    done = octzoo("pull", name, "--out", tmp_path / "out")
    assert (done.code, server.requests) == (2, [])
    assert done.error
    assert left(tmp_path) == []


@pytest.mark.parametrize("revision", ["", "..", "../x", "a/b", "v1?x", "v1#x", "v1\n", "%2e%2e", "\\"])
def test_a_revision_with_a_trick_is_refused_before_a_request(server, octzoo, tmp_path, revision):
    done = octzoo("pull", REPO, "--revision", revision, "--out", tmp_path / "out")
    assert (done.code, server.requests) == (2, [])
    assert "is no tag, branch or commit" in done.error


def test_names_of_files_with_tricks_are_not_followed(server, octzoo, original, tmp_path):
    tricks = {"../evil.txt": b"x", "/tmp/evil.txt": b"x", "sub/../../evil.txt": b"x", "evil.py": b"x"}
    server.publish(REPO, {**contents(original), **tricks})
    assert octzoo("pull", REPO, "--out", tmp_path / "out").code == 0
    assert contents(tmp_path / "out" / FULL_NAME) == contents(original)
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]


def test_who_may_not_read_and_what_is_not_there_is_told(server, octzoo, original, tmp_path):
    server.publish(REPO, contents(original), private=True)
    server.publish(f"gated/{FULL_NAME}", contents(original), readers=set())
    nobody = {"HF_TOKEN": "", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    for name, more, environment, text in [
        (REPO, (), nobody, f"{REPO} is not on the Hub, or is private: set HF_TOKEN"),
        (f"lab/x_{FULL_NAME}".replace("x_", "oct_"), (), {}, "is not on the Hub"),
        (REPO, ("--revision", "v9"), {}, f"{REPO} has no such revision"),
        (f"gated/{FULL_NAME}", (), {}, f"gated/{FULL_NAME}"),
    ]:
        done = octzoo("pull", name, *more, "--out", tmp_path, **environment)
        assert done.code == 1, done
        assert text in done.error
        assert FULL_NAME not in left(tmp_path)
    assert "gated" in done.error.replace(f"gated/{FULL_NAME}", "")
    assert octzoo("pull", REPO, "--out", tmp_path).code == 0


def test_a_full_disk_leaves_no_folder_and_the_next_run_resumes(server, octzoo, original, tmp_path):
    """A limit on the size of files stands in for the disk."""
    server.publish(REPO, contents(original))
    assert octzoo("pull", "..").code == 2  # the process runs
    limits = resource.prlimit(octzoo.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(octzoo.process.pid, resource.RLIMIT_FSIZE, (HALF, limits[1]))
    try:
        done = octzoo("pull", REPO, "--out", tmp_path)
    finally:
        resource.prlimit(octzoo.process.pid, resource.RLIMIT_FSIZE, limits)
    assert done.code == 1
    assert "File too large" in done.error
    assert FULL_NAME not in left(tmp_path)
    assert octzoo("pull", REPO, "--out", tmp_path).code == 0
    assert server.asked("GET object")[-1].range == f"bytes={HALF}-"
    assert contents(tmp_path / FULL_NAME) == contents(original)


def test_a_killed_pull_leaves_no_folder_and_the_next_run_resumes(server, octzoo, original, tmp_path):
    server.publish(REPO, contents(original))
    server.faults = {"GET object": [("drop", HALF), "hold"]}
    arguments = ("pull", REPO, "--out", tmp_path / "out")
    process = start(["-c", COMMAND, *arguments], home=tmp_path, hub=server, token=TOKEN)
    assert server.held.wait(60)
    process.kill()
    process.communicate()
    assert FULL_NAME not in left(tmp_path / "out")
    done = octzoo(*arguments)
    assert done.code == 0, done
    assert server.asked("GET object")[-1].range == f"bytes={HALF}-"
    assert contents(tmp_path / "out" / FULL_NAME) == contents(original)
    assert left(tmp_path / "out") == [FULL_NAME]


def test_two_pulls_at_once_download_once(server, original, tmp_path):
    server.publish(REPO, contents(original))
    server.faults = {"GET object": ["hold"]}
    command = ["-c", COMMAND, "pull", REPO, "--out", tmp_path / "out"]
    both = [start(command, home=tmp_path, hub=server, token=TOKEN) for _ in range(2)]
    until(lambda: server.held.is_set() and len(server.asked("GET info")) == 2)
    server.release.set()
    for code, _, err in map(finish, both):
        assert code == 0, err
    assert len(server.asked("GET object")) == 1
    assert contents(tmp_path / "out" / FULL_NAME) == contents(original)
    assert left(tmp_path / "out") == [FULL_NAME]


def until(so, seconds=60):
    """Wait."""
    deadline = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---- servers that do not answer: half a minute is what is promised ---------------------------------------------------


def within_half_a_minute(octzoo, *arguments):
    octzoo("pull", "..")  # what is imported takes a time of its own
    began = time.monotonic()
    done = octzoo(*arguments, timeout=60)
    assert time.monotonic() - began < 30
    assert done.code == 1, done
    return done.error


def test_a_silent_hub_is_given_up(server, octzoo, folder, tmp_path):
    server.silent = True
    assert f"{REPO}: the Hub" in within_half_a_minute(octzoo, "pull", REPO, "--out", tmp_path)
    assert f"{REPO}: the Hub" in within_half_a_minute(octzoo, "publish", folder, "--org", "lab")


@pytest.mark.slow
@pytest.mark.parametrize("step", ["GET refs", "GET object", "POST commit"])
def test_a_hub_that_falls_silent_is_given_up(server, octzoo, folder, tmp_path, step):
    server.publish(REPO, contents(folder))
    other_card(folder)
    server.faults = {step: ["silent"] * 9}
    arguments = ("pull", REPO, "--out", tmp_path)
    if step != "GET object":
        arguments = ("publish", folder, "--org", "lab", "--tag", "v1")
    assert within_half_a_minute(octzoo, *arguments)


def test_a_hub_that_is_down_is_given_up(folder, tmp_path):
    session = Session(tmp_path)
    for arguments in (("pull", REPO, "--out", tmp_path), ("publish", folder, "--org", "lab")):
        assert "cannot be reached" in within_half_a_minute(session, *arguments)
    session.close()


def test_offline_nothing_is_asked(server, folder, tmp_path):
    session = Session(tmp_path, hub=server, HF_HUB_OFFLINE="1")
    for arguments in (("pull", REPO, "--out", tmp_path), ("publish", folder, "--org", "lab")):
        done = session(*arguments)
        assert (done.code, server.requests) == (1, [])
        assert "HF_HUB_OFFLINE is set" in done.error
    session.close()


# ---- the token -----------------------------------------------------------------------------------------------------


def test_the_token_stands_in_no_output_log_or_file(server, folder, tmp_path):
    """With everything logged that there is to log, when it goes well and when it does not."""
    session = Session(tmp_path, hub=server, token=TOKEN, HF_DEBUG="1", HF_HUB_VERBOSITY="debug")
    server.faults = {"PUT object": [503, "lost"], "POST commit": [503], "GET object": [("flip", HALF), ("drop", HALF)]}
    publish, pull = ("publish", folder, "--org", "lab", "--tag", "v1"), ("pull", REPO, "--out", tmp_path / "out")
    results = [session(*publish, timeout=120), session(*pull)]
    assert [result.code for result in results] == [0, 0], results
    server.faults = {"GET info": [503, 503, 503, 401, 403, 400]}
    results += [session(*pull, "--debug"), session("publish", folder, "--org", "others", "--debug")]
    results += [session(*pull, HF_TOKEN=f"{TOKEN}-wrong") for _ in range(4)]
    assert all(result.code for result in results[2:])
    said = "".join(str(result) for result in results) + session.log
    session.close()
    assert "POST" in session.log
    assert TOKEN not in said
    assert any(request.token == TOKEN for request in server.asked("POST commit"))
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert TOKEN.encode() not in path.read_bytes(), path


# ---- verify --------------------------------------------------------------------------------------------------------


def rows(done):
    """Full name -> what is said of it."""
    return dict(line.split(": ", 1) for line in done.out.splitlines())


def test_whole_folders_are_good_wherever_they_are(server, octzoo, original, tmp_path):
    """In a folder of the user's, in our cache, and in the Hub's."""
    server.publish(REPO, contents(original))
    said, _ = load(f"timm:hf-hub:{REPO}", home=octzoo.home, hub=server, token=TOKEN)
    assert said[0].get("alpha") == ALPHA, said
    copy(original, tmp_path / "mine")
    copy(original, tmp_path / "torch/hub/octzoo")
    places = dict(OCTZOO_CHECKPOINTS=str(tmp_path / "mine"), TORCH_HOME=str(tmp_path / "torch"))
    server.requests.clear()
    done = octzoo("verify", FULL_NAME, **places)
    assert done.code == 0, done
    found = rows(done)
    assert [place.split()[0] for place in found] == ["local", "cache", "Hub's"]
    assert all(FULL_NAME in place for place in found)
    assert set(found.values()) == {"good"}
    assert rows(octzoo("verify", original)) == {f"{'given':<12} {original}": "good"}
    assert len(rows(octzoo("verify", REPO, **places))) == 1
    assert server.requests == []
    blob = next((octzoo.home / "hf").rglob(CONFIG)).resolve()
    blob.write_text(blob.read_text() + " ")  # nothing but the Hub's own hash notices
    done = octzoo("verify", FULL_NAME, **places)
    assert done.code == 1
    assert "1 of 3 damaged" in done.error
    assert [place.split()[0] for place, said in rows(done).items() if said != "good"] == ["Hub's"]
    assert f"{CONFIG} is damaged" in done.out
    shutil.rmtree(octzoo.home / "hf/hub")


DAMAGES = {
    "a flipped byte": (lambda f: flip(f / WEIGHTS), f"{WEIGHTS} is damaged: its SHA-256 is not that in"),
    "a part": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:HALF]), "is damaged (SafetensorError"),
    "no config": (lambda f: (f / CONFIG).unlink(), "is damaged (FileNotFoundError"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"has no {WEIGHTS}"),
    "one wrong alpha": (lambda f: rewrite(f / CONFIG, '"125.test"', '"25.test"'), "does not say one alpha"),
    "another name": (lambda f: rewrite(f / CONFIG, "125.test", "125.other"), f"it holds {FULL_NAME[:-4]}other"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_folder_is_named(octzoo, folder, what):
    spoil, text = DAMAGES[what]
    spoil(folder)
    done = octzoo("verify", FULL_NAME, OCTZOO_CHECKPOINTS=str(folder.parent))
    assert done.code == 1, done
    assert text in rows(done)[f"{'local':<12} {FULL_NAME}"]
    assert "1 of 1 damaged" in done.error


def test_a_wrong_alpha_that_no_checksum_notices_gives_another_answer(octzoo, folder):
    """Every statement of alpha says the same, the shapes fit, and the weights are whole."""
    for old, new in [('"alpha": 0.125', '"alpha": 0.25'), ("_a0.125", "_a0.25"), ('"125.test"', '"25.test"')]:
        rewrite(folder / CONFIG, old, new)
    folder = folder.rename(folder.with_name("oct_cifar_resnet20_a0.25.test"))
    done = octzoo("verify", folder.name, OCTZOO_CHECKPOINTS=str(folder.parent))
    assert done.code == 1, done
    assert "its answer to the golden picture is off by" in done.out


def test_nothing_to_verify_is_a_mistake(octzoo, folder):
    done = octzoo("verify", "oct_cifar_resnet20_a0.5.test", OCTZOO_CHECKPOINTS=str(folder.parent))
    assert done.code == 2
    assert "no checkpoint folder of oct_cifar_resnet20_a0.5.test" in done.error


# ---- loading by name -----------------------------------------------------------------------------------------------

PUBLISHED = "oct_mobilenetv1_075_a0.375.fb_in1k"  # the smallest that has a name of ours


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("published"), full_name=PUBLISHED, num_classes=1000)


def test_a_name_is_pulled_once_by_two_processes_and_then_found_here(server, published, tmp_path):
    """Cold, while the server fails; and then without it."""
    server.publish(f"octzoo/{PUBLISHED}", contents(published))
    server.faults = {"GET info": [503], "GET config.json": [503], "GET model.safetensors": ["hold"]}
    server.faults["GET object"] = [("drop", 5_000_000), ("flip", 1_000_000)]
    right = {"digest": digest_of(published), "alpha": 0.375}
    command = ["-m", "tests.clients", "load", f"timm:{PUBLISHED}"]
    logs = [tmp_path / "log0", tmp_path / "log1"]
    both = [start(command, log=log, home=tmp_path, hub=server) for log in logs]
    until(lambda: server.held.is_set() and any("not acquired" in log.read_text() for log in logs))
    server.release.set()
    for (code, out, _), log in zip(map(finish, both), logs):
        assert (code, json.loads(out)) == (0, right), log.read_text()
    assert [request.range for request in server.asked("GET object")] == [None, "bytes=5000000-", None]
    assert contents(tmp_path / "torch/hub/octzoo" / PUBLISHED) == contents(published)
    said, output = load(f"timm:{PUBLISHED}", home=tmp_path)
    assert said == [right]
    assert f"{PUBLISHED}: weights from the cache {tmp_path}" in output


def test_a_name_is_found_in_the_users_folder_and_in_the_hubs_cache(server, published, tmp_path):
    server.publish(f"octzoo/{PUBLISHED}", contents(published))
    right = {"digest": digest_of(published), "alpha": 0.375}
    said, output = load(f"timm:hf-hub:octzoo/{PUBLISHED}", f"timm:{PUBLISHED}", home=tmp_path, hub=server)
    assert said == [right] * 2
    assert len(server.asked("GET object")) == 1
    assert f"{PUBLISHED}: weights from the Hub's cache" in output
    said, output = load(f"timm:{PUBLISHED}", home=tmp_path / "other", OCTZOO_CHECKPOINTS=str(published.parent))
    assert said == [right]
    assert f"{PUBLISHED}: weights from the folder {published.parent}" in output
