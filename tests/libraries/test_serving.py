"""`transformers serve` and `transformers chat` with the shipped checkpoint, over HTTP on the loopback address."""

import json
import socket
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from transformers import AutoTokenizer


for module in ("fastapi", "uvicorn", "openai", "rich"):
    pytest.importorskip(module)

PATIENCE = 600  # seconds until the server must answer
MESSAGES = [{"role": "user", "content": "What light through yonder window breaks?"}]


@pytest.fixture(scope="module")
def server(shakespeare, deprecations, tmp_path_factory):
    """Address of `gma-hf serve` with the shipped checkpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gma_hf", "serve", str(shakespeare), "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as output:
        process = subprocess.Popen([*command, "--device", "cpu"], stdout=output, stderr=output)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
    try:
        while True:
            try:
                assert json.load(urlopen(f"{address}/health")) == {"status": "ok"}
                break
            except URLError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()
    assert deprecations(log.read_text()) == []


def ask(address: str, **body):
    request = Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return urlopen(request)


def test_the_chat_template_makes_a_scene(shakespeare):
    tokenizer = AutoTokenizer.from_pretrained(shakespeare)
    history = [{"role": "system", "content": "A garden."}, *MESSAGES, {"role": "assistant", "content": "Ay me!"}]
    text = tokenizer.apply_chat_template([*history, *MESSAGES], tokenize=False, add_generation_prompt=True)
    question = f"ROMEO:\n{MESSAGES[0]['content']}\n\n"
    assert text == f"A garden.\n\n{question}JULIET:\nAy me!\n\n{question}JULIET:\n"


def test_a_completion(server, greedy):
    answer = json.load(ask(f"{server}/v1/completions", prompt="JULIET:\n", max_tokens=20, temperature=0))
    assert answer["choices"][0]["text"] == greedy("JULIET:\n", 20)
    assert answer["usage"]["completion_tokens"] == 20


def test_a_chat_completion_whole_and_in_pieces(server, greedy):
    question = {"messages": MESSAGES, "max_tokens": 20, "temperature": 0}
    expected = greedy(f"ROMEO:\n{MESSAGES[0]['content']}\n\nJULIET:\n", 20)
    answer = json.load(ask(f"{server}/v1/chat/completions", **question))
    assert answer["choices"][0]["message"]["content"] == expected

    lines = ask(f"{server}/v1/chat/completions", **question, stream=True).read().decode().splitlines()
    pieces = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    deltas = [piece["choices"][0]["delta"].get("content") or "" for piece in pieces]
    assert len(pieces) > 5 and "".join(deltas) == expected


def test_transformers_chat_talks_to_it(server, shakespeare, greedy, run_python, tmp_path):
    """The client as it is, its lines from a pipe: a question, no to "Continue generating?", the end."""
    code = "from transformers.cli.transformers import main; main()"
    command = ["-c", code, "chat", str(shakespeare), server, "max_new_tokens=20", "do_sample=False"]
    environment = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "COLUMNS": "200"}
    lines = f"{MESSAGES[0]['content']}\nn\n!exit\n"
    chat = run_python(*command, "--user", "me", input=lines, env=environment, cwd=tmp_path)
    first_line = greedy(f"ROMEO:\n{MESSAGES[0]['content']}\n\nJULIET:\n", 20).splitlines()[0].strip()
    assert len(first_line) > 5 and first_line in chat.stdout
