"""Several real processes (gloo) that read one sequence together give what one process gives."""

import importlib.util
from pathlib import Path

import pytest
import torch

import gma_hf
from gma_hf.model.compat_gma import CACHE_NAME


LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")
MODELS = {
    "causal": "CausalLM",
    "causal_additions": "CausalLM",
    "bidirectional": "MaskedLM",
    "bidirectional_conv": "MaskedLM",
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def load_script():
    script = Path(__file__).parent / "parts.py"
    spec = importlib.util.spec_from_file_location("parts", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return script, module


def restarts(row_lengths, length):
    """Positions of rows in which documents of these lengths stand one after another, and a last one."""
    rows = []
    for lengths in row_lengths:
        lengths = [*lengths, length - sum(lengths)]
        rows.append(torch.cat([torch.arange(x) for x in lengths]))
    return torch.stack(rows)


def rows_of(kind, length, generator):
    """A batch of two rows, of a kind."""
    ids = torch.randint(1, 61, (2, length), generator=generator)
    batch = {"input_ids": ids, "labels": ids.clone()}
    if "padded" in kind:  # row 0: at its start, beyond the first cut of four; row 1: at its end; and between tokens
        mask = torch.rand(2, length, generator=generator) > 0.2
        mask[0, : length // 3] = False
        mask[1, -(length // 2) :] = False
        batch["attention_mask"] = mask.long()
        batch["labels"] = torch.where(mask, ids, -100)
    if "packed" in kind:  # with borders at a cut of two, beside one, and with a document of one token
        half = -(-length // 2)
        batch["position_ids"] = restarts([[half], [2, 1, half - 2, 5]], length)
    return batch


def cases_of(seed=0):
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for name, head in MODELS.items():
        batches = {"five tokens": rows_of("plain", 5, generator)}  # parts shorter than what a convolution sees
        batches |= {kind: rows_of(kind, 37, generator) for kind in ("plain", "padded", "packed", "packed, padded")}
        for kind, inputs in batches.items():
            weights = torch.randn(*inputs["input_ids"].shape, 61, generator=generator)
            case = {"model": name, "auto_class": f"AutoModelFor{head}", "inputs": inputs, "weights": weights}
            cases.append({**case, "kind": kind, "dtype": torch.float64, "checkpointing": False})
        cases.append({**case, "kind": "checkpointing", "dtype": torch.float32, "checkpointing": True})
    flat = {"input_ids": torch.randint(1, 61, (1, 30), generator=generator)}
    flat["cu_seq_lens_q"] = torch.tensor([0, 4, 15, 22, 30], dtype=torch.int32)
    flat["labels"] = flat["input_ids"].clone()
    case = {"model": "causal_additions", "auto_class": "AutoModelForCausalLM", "dtype": torch.float32, "inputs": flat}
    cases.append({**case, "weights": torch.zeros(1, 30, 61), "kind": "borders", "checkpointing": False})
    return cases


def check(model, case, given, objective, assert_close):
    model = model.to(case["dtype"]).train()
    model.zero_grad()
    tolerance, what = TOLERANCE[case["dtype"]], f"{case['model']}, {case['kind']}, {case['dtype']}: "
    output = model(**case["inputs"])
    objective(output.logits, output.loss, case["weights"].to(case["dtype"])).backward()
    assert_close(given["logits"], output.logits, tolerance, what + "logits")
    assert given["loss"].item() == pytest.approx(output.loss.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert_close(given[f"gradient of {name}"], parameter.grad, tolerance, what + name, at_least=0.1)
    if f"state of layer {model.config.num_hidden_layers - 1}" in given:
        with torch.no_grad():
            cache = model(**case["inputs"], use_cache=True)[CACHE_NAME]
        for index, layer in enumerate(cache.layers):
            for name, x in layer.tensors.items():
                assert_close(given[f"{name} of layer {index}"], x, tolerance, f"{what}{name} of layer {index}")
    model.float()


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_parts_are_the_whole(make_config, make_model, assert_close, run_python, tmp_path, processes):
    """
    Logits, losses, all gradients and the last state of rows whose length the number of processes does not divide,
    padded anywhere and packed, with gradient checkpointing too. Batches that differ are refused.
    """
    script, module = load_script()
    models = {name: make_model(getattr(gma_hf, f"GMAFor{head}"), make_config(name)) for name, head in MODELS.items()}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    cases = cases_of()
    torch.save(cases, tmp_path / "cases.pt")
    run_python(*LAUNCH, processes, script, tmp_path)
    for case, given in zip(cases, torch.load(tmp_path / "given.pt"), strict=True):
        check(models[case["model"]], case, given, module.objective, assert_close)
    assert "but inputs_embeds of rank 1 differ from those of rank 0." in (tmp_path / "refused.txt").read_text()
