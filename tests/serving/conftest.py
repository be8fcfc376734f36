"""Models in vLLM, in the test's own process, and what Transformers' `generate` gives for the same prompts."""

import gc
import os


# In this process, so that vLLM is imported once; both before it is imported
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"

import pytest
import torch

from gma_hf import GMAConfig, GMAForCausalLM


NEW_TOKENS = 16
# By name: the config, beside the sizes of `TINY`
STACKS = {
    "plain": {},
    "recommended": None,  # GMAConfig.recommended
    "hybrid": {
        "num_hidden_layers": 4,
        "layer_types": ["gma", "full_attention", "gma", "sliding_attention"],
        "sliding_window": 40,
        "conv_kernel_size": 3,
        "forget_gate": True,
        "read_exponent": 1.0,
    },
}


@pytest.fixture(scope="session")
def checkpoint(make_model, tmp_path_factory):
    """`checkpoint(name)`: folder of a small model with random weights, by its name in `STACKS`."""
    sizes = {"vocab_size": 61, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"num_components": 7, "routing_dim": 10, "max_position_embeddings": 512, "tie_word_embeddings": False}
    made = {}

    def make(name: str):
        if name not in made:
            choices = STACKS[name]
            style = GMAConfig.recommended if choices is None else GMAConfig.gpt2_style
            made[name] = tmp_path_factory.mktemp(name)
            make_model(GMAForCausalLM, style(**{**sizes, **(choices or {})})).save_pretrained(made[name])
        return made[name]

    return make


@pytest.fixture
def open_in_vllm():
    """`open_in_vllm(folder, **choices)`: vLLM's `LLM` in float32, in this process, until the test ends."""
    from vllm import LLM

    opened = []

    def start(folder, **choices):
        settings = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 64, "kv_cache_memory_bytes": 2**26}
        settings |= {"distributed_executor_backend": "uni", "skip_tokenizer_init": True, "disable_log_stats": True}
        opened.append(LLM(str(folder), **{**settings, **choices}))
        return opened[-1]

    yield start
    while opened:  # or the next one's process groups would be taken down with it
        opened.pop().llm_engine.engine_core.shutdown()
    gc.collect()


@pytest.fixture(scope="session")
def complete():
    """`complete(llm, prompts)`: the greedy continuations of prompts that are all given at once."""
    from vllm import SamplingParams

    def run(llm, prompts: list[list[int]], **choices) -> list[list[int]]:
        sampling = SamplingParams(**{"temperature": 0, "max_tokens": NEW_TOKENS, "detokenize": False, **choices})
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return run


@pytest.fixture(scope="session")
def expected():
    """`expected(folder, prompts)`: what `generate` gives for each prompt, in batches that are padded on the left."""
    known = {}

    @torch.no_grad()
    def run(folder, prompts: list[list[int]], batch_size: int = 50) -> list[list[int]]:
        key = (folder, tuple(map(tuple, prompts)))
        if key not in known:
            model, known[key] = GMAForCausalLM.from_pretrained(folder), []
            for start in range(0, len(prompts), batch_size):
                batch = prompts[start : start + batch_size]
                width = max(map(len, batch))
                ids = torch.tensor([[0] * (width - len(row)) + row for row in batch])
                mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
                output = model.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
                known[key] += output[:, width:].tolist()
        return known[key]

    return run
