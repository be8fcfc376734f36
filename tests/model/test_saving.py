"""A saved model opens under every Auto class of its style, with this package installed and without it."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import gma_hf
from gma_hf import GMAModel


TASKS = ["SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice"]
STYLES = {"causal": ["CausalLM", *TASKS], "bidirectional": ["MaskedLM", *TASKS]}
NAMES = {
    "causal": "causal",
    "causal_additions": "causal",
    "causal_hybrid": "causal",
    "bidirectional": "bidirectional",
    "bidirectional_conv": "bidirectional",
}
CODE = {path.stem for path in (Path(gma_hf.__file__).parent / "model").glob("*_gma.py")}
IDS = torch.arange(1, 23).view(1, 22)
# Loaded weights lie at other addresses, and what a matrix product rounds depends on how its operands are aligned.
LAST_DIGITS = 1e-5

# Runs where `gma_hf` cannot be imported: opens the checkpoints `source/name/AutoModelForX`, and saves each again as
# `target/name/AutoModelForX`.
WITHOUT_THE_PACKAGE = """
    import sys
    sys.modules["gma_hf"] = None
    import torch
    import transformers
    from pathlib import Path
    from safetensors.torch import load_file

    source, target = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)

    def open_as(auto_class, folder):
        return getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True)

    for folder in sorted(source.glob("*/*")):
        auto_class = folder.name
        config = open_as("AutoConfig", folder)
        assert config.model_type == "gma" and type(config).__module__.startswith("transformers_modules."), config
        model = open_as(auto_class, folder)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        expected = load_file(folder / "expected" / "outputs.safetensors")
        ids = expected.pop("ids")
        outputs = model(ids)
        for key, value in expected.items():
            torch.testing.assert_close(outputs[key], value, rtol=1e-5, atol=1e-5)
        model.save_pretrained(target / folder.parent.name / auto_class)
        if auto_class == "AutoModelForCausalLM":
            new = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
            assert torch.equal(new[:, -4:], model(new).logits[:, -5:-1].argmax(-1)), new
        if auto_class in ("AutoModelForCausalLM", "AutoModelForMaskedLM"):
            backbone = {key: value for key, value in model.state_dict().items() if key.startswith("model.")}
            for other in ["AutoModel", *(neighbour.name for neighbour in folder.parent.iterdir())]:
                opened = open_as(other, folder).state_dict()
                for key, value in backbone.items():
                    key = key.removeprefix("model.") if other == "AutoModel" else key
                    assert torch.equal(opened[key], value), (other, key)
        print(folder.parent.name, auto_class)
"""


def run_without_the_package(source, target, folder):
    """What `WITHOUT_THE_PACKAGE` opened, in a process of its own with nothing but its own module cache."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSTARTUP")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "HF_MODULES_CACHE": str(folder / "code")}
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WITHOUT_THE_PACKAGE), str(source), str(target)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


def assert_complete(folder, style):
    """A folder holds all code, and a map with every Auto class, each pointing to a class that is there."""
    assert {path.stem for path in folder.glob("*.py")} >= CODE
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", "AutoModel", *(f"AutoModelFor{task}" for task in STYLES[style])}
    for reference in auto_map.values():
        module, name = reference.split(".")
        assert f"class {name}" in (folder / f"{module}.py").read_text()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_every_auto_class_opens_what_was_saved(make_config, make_model, assert_close, tmp_path, name):
    style = NAMES[name]
    for task in STYLES[style]:
        model = make_model(getattr(gma_hf, f"GMAFor{task}"), make_config(name, num_labels=3))
        folder = tmp_path / task
        model.save_pretrained(folder)
        assert_complete(folder, style)
        loaded, report = getattr(transformers, f"AutoModelFor{task}").from_pretrained(folder, output_loading_info=True)
        assert type(loaded) is type(model)
        assert not any(report.values()), report
        state, expected = loaded.state_dict(), model.state_dict()
        assert state.keys() == expected.keys()
        assert all(
            state[key].dtype == value.dtype and torch.equal(state[key], value) for key, value in expected.items()
        )
        ids = IDS[None] if task == "MultipleChoice" else IDS
        expected, actual = model(ids), loaded(ids)
        for key in expected:
            if isinstance(expected[key], torch.Tensor):
                assert_close(actual[key], expected[key], LAST_DIGITS, key)
        base = transformers.AutoModel.from_pretrained(folder)
        assert type(base) is GMAModel
        assert_close(base(IDS).last_hidden_state, model.model(IDS).last_hidden_state, LAST_DIGITS)
        assert type(transformers.AutoConfig.from_pretrained(folder)) is type(model.config)


