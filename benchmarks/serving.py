"""
Serving with vLLM: requests per second beside `generate` in batches, in turns on the same prompts, and the bytes that a
conversation takes in the server's memory, of a GMA model and of a GPT-2 of the same size with random weights.

    python -m benchmarks.serving        # in the environment of `make test-vllm`, with `pip install matplotlib`

vLLM runs in this process, without HTTP and without `torch.compile`, on the threads that `generate` has.
"""

import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from gma_hf import GMAConfig, GMAForCausalLM
from gma_hf.recipes.arguments import parse
from gma_hf.recipes.running import run

from .harness import machine


if TYPE_CHECKING:
    from vllm import LLM

Prompts = list[list[int]]


@dataclass
class Arguments:
    """Sizes, and what is measured."""

    layers: int = field(default=4, metadata={"help": "Layers of both models."})
    width: int = field(default=256, metadata={"help": "Width of the residual stream."})
    heads: int = field(default=4, metadata={"help": "Heads."})
    components: int = field(default=64, metadata={"help": "K."})
    vocabulary: int = field(default=8000, metadata={"help": "Words of both models."})
    requests: int = field(default=200, metadata={"help": "Prompts that are given at once."})
    longest: int = field(default=256, metadata={"help": "Tokens of the longest prompt; the lengths are random."})
    new_tokens: int = field(default=32, metadata={"help": "Tokens that each request gets."})
    batch_size: int = field(default=50, metadata={"help": "Prompts in a batch of `generate`."})
    rounds: int = field(default=3, metadata={"help": "Turns that vLLM and `generate` take."})
    conversations: int = field(default=1000, metadata={"help": "Conversations that are held at once."})
    context: int = field(default=256, metadata={"help": "Tokens of each conversation."})
    pool_gib: int = field(default=4, metadata={"help": "GiB that the server has for what it remembers."})
    seed: int = field(default=0, metadata={"help": "Of weights and prompts."})
    output_dir: str = field(default="benchmarks/results", metadata={"help": "Where the JSON goes."})


def models(args: Arguments) -> dict[str, PreTrainedModel]:
    """Return the contenders, with random weights."""
    torch.manual_seed(args.seed)
    sizes = {"vocab_size": args.vocabulary, "num_components": args.components, "hidden_size": args.width}
    gma = GMAConfig.recommended(**sizes, num_hidden_layers=args.layers, num_attention_heads=args.heads)
    gpt2 = GPT2Config(
        vocab_size=args.vocabulary,
        n_positions=args.context + args.longest,
        n_embd=args.width,
        n_layer=args.layers,
        n_head=args.heads,
        bos_token_id=0,
        eos_token_id=0,
    )
    return {"GMA": GMAForCausalLM(gma).eval(), "GPT-2": GPT2LMHeadModel(gpt2).eval()}


def random_prompts(count: int, shortest: int, longest: int, args: Arguments) -> Prompts:
    """Return prompts of random lengths and tokens."""
    chance = random.Random(args.seed)
    lengths = [chance.randint(shortest, longest) for _ in range(count)]
    return [[chance.randint(1, args.vocabulary - 1) for _ in range(length)] for length in lengths]


def open_in_vllm(folder: str, args: Arguments, pool: int, max_num_seqs: int) -> "LLM":
    """Return vLLM's engine in this process, with `pool` bytes for what it remembers of `max_num_seqs` requests."""
    from vllm import LLM

    return LLM(
        folder,
        dtype="float32",
        max_model_len=args.context + args.longest,
        max_num_seqs=max_num_seqs,
        kv_cache_memory_bytes=pool,
        enable_prefix_caching=False,
        enforce_eager=True,
        skip_tokenizer_init=True,
        distributed_executor_backend="uni",
        seed=args.seed,
    )


def close(llm: "LLM") -> None:
    """End an engine, so that another can start in this process."""
    llm.llm_engine.engine_core.shutdown()


def ask_vllm(llm: "LLM", prompts: Prompts, new_tokens: int) -> int:
    """Return how many tokens vLLM has generated for prompts that it got at once."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs)


@torch.inference_mode()
def ask_generate(model: PreTrainedModel, prompts: Prompts, new_tokens: int, batch_size: int) -> int:
    """Return how many tokens `generate` has made in batches that are padded on the left."""
    made = 0
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        width = max(map(len, batch))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in batch])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
        choices = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
        made += model.generate(ids, attention_mask=mask, **choices)[:, width:].numel()
    return made


def requests_per_second(
    calls: dict[str, Callable[[], int]], requests: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Return the median rate of each call, by the clock and by the CPU time of this process; the calls take turns."""
    clocks = {"by the clock": time.perf_counter, "by CPU time": time.process_time}
    rates = {clock: {name: [] for name in calls} for clock in clocks}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            starts = {clock: now() for clock, now in clocks.items()}
            call()
            for clock, now in clocks.items():
                if turn > 0:  # the first is a warm-up
                    rates[clock][name].append(requests / (now() - starts[clock]))
    return {clock: {name: statistics.median(x) for name, x in values.items()} for clock, values in rates.items()}


def hold(llm: "LLM", prompts: Prompts) -> dict[str, float]:
    """
    Give an engine all prompts and let it work until it holds as many at once as it can.

    Returns:
        how many it held at once, the bytes in use at that time, and those of one of them.
    """
    from vllm import SamplingParams

    engine = llm.llm_engine
    scheduler = engine.engine_core.engine_core.scheduler
    blocks, config = scheduler.kv_cache_manager.block_pool, scheduler.kv_cache_config
    bytes_of_block = sum(tensor.size for tensor in config.kv_cache_tensors) / config.num_blocks
    sampling = SamplingParams(temperature=0, max_tokens=10**6, ignore_eos=True, detokenize=False)
    names = [str(index) for index in range(len(prompts))]
    for name, ids in zip(names, prompts):
        engine.add_request(name, {"prompt_token_ids": ids}, sampling.clone())
    held = 0
    while True:
        engine.step()
        running = scheduler.running
        # All prompts that there is room for have been read
        if len(running) <= held and all(x.num_computed_tokens >= x.num_prompt_tokens for x in running):
            break
        held = len(running)
    held, used = len(running), (blocks.num_gpu_blocks - 1 - blocks.get_num_free_blocks()) * bytes_of_block
    engine.abort_request(names)
    return {"held at once": held, "bytes": used, "bytes per conversation": used / held}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    (args,) = parse((Arguments,), arguments)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # before vLLM is imported
    prompts = random_prompts(args.requests, 1, args.longest, args)
    conversations = random_prompts(args.conversations, args.context, args.context, args)
    found, pool = {}, args.pool_gib * 2**30
    for name, model in models(args).items():
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            llm = open_in_vllm(folder, args, pool, args.requests)
            calls = {
                "vLLM": lambda llm=llm: ask_vllm(llm, prompts, args.new_tokens),
                "generate": lambda model=model: ask_generate(model, prompts, args.new_tokens, args.batch_size),
            }
            rates = requests_per_second(calls, args.requests, args.rounds)
            close(llm)
            llm = open_in_vllm(folder, args, pool, args.conversations)
            found[name] = {
                "parameters": sum(x.numel() for x in model.parameters()),
                "requests per second": rates,
                "vLLM over generate": {clock: x["vLLM"] / x["generate"] for clock, x in rates.items()},
                "conversations": hold(llm, conversations),
            }
            close(llm)
        print(name, json.dumps(found[name], indent=2))
    report = {"machine": machine("cpu"), "arguments": asdict(args) | {"output_dir": None}, "found": found}
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    (Path(args.output_dir) / "serving_cpu.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    run(main)
