"""Modules of sentence-transformers: which files are carried over, what is refused, and the way over the Hub."""

import json

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from gma_hf.hub.modules import copy_modules, find_modules, module_files, pooling_of


NETWORK = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
NORMALIZE = {"idx": 3, "name": "3", "path": "3_Normalize", "type": "sentence_transformers.models.Normalize"}
FILES = {
    "modules.json": [NETWORK, POOLING, DENSE, NORMALIZE],
    "config_sentence_transformers.json": {"prompts": {"query": "Find: "}, "similarity_fn_name": "dot"},
    "sentence_roberta_config.json": {"max_seq_length": 12, "do_lower_case": False},
    "1_Pooling/config.json": {"pooling_mode_cls_token": True},
    "2_Dense/config.json": {"in_features": 24},
    "2_Dense/model.safetensors": "weights",
}


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture
def source(tmp_path):
    """A folder as the Hub gives it: a module without files has no folder."""
    return write(tmp_path / "source", FILES | {"config.json": {}, "README.md": "", "2_Other/config.json": {}})


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "include_prompt": True}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["mean", "max"]}, "mean+max"),
    ],
)
def test_pooling_by_its_name(source, settings, pooling):
    assert pooling_of(write(source, {"1_Pooling/config.json": settings})) == pooling
    assert pooling_of(write(source, {"modules.json": [NETWORK]})) == "mean"


def test_all_files_of_the_modules_and_no_other(source, tmp_path):
    target = write(tmp_path / "target", {"config.json": {"dtype": "float16", "model_type": "gma"}})
    copy_modules(find_modules(source), target)
    copied = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert copied == {*FILES, "config.json"} and set(module_files(target)) == {target / name for name in FILES}
    assert all((target / name).read_bytes() == (source / name).read_bytes() for name in FILES)
    assert json.loads((target / "config.json").read_text()) == {"dtype": "float32", "model_type": "gma"}

    copy_modules(find_modules(source), target, 4096)
    limits = json.loads((target / "sentence_roberta_config.json").read_text())
    assert limits == {"max_seq_length": 4096, "do_lower_case": False}


def test_a_folder_without_modules_has_none(tmp_path):
    assert find_modules(write(tmp_path, {"config.json": {}})) is None and module_files(tmp_path) == []


@pytest.mark.parametrize(
    ("modules", "sentence"),
    [
        ([NETWORK, POOLING | {"type": "custom_st.Pooling"}], "must consist of modules of sentence-transformers, but"),
        ([NETWORK | {"path": "0_Transformer"}], "`source` must hold its network itself, but modules.json names"),
        ([], "`source` must hold its network itself, but modules.json names"),
        ({"modules": []}, "modules.json must hold the modules of sentence-transformers, but that of "),
    ],
)
def test_what_cannot_be_carried_over_is_refused(source, modules, sentence):
    write(source, {"modules.json": modules})
    with pytest.raises(ValueError, match=sentence):
        find_modules(source)


def test_a_missing_folder_is_refused(source, tmp_path):
    write(source, {"modules.json": [NETWORK, POOLING | {"path": "4_Pooling"}]})
    with pytest.raises(ValueError, match="modules.json must name folders of `source`, but .* has no '4_Pooling'"):
        copy_modules(find_modules(source), write(tmp_path / "target", {"config.json": {}}))


CONVERT = """
    from typer.testing import CliRunner
    from gma_hf.cli import app
    from huggingface_hub import create_repo, upload_folder

    create_repo("tester/source")
    upload_folder(repo_id="tester/source", folder_path=folder)
    for command in (["convert", "tester/source", out, "--layers", "none"], ["publish", out, "tester/encoder"]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.stderr
"""
ENCODE = """
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(repo, device="cpu", trust_remote_code=True)
    network = type(encoder[0].auto_model)
    answer = {"embeddings": encoder.encode(texts).tolist(), "network": [network.__module__, network.__name__]}
    answer |= {"prompts": encoder.prompts, "length": encoder.max_seq_length, "dtype": str(encoder.dtype)}
"""


@pytest.mark.slow
def test_from_the_hub_to_the_hub(hub, make_client, tmp_path):
    """A source on the Hub, converted and published, and pulled where gma_hf is not installed."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    tokenizer = AutoTokenizer.from_pretrained("model_cards/gma-minilm-l6")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    torch.manual_seed(0)
    files = {"modules.json": [NETWORK, POOLING, NORMALIZE], "sentence_bert_config.json": {"max_seq_length": 12}}
    pooling = {"word_embedding_dimension": 24, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    folder = write(tmp_path / "source", files | {"1_Pooling/config.json": pooling})
    write(folder, {"config_sentence_transformers.json": {"prompts": {"query": "Find: "}, "similarity_fn_name": "dot"}})
    for part in (BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)), tokenizer):
        part.save_pretrained(folder)
    make_client().run(CONVERT, folder=folder, out=str(tmp_path / "gma"))

    texts = ["A cat.", "Where is the nearest railway station, and how do I get to it from here?"]
    answer = make_client("gma_hf").run(ENCODE, repo="tester/encoder", texts=texts)
    encoder = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    torch.testing.assert_close(torch.tensor(answer["embeddings"]), torch.tensor(encoder.encode(texts)))
    assert answer["network"][0].startswith("transformers_modules.") and answer["network"][1] == "GMAModel"
    assert (answer["length"], answer["dtype"]) == (12, "torch.float32") and answer["prompts"]["query"] == "Find: "
    card = hub.repos["tester/encoder"][-1].files["README.md"].decode()
    assert 'SentenceTransformer("tester/encoder", trust_remote_code=True)' in card
