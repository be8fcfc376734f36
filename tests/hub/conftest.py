"""A Hub for the tests of this folder, and processes that push to it and pull from it."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest


HERE = Path(__file__).parent
# huggingface_hub 2.4.0 sends a large file by what httpx2 deprecates
WARNINGS = ["-W", "error", "-W", "ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning"]


def load_small_hub():
    spec = importlib.util.spec_from_file_location("small_hub", HERE / "small_hub.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["small_hub"] = module  # where its dataclass looks for itself
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hub():
    """A `SmallHub` that listens, and at the end has had an answer to everything and no error."""
    server = load_small_hub().SmallHub()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    assert server.errors == []
    # A thread of the client asks for this from time to time, and does without
    assert [request for request in server.unknown if request != "GET /api/agent-harnesses"] == []


class Client:
    """A process with a Hugging Face home of its own that knows no other Hub than ours."""

    def __init__(self, url: str, home: Path, *missing: str):
        self.home = home
        home.mkdir()
        hidden = ("PYTHONPATH", "PYTHONSTARTUP", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_MODULES_CACHE")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        # Xet's own protocol needs its own server; without it the client speaks LFS
        environment |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        self.log = (home / "log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, *WARNINGS, str(HERE / "client.py"), *missing],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
            cwd=home,
        )

    def ask(self, code: str, **names) -> tuple:
        """What `code` leaves in `answer`, and the error that it ends with, if any; `names` are there for it."""
        self.process.stdin.write(json.dumps([textwrap.dedent(code), names], default=str) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the process ended:\n{self.said()[-4000:]}"
        return json.loads(line)

    def run(self, code: str, **names):
        """What `code` leaves in `answer`; it must not end with an error."""
        answer, error = self.ask(code, **names)
        assert error is None, self.said()[-4000:]
        return answer

    def said(self) -> str:
        """All that was printed, warnings and logs included."""
        self.log.flush()
        return (self.home / "log").read_text()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()
        self.log.close()


@pytest.fixture(scope="module")
def make_client(hub, tmp_path_factory):
    """`make_client(*missing)`: a `Client` in which the modules named `missing` cannot be imported."""
    clients = []

    def make(*missing: str) -> Client:
        clients.append(Client(hub.url, tmp_path_factory.mktemp("client") / "home", *missing))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
