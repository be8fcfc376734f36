"""Models pushed to a Hub by the real client and pulled from it, also where this package is not installed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file
from transformers import AutoTokenizer

import gma_hf


SHIPPED = Path(__file__).parents[2] / "model_cards" / "gma-shakespeare"
HEADS = {"causal_hybrid_additions": "CausalLM", "bidirectional_conv": "MaskedLM"}
CODE = {path.name for path in Path(gma_hf.__file__).parent.glob("model/*_gma.py")}
CARD = "---\nlibrary_name: transformers\ntags:\n- gma\n---\n\n# A model for a test\n"
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
PUSHED = CODE | TOKENIZER | {"README.md", "config.json", "model.safetensors"}

PUSH = """
    import gma_hf
    from huggingface_hub import upload_file
    from transformers import AutoTokenizer

    model = getattr(gma_hf, f"GMAFor{head}").from_pretrained(folder)
    for part in (model, AutoTokenizer.from_pretrained(folder)):
        part.push_to_hub(repo)
    # Not `ModelCard.push_to_hub`, which asks huggingface.co itself in older releases
    upload_file(path_or_fileobj=f"{folder}/README.md", path_in_repo="README.md", repo_id=repo)
"""
# Opens what is on the Hub under every Auto class of the map, each time from what was downloaded.
OPEN = """
    import torch
    import transformers

    torch.set_num_threads(1)
    auto_map = transformers.AutoConfig.from_pretrained(repo, trust_remote_code=True).auto_map
    answer = {}
    for auto_class in auto_map:
        opened = getattr(transformers, auto_class).from_pretrained(repo, trust_remote_code=True)
        assert type(opened).__module__.startswith("transformers_modules."), type(opened)
        if auto_class != "AutoConfig":
            sums = {key: value.double().abs().sum().item() for key, value in opened.state_dict().items()}
            answer[auto_class] = sums
    model = getattr(transformers, f"AutoModelFor{head}").from_pretrained(repo, trust_remote_code=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(repo, trust_remote_code=True)
    with torch.no_grad():
        logits = model(**tokenizer("ROMEO:", return_tensors="pt")).logits
    answer = {"auto_map": auto_map, "sums": answer, "logits": logits.tolist()}
"""
TRAIN = """
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": [1 + (7 * i + j) % 60 for j in range(12)]} for i in range(8)]
    rows = [{**row, "labels": row["input_ids"]} for row in rows]

    def train(folder, steps, resume_from=None):
        model = getattr(transformers, f"AutoModelFor{head}").from_pretrained(repo, trust_remote_code=True)
        arguments = TrainingArguments(
            folder, max_steps=steps, save_steps=1, per_device_train_batch_size=2, learning_rate=1e-2,
            lr_scheduler_type="constant", report_to="none", use_cpu=True, disable_tqdm=True
        )
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.train(resume_from_checkpoint=resume_from)
        assert trainer.state.global_step == steps

    train(f"{work}/whole", 3)
    train(f"{work}/parts", 1)
    train(f"{work}/parts", 3, f"{work}/parts/checkpoint-1")
"""
PIPE = """
    import transformers

    pipe = transformers.pipeline(task, repo, trust_remote_code=True)
    assert type(pipe.model).__module__.startswith("transformers_modules."), type(pipe.model)
    answer = len(pipe("ROMEO:", **choices))
"""


@pytest.fixture(scope="module")
def folders(make_config, make_model, tmp_path_factory):
    """Of each head, a folder with a model, its tokenizer and a card."""
    folders = {}
    for name, head in HEADS.items():
        folder = tmp_path_factory.mktemp(head)
        model = make_model(getattr(gma_hf, f"GMAFor{head}"), make_config(name, vocab_size=257, pad_token_id=0))
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(SHIPPED).save_pretrained(folder)
        (folder / "README.md").write_text(CARD)
        folders[head] = folder
    return folders


@pytest.fixture(scope="module")
def pusher(make_client):
    return make_client()


@pytest.fixture(scope="module")
def pushed(hub, pusher, folders):
    """The name of the repository of each head, with all that is in its folder."""
    repos = {head: f"tester/gma-{head.lower()}" for head in folders}
    for head, repo in repos.items():
        pusher.run(PUSH, repo=repo, head=head, folder=folders[head])
    return repos


@pytest.fixture(scope="module")
def puller(make_client):
    """Without this package."""
    return make_client("gma_hf")


@pytest.mark.parametrize("head", HEADS.values())
def test_all_of_a_model_arrives_and_its_weights_are_bit_identical(hub, pusher, pushed, folders, tmp_path, head):
    files = hub.repos[pushed[head]][-1].files
    assert set(files) - {"generation_config.json"} == PUSHED
    assert files["README.md"].decode() == CARD
    assert files["model.safetensors"] == (folders[head] / "model.safetensors").read_bytes()
    assert all(files[name] == (Path(gma_hf.__file__).parent / "model" / name).read_bytes() for name in CODE)
    load_it = """
        from safetensors.torch import load_file, save_file
        from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
        from huggingface_hub import hf_hub_download

        model = globals()[f"AutoModelFor{head}"].from_pretrained(repo)
        there = load_file(hf_hub_download(repo, "model.safetensors"))
        assert type(model) is getattr(gma_hf, f"GMAFor{head}")
        save_file({key: value for key, value in model.state_dict().items() if key in there}, kept)
        answer = hf_hub_download(repo, "model.safetensors")
    """
    kept = tmp_path / "pulled"
    pulled = pusher.run(load_it, repo=pushed[head], head=head, kept=kept)
    assert Path(pulled).read_bytes() == files["model.safetensors"]
    expected, actual = load_file(folders[head] / "model.safetensors"), load_file(kept)
    assert expected.keys() == actual.keys()
    assert all(value.dtype == actual[key].dtype and torch.equal(value, actual[key]) for key, value in expected.items())


@pytest.mark.usefixtures("newest_transformers")
@pytest.mark.parametrize("head", HEADS.values())
def test_a_second_push_changes_only_what_changed(hub, pusher, pushed, folders, head):
    commits = hub.repos[repo := f"tester/twice-{head.lower()}"] = hub.repos[pushed[head]][-1:]
    pusher.run(PUSH, repo=repo, head=head, folder=folders[head])
    assert len(commits) == 1
    sent = len(hub.uploaded)
    pusher.run("model.config.hidden_dropout_prob = 0.25\nmodel.push_to_hub(repo)", repo=repo)
    assert [commit.changed for commit in commits[1:]] == [["config.json"]]
    assert len(hub.uploaded) == sent
    pusher.run("model.get_input_embeddings().weight.data[1] += 1\nmodel.push_to_hub(repo)", repo=repo)
    assert [commit.changed for commit in commits[2:]] == [["model.safetensors"]]
    assert len(hub.uploaded) == sent + 1
    before, after = (load(commit.files["model.safetensors"]) for commit in commits[1:])
    assert [key for key in before if not torch.equal(before[key], after[key])] == [
        "model.embeddings.word_embeddings.weight"
    ]


@pytest.mark.parametrize("head", HEADS.values())
def test_a_folder_is_uploaded_in_one_commit(hub, pusher, folders, head):
    repo = f"tester/folder-{head.lower()}"
    upload = """
        import gma_hf
        from huggingface_hub import create_repo, upload_folder

        create_repo(repo)
        upload_folder(repo_id=repo, folder_path=folder)
        answer = type(getattr(gma_hf, f"GMAFor{head}").from_pretrained(repo)).__name__
    """
    assert pusher.run(upload, repo=repo, folder=folders[head], head=head) == f"GMAFor{head}"
    _, commit = hub.repos[repo]
    assert commit.files == {path.name: path.read_bytes() for path in folders[head].iterdir()}


PUSHES = {
    "push_to_hub": 'model.push_to_hub(repo, max_shard_size="20KB")',
    "upload_folder": """
        from huggingface_hub import create_repo, upload_folder

        model.save_pretrained(saved, max_shard_size="20KB")
        create_repo(repo, exist_ok=True)
        upload_folder(repo_id=repo, folder_path=saved)
    """,
}
# Which push breaks off, at which request, how many of that kind pass before, and whether it is carried out anyway.
BREAKS = {
    "a large file": ("push_to_hub", "PUT /objects/", 1, False),
    "the commit": ("push_to_hub", "POST .*/commit/", 0, False),
    "the answer to the commit": ("push_to_hub", "POST .*/commit/", 0, True),
    "the commit of a folder": ("upload_folder", "POST .*/commit/", 0, False),
}
CHANGE = """
    import gma_hf

    if first:
        model = gma_hf.GMAForCausalLM.from_pretrained(folder)
    for parameter in model.parameters():
        parameter.data += offset if first else 1  # no file is on the Hub already
    answer = {key: value.double().sum().item() for key, value in model.state_dict().items()}
"""
PULL = """
    pulled = gma_hf.GMAForCausalLM.from_pretrained(repo)
    answer = {key: value.double().sum().item() for key, value in pulled.state_dict().items()}
"""


@pytest.mark.parametrize("where", BREAKS)
def test_a_push_broken_off_leaves_nothing_half_made(hub, pusher, folders, tmp_path, where):
    """Neither a first push nor a second, of a model in several files; the next completes it and sends none again."""
    names = {"repo": f"tester/broken-{list(BREAKS).index(where)}", "folder": folders["CausalLM"], "offset": len(where)}
    names |= {"saved": tmp_path / "saved"}
    how, *breaks = BREAKS[where]
    push, before = PUSHES[how], None
    for pushes in range(2):
        expected = pusher.run(CHANGE, first=pushes == 0, **names)
        sent, broken = len(hub.uploaded), hub.broken
        hub.break_at, hub.passes, hub.lose_answer = breaks
        _, error = pusher.ask(push, **names)
        hub.break_at = None
        assert error is not None and hub.broken > broken

        commits = hub.repos[names["repo"]]
        arrived = hub.lose_answer
        assert len(commits) == 1 + pushes + arrived
        pulled, error = pusher.ask(PULL, **names)
        if arrived or pushes == 1:
            assert pulled == (expected if arrived else before)
        else:
            assert not commits[-1].files and "OSError" in error

        pusher.run(push, **names)
        assert len(commits) == 2 + pushes
        assert pusher.run(PULL, **names) == expected
        shards = {name for name in commits[-1].files if name.endswith(".safetensors")}
        assert len(shards) > 2 and len(hub.uploaded) - sent == len(set(hub.uploaded[sent:])) == len(shards)
        before = expected


def test_a_folder_in_other_files_takes_the_place_of_the_old_ones(hub, pusher, folders, tmp_path):
    """From one file to several, where `push_to_hub` would leave the old one to be opened, and back again."""
    names = {"repo": "tester/other-files", "folder": folders["CausalLM"], "saved": tmp_path / "saved"}
    upload = """
        from huggingface_hub import upload_folder

        model.save_pretrained(saved, max_shard_size=size)
        upload_folder(repo_id=repo, folder_path=saved, delete_patterns="model*.safetensors*")
    """
    pusher.run(CHANGE, first=True, offset=3, **names)
    pusher.run("model.push_to_hub(repo)", **names)
    commits = hub.repos[names["repo"]]
    for size in ("20KB", "1GB"):
        expected = pusher.run(CHANGE, first=False, **names)
        pusher.run(upload, size=size, **names)
        weights = {name for name in commits[-1].files if "safetensors" in name}
        assert weights == {path.name for path in (tmp_path / "saved").glob("*safetensors*")}
        assert ("model.safetensors" in weights) == (size == "1GB")
        assert pusher.run(PULL, **names) == expected


@pytest.mark.parametrize("head", HEADS.values())
def test_opens_under_every_auto_class_without_the_package(pushed, puller, folders, head):
    answer = puller.run(OPEN, repo=pushed[head], head=head)
    model = getattr(gma_hf, f"GMAFor{head}").from_pretrained(folders[head])
    expected_map = {key: f"{pushed[head]}--{value}" for key, value in model.config.auto_map.items()}
    assert answer["auto_map"] in (model.config.auto_map, expected_map)
    assert {f"AutoModelFor{head}", "AutoModel", "AutoModelForTokenClassification"} <= set(answer["sums"])
    backbone = {key: value.double().abs().sum().item() for key, value in model.model.state_dict().items()}
    for auto_class, sums in answer["sums"].items():
        prefix = "" if auto_class == "AutoModel" else "model."
        assert {key: sums[prefix + key] for key in backbone} == pytest.approx(backbone), auto_class
    ids = AutoTokenizer.from_pretrained(SHIPPED)("ROMEO:", return_tensors="pt")
    with torch.no_grad():
        expected = model(**ids).logits
    torch.testing.assert_close(torch.tensor(answer["logits"]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", HEADS.values())
def test_the_pulled_copy_saves_whole_and_its_training_resumes(pushed, puller, folders, tmp_path, head):
    """What it writes is a checkpoint as complete as the first, which opens in a third process."""
    names = {"repo": pushed[head], "head": head, "work": tmp_path}
    puller.run(OPEN, **names)
    puller.run('model.save_pretrained(f"{work}/saved")\ntokenizer.save_pretrained(f"{work}/saved")', **names)
    puller.run(TRAIN, **names)
    first = json.loads((folders[head] / "config.json").read_text())
    for folder in (tmp_path / "saved", tmp_path / "parts" / "checkpoint-3"):
        assert {path.name for path in folder.iterdir()} >= CODE | {"config.json", "model.safetensors"}, folder
        assert json.loads((folder / "config.json").read_text())["auto_map"] == first["auto_map"]
    saved = (tmp_path / "saved" / "model.safetensors").read_bytes()
    assert saved == (folders[head] / "model.safetensors").read_bytes()
    start, whole, parts = (
        load_file(folder / "model.safetensors")
        for folder in (folders[head], *(tmp_path / name / "checkpoint-3" for name in ("whole", "parts")))
    )
    assert all(torch.equal(parts[key], value) for key, value in whole.items())
    assert not any(torch.equal(parts[key], value) for key, value in start.items() if key.endswith("means"))


def test_what_the_pulled_copy_saved_opens_in_a_third_process(pushed, puller, make_client, tmp_path):
    third = make_client("gma_hf")
    for head, repo in pushed.items():
        folder = str(tmp_path / head)
        names = {"repo": repo, "head": head, "folder": folder}
        before = puller.run(OPEN, **names)
        puller.run("model.save_pretrained(folder)\ntokenizer.save_pretrained(folder)", **names)
        after = third.run(OPEN, repo=folder, head=head)
        assert after["sums"].keys() == before["sums"].keys()
        torch.testing.assert_close(torch.tensor(after["logits"]), torch.tensor(before["logits"]))


@pytest.mark.parametrize(
    ("head", "task", "choices"),
    [
        ("CausalLM", "text-generation", {"max_new_tokens": 8}),
        ("MaskedLM", "text-classification", {}),
        ("MaskedLM", "token-classification", {}),
    ],
)
def test_a_pipeline_of_the_pulled_copy_does_not_call_it_unsupported(pushed, puller, head, task, choices):
    said = len(puller.said())
    assert puller.run(PIPE, repo=pushed[head], task=task, choices=choices)
    assert "not supported" not in puller.said()[said:]