@pytest.mark.parametrize("name", ["causal_additions", "bidirectional_conv"])
@torch.no_grad()
def test_a_saved_base_model_opens_under_every_auto_class(make_config, make_model, assert_close, tmp_path, name):
    model = make_model(GMAModel, make_config(name))
    model.save_pretrained(tmp_path)
    assert_complete(tmp_path, NAMES[name])
    expected = model(IDS).last_hidden_state
    for task in STYLES[NAMES[name]]:
        loaded = getattr(transformers, f"AutoModelFor{task}").from_pretrained(tmp_path)
        assert_close(loaded.model(IDS).last_hidden_state, expected, LAST_DIGITS)
        assert all(parameter.isfinite().all() for parameter in loaded.parameters())


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_half_precision_survives(make_config, make_model, assert_close, tmp_path, low):
    model = make_model(GMAModel, make_config("causal_additions")).to(low)
    model.save_pretrained(tmp_path)
    for dtype in (low, "auto"):
        loaded = GMAModel.from_pretrained(tmp_path, dtype=dtype)
        for key, value in model.state_dict().items():
            assert loaded.state_dict()[key].dtype == value.dtype and torch.equal(loaded.state_dict()[key], value), key
        assert_close(loaded(IDS).last_hidden_state, model(IDS).last_hidden_state, 0.01)


@pytest.mark.slow
@torch.no_grad()
def test_a_checkpoint_opens_without_the_package(make_config, make_model, tmp_path):
    """Also after it was saved again from there, in a second process that knows nothing of the first."""
    copies = [tmp_path / "first", tmp_path / "second", tmp_path / "third"]
    saved = {}
    for name in ("causal_additions", "bidirectional_conv"):
        for task in STYLES[NAMES[name]]:
            model = make_model(getattr(gma_hf, f"GMAFor{task}"), make_config(name, num_labels=3))
            saved[f"{name}/AutoModelFor{task}"] = NAMES[name]
            folder = copies[0] / name / f"AutoModelFor{task}"
            model.save_pretrained(folder)
            ids = IDS[None] if task == "MultipleChoice" else IDS
            outputs = model(ids)
            expected = {key: outputs[key].contiguous() for key in outputs if key.endswith("logits")}
            (folder / "expected").mkdir()
            save_file({**expected, "ids": ids}, folder / "expected" / "outputs.safetensors")
    for index in range(2):
        work = tmp_path / f"process {index}"
        work.mkdir()
        opened = run_without_the_package(copies[index], copies[index + 1], work)
        assert sorted(line.replace(" ", "/") for line in opened) == sorted(saved)
        for path, style in saved.items():
            first, copy = copies[0] / path, copies[index + 1] / path
            assert_complete(copy, style)
            weights, expected = (load_file(folder / "model.safetensors") for folder in (copy, first))
            assert weights.keys() == expected.keys()
            assert all(torch.equal(weights[key], value) for key, value in expected.items())
            (copy / "expected").symlink_to(first / "expected")


def test_the_code_that_travels_imports_nothing_of_the_package():
    folder = Path(gma_hf.__file__).parent / "model"
    assert {"modeling_gma", "configuration_gma", "kernels_scan_gma", "compat_gma"} <= CODE
    for path in folder.glob("*_gma.py"):
        imports = [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert not any("gma_hf" in line for line in imports), path
