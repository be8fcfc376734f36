"""Tensor parallelism: two processes of vLLM share the heads of a model."""

import random

import pytest


pytest.importorskip("vllm")


@pytest.fixture(autouse=True)
def unbound(monkeypatch):
    """By itself, vLLM's CPU build wants a NUMA node for each process."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")


@pytest.mark.parametrize("stack", ["recommended", "hybrid"])
def test_two_ranks_give_the_tokens_of_generate(checkpoint, open_in_vllm, complete, expected, stack):
    chance = random.Random(0)
    lengths = [1, 2, 63, 64, 65, 200] + [chance.randint(1, 200) for _ in range(44)]
    prompts = [[chance.randint(1, 60) for _ in range(length)] for length in lengths]
    two = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp", "enable_prefix_caching": False}
    llm = open_in_vllm(checkpoint(stack), max_num_batched_tokens=96, enforce_eager=True, **two)
    assert complete(llm, prompts) == expected(checkpoint(stack), prompts)
