"""`gma_hf.publish`: what it assembles, what it refuses, and what is on the Hub then."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, TrainingArguments
from typer.testing import CliRunner

import gma_hf
from gma_hf.cli import app
from gma_hf.hub import publish as publishing


SHIPPED = Path(__file__).parents[2] / "model_cards" / "gma-shakespeare"
CODE = {path.name for path in Path(gma_hf.__file__).parent.glob("model/*_gma.py")}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
PARTS = CODE | TOKENIZER | {"README.md", "config.json", "generation_config.json", "model.safetensors"}
LEFTOVERS = ("optimizer.pt", "events.out.tfevents.1", ".env", "train.log")
PUBLISH = """
    import gma_hf

    answer = gma_hf.publish(folder, repo, **choices)
"""
OPEN = """
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(repo, trust_remote_code=True)
    ids = tokenizer("ROMEO:", return_tensors="pt")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(repo, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules.")
    assert type(AutoModel.from_pretrained(repo, trust_remote_code=True)).__name__ == "GMAModel"
    with torch.no_grad():
        answer = model(ids).logits.tolist()
"""


@pytest.fixture(scope="module")
def model(make_config, make_model):
    config = make_config("causal_hybrid_additions", vocab_size=257, pad_token_id=0)
    return make_model(gma_hf.GMAForCausalLM, config)


@pytest.fixture
def folder(model, tmp_path):
    """What a training leaves: a checkpoint whose config has no map yet, and much else."""
    folder = tmp_path / "run"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(SHIPPED).save_pretrained(folder)
    for code in folder.glob("*_gma.py"):
        code.unlink()
    change(folder / "config.json", lambda values: values.pop("auto_map"))
    for name in LEFTOVERS:
        (folder / name).write_text("")
    (folder / "trainer_state.json").write_text('{"log_history": []}')
    torch.save(TrainingArguments(folder, use_cpu=True, learning_rate=3e-3), folder / "training_args.bin")
    shutil.copytree(folder, folder / "checkpoint-1")
    return folder


def change(path, function):
    values = json.loads(path.read_text())
    function(values)
    path.write_text(json.dumps(values))


@pytest.fixture
def unopened(monkeypatch):
    """Without the process that opens the copy, for what is not about it."""
    monkeypatch.setattr(publishing, "check_opens", lambda folder: None)


@pytest.fixture(scope="module")
def publisher(make_client):
    return make_client()


@pytest.fixture(scope="module")
def puller(make_client):
    """Without this package."""
    return make_client("gma_hf")


@pytest.mark.slow
def test_a_checkpoint_is_published_whole_in_one_commit(hub, publisher, puller, folder, model):
    names = {"repo": "tester/whole", "folder": folder}
    before = sorted(folder.rglob("*"))
    address = publisher.run(PUBLISH, choices={"private": True, "commit_message": "First"}, **names)
    assert address == f"{hub.url}/tester/whole" and sorted(folder.rglob("*")) == before
    _, commit = hub.repos["tester/whole"]
    assert set(commit.files) == PARTS and commit.message == "First" and hub.private == {"tester/whole"}
    assert commit.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert all(
        commit.files[name] == (Path(publishing.__file__).parents[1] / "model" / name).read_bytes() for name in CODE
    )
    assert json.loads(commit.files["config.json"])["auto_map"] == model.config.auto_map
    card = ModelCard(commit.files["README.md"].decode())
    assert "custom_code" in card.data.tags and 'from_pretrained("tester/whole", trust_remote_code=True)' in card.text
    assert "| learning_rate | 0.003 |" in card.text

    logits = puller.run(OPEN, repo="tester/whole")
    ids = AutoTokenizer.from_pretrained(SHIPPED)("ROMEO:", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(logits), model(ids).logits, rtol=1e-4, atol=1e-4)


# Without the process that opens the copy, which the test above has
UPLOAD = "from gma_hf.hub import publish as publishing\npublishing.check_opens = lambda folder: None\n"


def test_what_is_published_anew_replaces_weights_and_code_of_other_names(hub, publisher, folder, model):
    names = {"repo": "tester/anew", "folder": folder, "choices": {}}
    publisher.run(UPLOAD)
    publisher.run(PUBLISH, **names)
    commits = hub.repos["tester/anew"]
    others = {"notes.md": b"by hand", "pytorch_model.bin": b"old", "old_gma.py": b"old"}
    commits[-1].files |= others
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    publisher.run(PUBLISH, **names)
    assert len(commits) == 3
    gone = {"model.safetensors", "pytorch_model.bin", "old_gma.py"}
    assert set(commits[1].files) - set(commits[2].files) == gone and commits[2].files["notes.md"] == b"by hand"
    assert "model.safetensors.index.json" in commits[2].files
    assert {path.name for path in folder.glob("model-*")} <= set(commits[2].files)


def test_an_upload_that_fails_is_told_in_a_sentence_and_leaves_nothing(hub, publisher, folder):
    names = {"repo": "tester/fails", "folder": folder}
    publisher.run(UPLOAD)
    hub.break_at = "POST .*/commit/"
    hub.passes = 0
    _, error = publisher.ask(PUBLISH, choices={}, **names)
    hub.break_at = None
    assert error.startswith("ValueError: 'tester/fails' cannot be uploaded: ")
    assert len(hub.repos["tester/fails"]) == 1
    _, error = publisher.ask(PUBLISH, choices={"private": True}, **names)
    assert error == "ValueError: With --private, REPO_ID must not be public, but 'tester/fails' on the Hub is."
    assert len(hub.repos["tester/fails"]) == 1


def test_the_command_assembles_in_a_folder(folder, tmp_path, unopened):
    out = tmp_path / "out"
    arguments = ["publish", folder, "tester/x", "--to-folder", out]
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"Written: {out}\n" and result.stderr.startswith("Opening a copy of ")
    assert {path.name for path in out.iterdir()} == PARTS
    (out / "old").write_text("")
    refused(run(*arguments), "--to-folder must not exist without --force, but ")
    assert (out / "old").exists()


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def refused(result, sentence):
    assert result.exit_code == 2
    assert sentence in result.stderr and "Traceback" not in result.stderr


def test_a_folder_is_replaced_if_told(folder, tmp_path, unopened):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("")
    assert run("publish", folder, "tester/x", "--to-folder", tmp_path / "out", "--force").exit_code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == PARTS


def test_modules_templates_and_pictures_belong_to_a_checkpoint(folder, tmp_path, unopened):
    modules = [{"idx": 0, "path": ""}, {"idx": 1, "path": "1_Pooling"}, {"idx": 2, "path": ".."}]
    (folder / "modules.json").write_text(json.dumps(modules))
    for name in ("1_Pooling/config.json", "additional_chat_templates/tool.jinja"):
        (folder / name).parent.mkdir()
        (folder / name).write_text("{}")
    (folder / "README.md").write_text("![Curve](curve.png) [elsewhere](../secret.txt) [none](none.png)")
    (folder / "curve.png").write_bytes(b"")
    (folder / "other.png").write_bytes(b"")
    gma_hf.publish(folder, "tester/x", to_folder=tmp_path / "out")
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    more = {"modules.json", "1_Pooling/config.json", "additional_chat_templates/tool.jinja", "curve.png"}
    assert written == PARTS | more
    assert (tmp_path / "out" / "README.md").read_text() == (folder / "README.md").read_text()


def weights(function):
    """Spoil the weights of a folder."""

    def spoil(folder):
        values = load_file(folder / "model.safetensors")
        function(values)
        save_file(values, folder / "model.safetensors", {"format": "pt"})

    return spoil


SPOILT = {
    "a weight is missing": (
        weights(lambda values: values.pop("model.layers.1.mlp.up_proj.weight")),
        "the weights of a GMAForCausalLM are not whole, 'model.layers.1.mlp.up_proj.weight' is missing",
    ),
    "a weight of something else": (
        weights(lambda values: values.update(other=torch.zeros(2))),
        "the weights of a GMAForCausalLM are not whole, 'other' is unexpected",
    ),
    "a weight is not finite": (
        weights(lambda values: values["model.embeddings.word_embeddings.weight"].fill_(torch.nan)),
        "what the model computes is not finite",
    ),
    "a tokenizer that is not whole": (
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        "Expecting property name enclosed in double quotes",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_would_not_open_is_found_out(name, folder, tmp_path, unopened, puller):
    """In one process for all, which is told what the process of `publish` is told."""
    spoil, why = SPOILT[name]
    spoil(folder)
    gma_hf.publish(folder, "tester/x", to_folder=tmp_path / "out")
    path = Path(publishing.__file__).with_name("open_copy.py")
    _, error = puller.ask(
        "exec(open(path).read(), names := {})\nnames['open_copy'](out)", path=path, out=tmp_path / "out"
    )
    assert error is not None and why in error


def test_what_would_not_open_is_refused(folder, tmp_path):
    change(folder / "config.json", lambda values: values.update(num_components=9))
    with pytest.raises(
        ValueError, match="must open again where gma_hf is not installed, but its copy does not: "
    ) as error:
        gma_hf.publish(folder, "tester/x", to_folder=tmp_path / "out")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (shutil.rmtree, "FOLDER must be a folder with a GMA checkpoint, but "),
        (lambda folder: (folder / "config.json").unlink(), "FOLDER must hold config.json, but .*checkpoint-1' does"),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            "FOLDER must hold its weights, model.safetensors, but ",
        ),
        (
            lambda folder: change(folder / "config.json", lambda values: values.update(model_type="gpt2")),
            "FOLDER must hold a GMA model, but the `model_type` in ",
        ),
        (
            lambda folder: (folder / "modules.json").write_text('[{"path": "1_Pooling"}]'),
            "modules.json must name folders of FOLDER, but ",
        ),
    ],
)
def test_what_is_no_checkpoint_is_refused(folder, tmp_path, unopened, spoil, sentence):
    spoil(folder)
    with pytest.raises(ValueError, match=sentence):
        gma_hf.publish(folder, "tester/x", to_folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_names_are_refused(folder):
    refused(run("publish", folder, "a/b/c"), "REPO_ID must be a name on the Hub, as user/name, but it is 'a/b/c'.")
    refused(
        run("publish", folder, "a/b"), "HF_HUB_OFFLINE must not be set to upload, but it is; --to-folder assembles"
    )
    with pytest.raises(ValueError, match="--to-folder must be another folder than FOLDER"):
        gma_hf.publish(folder, "a/b", to_folder=folder)
