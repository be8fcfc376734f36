"""Prompts that vLLM reads and continues all at once get the tokens of `generate`."""

import random

import pytest


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
