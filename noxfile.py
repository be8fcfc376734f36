"""The suite's core on other versions of Transformers, torch and Python than `make test` runs on."""

import re
from pathlib import Path

import nox


nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"

# What must hold on every version that we admit: the model, generation, its state, saving, and checkpoints that open as
# custom code. The one list of it.
CORE = [
    "tests/model",
    "tests/hub/test_round_trip.py",
    "tests/test_state.py",
    "tests/test_version_0_1_0.py",
]
PINS = dict(re.findall(r"^([\w-]+)==(\S+)", Path("constraints.txt").read_text(), re.MULTILINE))
NEWEST = PINS["transformers"]
# With the oldest Transformers, the oldest of what it stands on
OLDEST = "5.4.0"
OF_OLDEST = ["huggingface_hub==1.5.0", "safetensors==0.4.3"]


def test_core(session: nox.Session, *versions: str) -> None:
    """Install `versions` first, since pip takes the newest torch otherwise, then the package, and run the core."""
    session.install(*versions)
    session.install(*versions, "-e", ".[test-core]")
    session.run("pip", "list", "--format=freeze", silent=True)
    # To run less: nox -s "torch(version='2.6.0')" -- tests/test_state.py
    # Only on the newest Transformers is a warning an error: see tests/conftest.py
    session.run("python", "-m", "pytest", "-n", "2", *(session.posargs or CORE), env={"HF_HUB_OFFLINE": "1"})


@nox.session(python="3.11")
@nox.parametrize("transformers", [OLDEST, "5.10.4", "5.16.1", "5.19.0", NEWEST])
def core(session: nox.Session, transformers: str) -> None:
    """On each Transformers, with the torch that we develop with."""
    others = OF_OLDEST if transformers == OLDEST else []
    test_core(session, f"torch=={PINS['torch']}", f"transformers=={transformers}", *others)


@nox.session(python="3.11")
@nox.parametrize("version", ["2.6.0", "2.14.1"])
def torch(session: nox.Session, version: str) -> None:
    """On the oldest torch that we admit and on the newest, with the newest Transformers."""
    test_core(session, f"torch=={version}", f"transformers=={NEWEST}")


@nox.session(python=["3.10", "3.12", "3.13"])
def python(session: nox.Session) -> None:
    """On each Python, with the newest torch and Transformers that pip gives it."""
    test_core(session, "torch", "transformers")
