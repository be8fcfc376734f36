"""Prompts that vLLM reads and continues all at once get the tokens of `generate`."""

import random

import pytest
import torch


pytest.importorskip("vllm")


def random_prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Return prompts of unequal lengths, among them the shortest, and lengths on both sides of a chunk's border."""
    chance = random.Random(seed)
    lengths = [1, 2, 63, 64, 65, longest] + [chance.randint(1, longest) for _ in range(count - 6)]
    return [[chance.randint(1, 60) for _ in range(length)] for length in lengths]


READ_WHOLE = {"enable_chunked_prefill": False, "max_num_batched_tokens": 4096}
IN_CHUNKS = {"enable_chunked_prefill": True, "max_num_batched_tokens": 96}


@pytest.mark.parametrize("reading", [READ_WHOLE, IN_CHUNKS], ids=["whole", "in_chunks"])
@pytest.mark.parametrize("stack", ["plain", "recommended", "hybrid"])
def test_prompts_get_the_tokens_of_generate(checkpoint, open_in_vllm, complete, expected, stack, reading):
    folder, prompts = checkpoint(stack), random_prompts(200, 200)
    llm = open_in_vllm(folder, enable_prefix_caching=False, **reading)
    tokens = expected(folder, prompts)
    assert len({tuple(row) for row in tokens}) > 100  # they tell prompts apart
    assert complete(llm, prompts) == tokens


def test_a_shared_beginning_is_read_once(checkpoint, open_in_vllm, complete, expected):
    """With vLLM's prefix caching, what prompts have in common goes on from a state that vLLM has kept."""
    from vllm import SamplingParams

    folder, shared = checkpoint("recommended"), random_prompts(7, 190)[5]
    prompts = [shared + ending for ending in random_prompts(20, 50, seed=1)]
    llm = open_in_vllm(folder, enable_prefix_caching=True, block_size=32, max_model_len=512)
    assert complete(llm, prompts) == expected(folder, prompts)
    sampling = SamplingParams(temperature=0, max_tokens=1, detokenize=False)
    again = llm.generate([{"prompt_token_ids": shared + [7, 8, 9]}], sampling, use_tqdm=False)[0]
    assert again.num_cached_tokens >= 96


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_states_and_mixtures_stay_float32_beside_half_precision(checkpoint, open_in_vllm, complete, dtype):
    llm = open_in_vllm(checkpoint("recommended"), dtype=dtype, enable_prefix_caching=False)

    def look(model):
        layer = model.model.layers[0].attention
        dtypes = {name: x.dtype for name, x in zip(layer.states, layer.kv_cache)}
        return dtypes, layer.mixture.means.dtype, layer.qkv_proj.weight.dtype

    dtypes, of_mixture, of_weights = llm.apply_model(look)[0]
    half = getattr(torch, dtype)
    assert (dtypes, of_mixture, of_weights) == ({"state": torch.float32, "conv_tail": half}, torch.float32, half)
    assert all(len(row) == 16 for row in complete(llm, random_prompts(10, 100)))


def test_more_requests_than_slots_wait_for_their_turn(checkpoint, open_in_vllm, complete, expected):
    folder, prompts = checkpoint("plain"), random_prompts(40, 60)
    llm = open_in_vllm(folder, max_num_seqs=3, enable_prefix_caching=False)
    assert complete(llm, prompts) == expected(folder, prompts)


def test_a_prompt_beyond_the_limit_is_refused(checkpoint, open_in_vllm, complete):
    from vllm.exceptions import VLLMValidationError

    llm = open_in_vllm(checkpoint("plain"), max_model_len=64, enable_prefix_caching=False)
    with pytest.raises(VLLMValidationError, match="maximum context length is 64 tokens"):
        complete(llm, [[1] * 65])
    assert len(complete(llm, [[1] * 60])[0]) == 4  # up to the limit
