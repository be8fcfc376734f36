"""Every Python and shell block of README.md and docs/ runs, alone, from the root of a copy of the checkout."""

import importlib.util
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    return module


HERE = Path(__file__).parent
documentation = load(HERE / "blocks.py")
ROOT, ALL = documentation.ROOT, documentation.blocks()
EXECUTED = [block for block in ALL if block.language in documentation.RUN and block.not_run_because is None]
# What stands on two pages runs once
ONCE = list({(block.language, block.code): block for block in reversed(EXECUTED)}.values())[::-1]
# What a user would have imported already costs seconds each time. Not gma_hf: a block must import it itself
PRELOADED = ["datasets", "transformers.trainer", "transformers.models.auto.modeling_auto", "transformers.pipelines"]
# What the pages of these names need beside the rest
LIBRARIES = {"docs/guides/adapters.md": ("peft", "torchao")}
PROLOGUE = """
import os, runpy, sys
os.chdir({folder!r})
output = os.open("output.txt", os.O_WRONLY | os.O_CREAT)
os.dup2(output, 1)
os.dup2(output, 2)
os.environ.update({environment!r})
sys.path.insert(0, {root!r})
runpy.run_path("block.py", run_name="__main__")
"""


@pytest.fixture(scope="session")
def processes():
    """Processes that have imported `PRELOADED` already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@pytest.fixture(scope="module")
def hub():
    """The address of a small Hub that listens."""
    server = load(HERE.parent / "hub" / "small_hub.py").SmallHub()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server.url
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def checkout(tmp_path):
    """A copy of the checkout in which a block may write; what it only reads are links."""
    for path in ROOT.iterdir():
        if path.name in ("gma_hf", "model_cards", "tests", "benchmarks", "constraints.txt", "README.md"):
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


@pytest.fixture
def environment(checkout, request):
    """`environment(block)`: the variables that it runs with."""

    def make(block) -> dict[str, str]:
        variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        variables |= {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        variables |= {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
        if block.needs_hub:
            home = checkout / "home"
            variables |= {"HF_ENDPOINT": request.getfixturevalue("hub"), "HF_HOME": str(home), "HF_TOKEN": "hf_test"}
            variables |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        return variables

    return make


def run_python(block, checkout, environment, processes) -> tuple[int, str]:
    """The block in a process of its own, which has what is slow to import."""
    (checkout / "block.py").write_text(block.code, encoding="utf-8")
    program = checkout / "program.py"
    program.write_text(PROLOGUE.format(folder=str(checkout), environment=environment(block), root=str(ROOT)))
    process = processes.Process(target=runpy.run_path, args=(str(program),), kwargs={"run_name": "__main__"})
    process.start()
    process.join(timeout=900)
    if process.is_alive():
        process.kill()
    return process.exitcode, (checkout / "output.txt").read_text(encoding="utf-8", errors="replace")


def run_shell(block, checkout, environment) -> tuple[int, str]:
    """The block in bash, which ends at the first command that fails."""
    command = [shutil.which("bash"), "-euo", "pipefail", "-c", block.code]
    choices = {"cwd": checkout, "env": os.environ | environment(block), "stdin": subprocess.DEVNULL, "timeout": 900}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **choices)
    return done.returncode, done.stdout.decode(errors="replace")


@pytest.mark.slow
@pytest.mark.parametrize("block", ONCE, ids=lambda block: block.name)
def test_a_block_runs(block, checkout, environment, processes):
    for library in LIBRARIES.get(block.page, ()):
        pytest.importorskip(library)
    if block.language == "python":
        # The client of the Hub reads its address when it is imported, so such a block gets a process of its own
        if block.needs_hub:
            command = f"{sys.executable} - <<'END'\n{block.code}\nEND"
            block = documentation.Block(block.page, block.number, "bash", command, None, True)
            status, output = run_shell(block, checkout, environment)
        else:
            status, output = run_python(block, checkout, environment, processes)
    else:
        status, output = run_shell(block, checkout, environment)
    assert status == 0, f"{block.name}:\n{block.code}\n{output[-3000:]}"
    assert output.strip() or "save" in block.code, f"{block.name} prints nothing"


def test_each_block_says_what_it_is():
    """Nothing is left out but what says why, or is only shown."""
    unknown = [block.name for block in ALL if block.language not in (*documentation.RUN, *documentation.SHOWN)]
    assert unknown == []
    left_out = [block for block in ALL if block.not_run_because]
    assert len(left_out) <= len(EXECUTED) / 4 and len(EXECUTED) >= 30
    assert all(len(block.not_run_because) > 10 for block in left_out)


def test_no_fence_is_missed():
    """As many blocks are found as there are fences."""
    for page in {block.page for block in ALL}:
        fences = [line for line in (ROOT / page).read_text().splitlines() if line.startswith("```")]
        assert len(fences) == 2 * sum(block.page == page for block in ALL), page
