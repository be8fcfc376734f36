"""What cannot be cut is refused in one sentence, before any process waits for another."""

import pytest
import torch
import torch.distributed as dist
from transformers import TrainingArguments

from gma_hf import GMAForCausalLM, GMAForMaskedLM, GMAForSequenceClassification
from gma_hf.model.compat_gma import CACHE_NAME
from gma_hf.parallel import shard_batch
from gma_hf.parallel.trainer import SequenceParallelTrainer


IDS = torch.arange(1, 13)[None]


@pytest.fixture
def one_process():
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("name", "head", "said"),
    [
        ("causal_hybrid", GMAForCausalLM, "`layer_types` must all be gma"),
        ("bidirectional", GMAForSequenceClassification, "it is a GMAForSequenceClassification"),
        ("causal", GMAForCausalLM, "init_process_group first"),
    ],
)
def test_models_and_groups_that_do_not_fit(make_config, make_model, name, head, said):
    with pytest.raises(ValueError, match=said):
        shard_batch(make_model(head, make_config(name)), {"input_ids": IDS})


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"input_ids": IDS, "use_cache": True}, "it holds 'use_cache' too"),
        ({"labels": IDS}, "one tensor `input_ids` or `inputs_embeds`"),
        ({"input_ids": IDS, "labels": torch.tensor([1])}, "`labels` must be by token"),
        ({"input_ids": IDS, "attention_mask": IDS[:, 1:]}, "`attention_mask` must be by token"),
        ({"input_ids": IDS[:, :0]}, "as many tokens a row as there are ranks, 1, but it has 0"),
    ],
)
def test_batches_that_cannot_be_cut(make_config, make_model, one_process, batch, said):
    with pytest.raises(ValueError, match=said):
        shard_batch(make_model(GMAForCausalLM, make_config("causal")), batch)


def test_calls_that_need_all_tokens(make_config, make_model, one_process):
    model = make_model(GMAForCausalLM, make_config("causal"))
    part = shard_batch(model, {"input_ids": IDS})
    with pytest.raises(ValueError, match="`cache` must be empty"):
        model(**part, **{CACHE_NAME: model(IDS, use_cache=True)[CACHE_NAME]}, attention_mask=torch.ones(1, 24))
    with pytest.raises(ValueError, match="`output_attentions` must be False"):
        model(**part, output_attentions=True)


@pytest.mark.parametrize(("name", "head"), [("causal_additions", GMAForCausalLM), ("bidirectional", GMAForMaskedLM)])
def test_a_group_of_one_reads_everything(make_config, make_model, assert_close, one_process, name, head):
    model, batch = make_model(head, make_config(name)), {"input_ids": IDS, "labels": IDS}
    part, whole = model(**shard_batch(model, batch)), model(**batch)
    assert_close(part.logits, whole.logits, 1e-5)
    assert part.loss.item() == pytest.approx(whole.loss.item(), rel=1e-5)


def test_a_long_prompt_is_not_read_in_pieces(make_config, make_model, one_process, monkeypatch):
    """Which the other processes would not know of."""
    monkeypatch.setattr("gma_hf.model.modeling_gma.PREFILL_CHUNK", 4)
    monkeypatch.setattr("gma_hf.model.modeling_gma.read_in_pieces", None)
    model = make_model(GMAForCausalLM, make_config("causal"))
    with torch.no_grad():
        output = model(**shard_batch(model, {"input_ids": IDS}), use_cache=True, logits_to_keep=1)
    assert int(output[CACHE_NAME].get_seq_length()) == 12


def test_sizes_of_groups(make_config, make_model, tmp_path):
    arguments = TrainingArguments(output_dir=tmp_path, use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="divide the number of processes, 1, but it is 2"):
        SequenceParallelTrainer(make_model(GMAForCausalLM, make_config("causal")), arguments, sequence_parallel_size=2)
