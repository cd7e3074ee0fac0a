"""timm, transformers and huggingface_hub as they are, on our folders: from disk, and from a Hub on this machine.

Each in processes of its own, as they read their settings when they are imported. A way to load is "timm:NAME" or
"transformers:NAME"; the weights are compared by their bits.
"""

import json
import shutil

import pytest

from tests.clients import ALPHA, FULL_NAME, checkpoint, contents, digest_of, finish, load, start
from tests.hubserver import hub

REPO = f"octzoo/{FULL_NAME}"
FROM_HUB = (f"timm:hf-hub:{REPO}", f"timm:hf-hub:{REPO}@v1", f"transformers:{REPO}", f"transformers:{REPO}@v1")
UPLOAD = """
import sys
from huggingface_hub import HfApi
api, repo, folders = HfApi(), sys.argv[1], sys.argv[2:]
api.create_repo(repo)
for folder in folders:
    api.upload_folder(repo_id=repo, folder_path=folder)
    if folder == folders[0]:
        api.create_tag(repo, tag="v1")
print(*(model.id for model in api.list_models(author="octzoo")), *sorted(api.list_repo_files(repo)))
"""


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("first"), seed=1)


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("second"), seed=2)


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory, first, second):
    """A Hub to which huggingface_hub has uploaded the first folder as v1 and the second since; what it printed."""
    home = tmp_path_factory.mktemp("uploader")
    with hub({"hf_writer": ["octzoo"]}, elsewhere=True) as server:
        code, out, err = finish(start(["-c", UPLOAD, REPO, first, second], home=home, hub=server, token="hf_writer"))
        assert code == 0, err
        yield server, out


def right(first, second):
    """What ``FROM_HUB`` gives."""
    both = [{"digest": digest_of(folder), "alpha": ALPHA} for folder in (second, first)]
    return both + both


def test_huggingface_hub_uploads_and_lists(uploaded, first, second):
    server, out = uploaded
    assert out.split() == [REPO, ".gitattributes", "README.md", "config.json", "model.safetensors"]
    assert server.files(REPO, "v1").items() >= contents(first).items()
    assert server.files(REPO).items() >= contents(second).items()


def test_every_client_gives_the_same_bits_and_alpha_at_every_revision_and_then_without_a_network(
    uploaded, first, second, tmp_path
):
    server, _ = uploaded
    assert digest_of(first) != digest_of(second)
    said, _ = load(*FROM_HUB, f"timm:local-dir:{first}", f"transformers:{first}", home=tmp_path, hub=server)
    local = {"digest": digest_of(first), "alpha": ALPHA}
    assert said == [*right(first, second), local, local]
    said, _ = load(*FROM_HUB, home=tmp_path, HF_HUB_OFFLINE="1")
    assert said == right(first, second)


def test_without_a_network_and_a_cache_every_client_says_so(tmp_path):
    said, _ = load(f"timm:hf-hub:{REPO}", f"transformers:{REPO}", home=tmp_path, HF_HUB_OFFLINE="1")
    assert [way["error"].split(":")[0] for way in said] == ["LocalEntryNotFoundError", "OSError"]


@pytest.mark.slow
def test_private_and_gated_repositories_open_to_the_right_token_alone(first, tmp_path):
    """The token goes to the Hub, not to the server that it sends its clients to, and into no output."""
    ways = [f"{way}/{FULL_NAME}" for way in ("timm:hf-hub:private", "timm:hf-hub:gated", "transformers:gated")]
    good = {"digest": digest_of(first), "alpha": ALPHA}
    tokens = {"hf_Reader7secret": [], "hf_Other7secret": []}
    with hub(tokens, elsewhere=True) as server:
        server.publish(f"private/{FULL_NAME}", contents(first), private=True)
        server.publish(f"gated/{FULL_NAME}", contents(first), readers={"hf_Reader7secret"})
        for token, private, gated in [
            ("hf_Reader7secret", good, good),
            ("hf_Other7secret", good, "GatedRepoError"),
            ("hf_Wrong7secret", "HfHubHTTPError", "HfHubHTTPError"),
            (None, "RepositoryNotFoundError", "GatedRepoError"),
        ]:
            home = tmp_path / str(len(list(tmp_path.iterdir())))
            more = dict(HF_DEBUG="1", HF_HUB_VERBOSITY="debug", TRANSFORMERS_VERBOSITY="debug")
            (of_private, of_gated, of_transformers), output = load(*ways, home=home, hub=server, token=token, **more)
            assert of_private == private or of_private["error"].startswith(private), of_private
            assert of_gated == gated or of_gated["error"].startswith(gated), of_gated
            assert of_transformers == gated or "error" in of_transformers
            assert "7secret" not in output
        assert server.asked("GET object")
        assert {request.token for request in server.asked("GET object", "HEAD object")} == {None}
        assert {"hf_Reader7secret", "hf_Wrong7secret"} <= {request.token for request in server.asked("HEAD resolve")}


