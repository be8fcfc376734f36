"""States as files: what is read back is what was written or nothing; and states as sums."""

import copy
import random
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DynamicCache, StaticCache

from gma_hf import GMAForCausalLM, GMAState
from gma_hf.model.cache_gma import record_past
from gma_hf.model.compat_gma import CACHE_NAME


COMPILED = pytest.param(
    "compiled",
    25,
    marks=pytest.mark.skipif(
        not hasattr(torch.compiler, "is_exporting"), reason="this torch cannot trace Transformers' outputs and caches"
    ),
)
NAMES = ["causal", "causal_additions", "causal_hybrid", "sliding"]
# The first layer of a cache is the one that is asked how many tokens it holds
SLIDING = {
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "gma", "sliding_attention"],
    "sliding_window": 5,
}

ELSEWHERE = """
    import sys
    import torch
    from safetensors.torch import load_file, save_file
    from gma_hf import GMAForCausalLM, GMAState

    folder = sys.argv[1]
    torch.set_grad_enabled(False)
    model = GMAForCausalLM.from_pretrained(folder)
    cache = GMAState.load(folder + "/context.safetensors").to_cache(model, batch_size=3)
    ids = load_file(folder + "/ids.safetensors")["ids"]
    save_file({"logits": model(ids, past_key_values=cache).logits}, folder + "/logits.safetensors")
"""


@pytest.fixture
def model(make_config, make_model, request):
    name = getattr(request, "param", "causal_additions")
    config = make_config("causal", **SLIDING) if name == "sliding" else make_config(name)
    return make_model(GMAForCausalLM, config)


@pytest.fixture
def ids(random_rows):
    return torch.stack(random_rows([30]))


def read(model, ids):
    with torch.no_grad():
        return GMAState.from_cache(model(ids, use_cache=True)[CACHE_NAME])


@pytest.mark.parametrize("model", NAMES, indirect=True)
@torch.no_grad()
def test_another_process_goes_on_with_any_batch_size(tmp_path, assert_close, random_rows, model, ids):
    model.save_pretrained(tmp_path)
    state = read(model, ids)
    state.save(tmp_path / "context.safetensors")
    new = torch.stack(random_rows([4, 4, 4], seed=1))
    save_file({"ids": new}, tmp_path / "ids.safetensors")
    subprocess.run([sys.executable, "-c", textwrap.dedent(ELSEWHERE), str(tmp_path)], check=True)
    actual = load_file(tmp_path / "logits.safetensors")["logits"]
    expected = model(torch.cat([ids.expand(3, -1), new], dim=1), use_cache=False).logits[:, -4:]
    assert_close(actual, expected, 1e-4)
    loaded = GMAState.load(tmp_path / "context.safetensors")
    assert (loaded.tokens, loaded.identity, loaded.nbytes) == (30, state.identity, state.nbytes)


@pytest.mark.parametrize("model", NAMES, indirect=True)
def test_generation_goes_on_from_a_state(assert_close, model, ids):
    settings = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    state, expected = read(model, ids[:, :-1]), model.generate(ids, **settings)
    for _ in range(2):  # a state is not used up
        cache = state.to_cache(model)
        assert cache.get_seq_length() == 29
        actual = model.generate(ids, **{CACHE_NAME: cache}, **settings)
        assert torch.equal(actual.sequences, expected.sequences)
        assert_close(torch.stack(actual.logits), torch.stack(expected.logits), 1e-4)


def test_a_state_of_another_model_is_refused(make_config, make_model, model, ids):
    state = read(model, ids)
    changed = {"num_components": 8, "forget_gate": False, "layer_norm_eps": 1e-3, "num_hidden_layers": 3}
    changed |= {"vocab_size": 62, "max_position_embeddings": 257}
    for changes in ({name: value} for name, value in changed.items()):
        other = make_model(GMAForCausalLM, make_config("causal_additions", **changes))
        with pytest.raises(ValueError, match="`model` must be of the config"):
            state.to_cache(other)
    same = make_model(GMAForCausalLM, make_config("causal_additions", hidden_dropout_prob=0.2, chunk_size=4))
    assert state.to_cache(same).get_seq_length() == 30
    assert state.to_cache(same.model).get_seq_length() == 30
    with pytest.raises(ValueError, match="`cache` must be one that a GMA model"):
        GMAState.from_cache(DynamicCache(config=model.config))
    for something in (torch.nn.Linear(2, 2), None):
        with pytest.raises(ValueError, match="`model` must be of the config.*is None"):
            state.to_cache(something)


def test_a_number_of_rows_that_does_not_fit_is_refused(model, ids):
    with pytest.raises(ValueError, match="`batch_size` must be 2, the rows of the state, but it is 3"):
        read(model, ids.view(2, 15)).to_cache(model, batch_size=3)
    state = read(model, ids)
    for batch_size in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match=f"`batch_size` must be a positive integer, but it is {batch_size}"):
            state.to_cache(model, batch_size=batch_size)


def test_a_model_with_a_resized_vocabulary_is_another_one(tmp_path, model, ids):
    state = read(model, ids)
    model.resize_token_embeddings(70, mean_resizing=False)
    with pytest.raises(ValueError, match="`model` must be of the config"):
        state.to_cache(model)
    model.save_pretrained(tmp_path)
    again = GMAForCausalLM.from_pretrained(tmp_path)
    assert read(model, ids).to_cache(again).get_seq_length() == 30
    assert read(copy.deepcopy(again), ids).to_cache(model).get_seq_length() == 30


