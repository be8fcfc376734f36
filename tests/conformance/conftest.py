"""
Makes Transformers' own model tests importable as `transformers_tests`.

The tests are those of the installed version. They are downloaded once, as the source distribution on PyPI, into
`.cache/`, and never become part of this repository. They cannot keep their name, `tests`: that is ours.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers
from filelock import FileLock


CACHE = Path(__file__).parents[2] / ".cache" / f"transformers-{transformers.__version__}"
PACKAGE = "transformers_tests"
MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "torch_compile_test",
    "slow",
)
TEST_FILES = ("test_modeling_common.py", "test_configuration_common.py")

# Arguments that every config takes, with values that are not their defaults, for `ConfigTester`
CONFIG_ARGUMENTS = {
    "dtype": "float16",
    "return_dict": False,
    "output_hidden_states": True,
    "chunk_size_feed_forward": 3,
    "is_encoder_decoder": True,
    "architectures": ["GMAModel"],
    "id2label": {0: "no", 1: "perhaps", 2: "yes"},
    "label2id": {"no": 0, "perhaps": 1, "yes": 2},
    "problem_type": "regression",
}

# What the test files import and the source distribution lacks, by module
STAND_INS = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {"config_common_kwargs": CONFIG_ARGUMENTS},
}


def download_tests() -> None:
    """Unpacks the test files into the cache unless they are there; safe when several processes do it at once."""
    CACHE.parent.mkdir(exist_ok=True)
    with FileLock(f"{CACHE}.lock"), tempfile.TemporaryDirectory(dir=CACHE.parent) as folder:
        if CACHE.exists():
            return
        requirement = f"transformers=={transformers.__version__}"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--no-binary", "transformers", "--dest", folder, requirement], check=True)
        package = Path(folder, "unpacked", PACKAGE)
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (archive,) = Path(folder).glob("transformers-*.tar.gz")
        with tarfile.open(archive) as files:
            for name in TEST_FILES:
                member = f"{archive.name.removesuffix('.tar.gz')}/tests/{name}"
                (package / name).write_bytes(files.extractfile(member).read())
        os.rename(package.parent, CACHE)


def add_stand_ins() -> None:
    """Puts the stand-ins where the test files import them from."""
    for name, contents in STAND_INS.items():
        module = sys.modules[f"{PACKAGE}.{name}"] = ModuleType(f"{PACKAGE}.{name}")
        vars(module).update(contents)


download_tests()
add_stand_ins()
sys.path.insert(0, str(CACHE))


def pytest_configure(config):
    """Declares the markers on the downloaded tests."""
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: on Transformers' own tests")


@pytest.fixture(autouse=True)
def one_thread():
    """On models this small more threads only wait for each other; with one pytest worker per core, for minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