SAVE = """
import sys, octzoo, timm
from timm.models import save_for_hf
from transformers import AutoModelForImageClassification
folder, by_timm, by_transformers = sys.argv[1:]
save_for_hf(timm.create_model(f"local-dir:{folder}", pretrained=True), by_timm, safe_serialization=True)
AutoModelForImageClassification.from_pretrained(folder).save_pretrained(by_transformers)
"""


def test_alpha_survives_being_saved_by_timm_and_by_transformers(first, tmp_path):
    saved = tmp_path / "by_timm", tmp_path / "by_transformers"
    code, _, err = finish(start(["-c", SAVE, first, *saved], home=tmp_path))
    assert code == 0, err
    by_timm, by_transformers = saved
    ways = (f"timm:local-dir:{by_timm}", f"timm:local-dir:{by_transformers}", f"transformers:{by_transformers}")
    said, _ = load(*ways, home=tmp_path)
    assert said == [{"digest": digest_of(first), "alpha": ALPHA}] * 3


def variant(folder, parent, **changes):
    """A copy of a folder whose config.json has other values; None takes one out, "tag" is inside pretrained_cfg."""
    copied = shutil.copytree(folder, parent / str(len(list(parent.iterdir()))))
    config = json.loads((copied / "config.json").read_text())
    for key, value in changes.items():
        place = config["pretrained_cfg"] if key == "tag" else config
        place[key] = value
        if value is None:
            del place[key]
    (copied / "config.json").write_text(json.dumps(config))
    return copied


def test_one_wrong_statement_of_alpha_is_an_error_or_has_no_effect(first, tmp_path):
    """Weights have the same shapes at every alpha: nothing but a contradiction in the config gives a wrong one away."""
    statements = {
        "model_args": {"model_args": {"alpha": 0.25}},
        "tag": {"tag": "25.test"},
        "architecture": {"architecture": "oct_cifar_resnet20_a0.25"},
        "no model_args": {"model_args": None},
        "no tag": {"tag": None},
        "no architecture": {"architecture": "oct_cifar_resnet20_a0"},
    }
    clients = ("timm:local-dir:", "transformers:")
    folders = {what: variant(first, tmp_path, **changes) for what, changes in statements.items()}
    ways = [(client, what) for what in statements for client in clients]
    said, _ = load(*(f"{client}{folders[what]}" for client, what in ways), home=tmp_path)
    said = dict(zip(ways, said))
    for way, found in said.items():
        assert "error" in found or found == {"digest": digest_of(first), "alpha": ALPHA}, (way, found)
    for client in clients:
        assert "alpha=0.25, but the name says 0.125" in said[client, "model_args"]["error"]
        assert all("error" not in said[client, what] for what in statements if what.startswith("no "))


def test_a_config_that_says_no_alpha_is_refused_by_timm(first, tmp_path):
    """With or without the architecture that is for names with a tag."""
    nothing = {"model_args": None, "tag": None}
    folders = [variant(first, tmp_path, architecture=f"oct_cifar_resnet20{a0}", **nothing) for a0 in ("_a0", "")]
    said, _ = load(*(f"timm:local-dir:{folder}" for folder in folders), home=tmp_path)
    assert "neither a tag nor alpha= says which alpha" in said[0]["error"]
    assert "error" in said[1], said[1]