@pytest.mark.parametrize(("kind", "tokens"), [("static", 3), ("static", 25), ("recorded", 25), COMPILED])
@pytest.mark.parametrize("model", NAMES, indirect=True)
@torch.no_grad()
def test_a_state_comes_from_any_cache(assert_close, model, ids, kind, tokens):
    """Also from one that has room for tokens to come, one that keeps its past, one that only a graph has filled."""
    cache = DynamicCache(config=model.config)
    if kind == "static":
        cache = StaticCache(config=model.config, max_cache_len=40)
    if kind == "recorded":
        record_past(cache, model.config)
    forward = torch.compile(model, fullgraph=True, backend="eager") if kind == "compiled" else model
    forward(ids[:, :tokens], past_key_values=cache)
    cache = GMAState.from_cache(cache).to_cache(model)
    steps = [model(part, past_key_values=cache).logits for part in ids[:, tokens:].split(2, dim=1)]
    assert_close(torch.cat(steps, dim=1), model(ids, use_cache=False).logits[:, tokens:], 1e-4)


@pytest.mark.parametrize("model", NAMES, indirect=True)
@torch.no_grad()
def test_a_state_takes_the_dtype_of_the_model(assert_close, model, ids):
    half = copy.deepcopy(model).to(torch.bfloat16)
    for writer, reader in ((model, half), (half, model), (half, half)):
        cache = read(writer, ids[:, :25]).to_cache(reader)
        assert_close(reader(ids[:, 25:], past_key_values=cache).logits, model(ids).logits[:, 25:], 0.05)
        for layer in cache.layers:
            is_gma = getattr(layer, "_layer_type", None) == "gma"
            assert (layer.state.dtype == torch.float32) if is_gma else (layer.keys.dtype == reader.dtype)


def corrupted(content, path, number):
    """The `number`-th way to spoil a file: cut off, a bit turned, or tensors renamed, recast, or reshaped."""
    chance = random.Random(number)
    kind = number % 5
    if kind == 0:
        path.write_bytes(content[: chance.randrange(len(content))])
    elif kind == 1:
        place = chance.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :])
    else:
        from safetensors import safe_open

        with safe_open(path.with_name("whole.safetensors"), framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        name = chance.choice(sorted(tensors))
        if kind == 2:
            tensors[f"{name}{number}"] = tensors.pop(name)
        elif kind == 3:
            tensors[name] = tensors[name].to(chance.choice([torch.float16, torch.float64, torch.bfloat16]))
        else:
            tensors[name] = tensors[name].flatten().view(chance.choice([(1, -1), (-1,), (-1, 1, 1)]))
        save_file(tensors, path, metadata)


def test_no_corrupted_file_is_loaded(tmp_path, model, ids):
    whole, path = tmp_path / "whole.safetensors", tmp_path / "spoilt.safetensors"
    read(model, ids).save(whole)
    for number in range(200):
        corrupted(whole.read_bytes(), path, number)
        with pytest.raises(ValueError, match="`path` must be a file"):
            GMAState.load(path)
    for content in (b"", b"not a state", bytes(1000)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="`path` must be a file"):
            GMAState.load(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="`path` must be a file"):
        GMAState.load(path)
    with pytest.raises(FileNotFoundError, match="`path` must be a file"):
        GMAState.load(tmp_path / "nothing")


def test_a_state_that_cannot_be_written_leaves_everything_as_it_was(tmp_path, monkeypatch, model, ids):
    path = tmp_path / "context.safetensors"
    read(model, ids[:, :5]).save(path)
    before = path.read_bytes()

    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        read(model, ids).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        read(model, ids).save(tmp_path / "folder")
    assert sorted(x.name for x in tmp_path.iterdir()) == ["context.safetensors", "folder"]


@torch.no_grad()
def test_states_add_up(make_config, make_model, assert_close, ids):
    """In one layer without positions, what was read apart is what was read in one go, in any order."""
    config = make_config("causal", num_hidden_layers=1, position_embedding="none")
    model = make_model(GMAForCausalLM, config)
    parts = [read(model, part) for part in ids.split([11, 7, 12], dim=1)]
    whole = read(model, ids)
    for order in ((0, 1, 2), (2, 0, 1)):
        merged = parts[order[0]] + parts[order[1]] + parts[order[2]]
        assert merged.tokens == 30
        assert_close(merged.tensors["layers.0.state"], whole.tensors["layers.0.state"], 1e-5)
        actual = model(ids[:, :3], past_key_values=merged.to_cache(model)).logits
        assert_close(actual, model(ids[:, :3], past_key_values=whole.to_cache(model)).logits, 1e-4)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("causal", {}, "`position_embedding`"),
        ("causal", {"position_embedding": "none", "conv_kernel_size": 4}, "`conv_kernel_size`"),
        ("causal", {"position_embedding": "none", "forget_gate": True}, "`forget_gate`"),
        ("causal_hybrid", {"position_embedding": "none"}, "`layer_types`"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_states_that_do_not_add_up_are_refused(make_config, make_model, ids, name, changes, reason):
    state = read(make_model(GMAForCausalLM, make_config(name, **changes)), ids)
    with pytest.raises(ValueError, match=f"do not add up, since {reason}"):
        state + state


def test_only_states_that_fit_add_up(make_config, make_model, ids):
    config = make_config("causal", position_embedding="none")
    state = read(make_model(GMAForCausalLM, config), ids)
    other = read(make_model(GMAForCausalLM, make_config("causal", position_embedding="none", num_components=8)), ids)
    with pytest.raises(ValueError, match="The other state must be of the config"):
        state + other
    with pytest.raises(ValueError, match="must have 1 rows"):
        state + read(make_model(GMAForCausalLM, config), ids.view(2, 15))
    with pytest.raises(TypeError):
        state + 1
