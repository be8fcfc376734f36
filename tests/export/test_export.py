"""Exported models: other sizes than the traced ones, elsewhere (ONNX), and the same outputs."""

import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch.utils._pytree import tree_leaves
from transformers import AutoTokenizer, DynamicCache

from gma_hf import (
    GMAForCausalLM,
    GMAForMaskedLM,
    GMAForQuestionAnswering,
    GMAForSequenceClassification,
    GMAModel,
    GMAState,
)
from gma_hf.export import export, export_onnx, for_export


ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "model_cards" / "gma-shakespeare"
ENCODERS = {
    "bidirectional": GMAForMaskedLM,
    "bidirectional_conv": GMAModel,
    "bidirectional_hybrid": GMAForQuestionAnswering,
}


def encoder_inputs(random_rows, pad_rows, lengths):
    ids, mask = pad_rows(random_rows(lengths), "right")
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}


def real(x, mask):
    return x[mask.bool()]


def read(step, ids, state):
    """Logits after the tokens, `[batch, N]`, one step each, and the state."""
    for token in ids.T:
        logits, state = step(input_ids=token[:, None], state=state)
    return logits, state


@pytest.mark.parametrize("name", ["bidirectional", "causal_additions"])
def test_it_is_traced_on_the_device_of_the_model(make_config, make_model, name):
    model = make_model(ENCODERS.get(name, GMAForCausalLM), make_config(name))
    tensors = tree_leaves(for_export(model).to("meta").example())
    assert len(tensors) >= 3 and all(tensor.device.type == "meta" for tensor in tensors)


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_an_encoder(make_config, make_model, random_rows, pad_rows, assert_close, name):
    model = make_model(ENCODERS[name], make_config(name))
    program = export(model)
    assert not [node for node in program.graph.nodes if "gma" in str(node.target)], "an operator of ours"
    for lengths in ([1], [30, 17, 5]):
        inputs = encoder_inputs(random_rows, pad_rows, lengths)
        expected = model(**inputs).to_tuple()
        for x, y in zip(program.module()(inputs=inputs), expected, strict=True):
            assert_close(real(x, inputs["attention_mask"]), real(y, inputs["attention_mask"]), 1e-5)


def in_torch(model, path):
    return export(model).module()


def in_onnxruntime(model, path):
    """The step from an ONNX file, to be called as the one in torch."""
    export_onnx(model, path)
    session = onnxruntime.InferenceSession(path)

    def step(input_ids, state):
        inputs = {"input_ids": input_ids, **state}
        logits, *after = map(torch.from_numpy, session.run(None, {name: x.numpy() for name, x in inputs.items()}))
        return logits, dict(zip(state, after, strict=True))

    return step


@pytest.mark.parametrize("where", [in_torch, in_onnxruntime])
@pytest.mark.parametrize(
    ("name", "position_embedding"), [("causal", "learned"), ("causal", "none"), ("causal_additions", "learned")]
)
@torch.no_grad()
def test_a_step(make_config, make_model, random_rows, assert_close, tmp_path, name, position_embedding, where):
    """From nothing, and from what the model has read as a `GMAState`."""
    model = make_model(GMAForCausalLM, make_config(name, position_embedding=position_embedding))
    step = where(model, tmp_path / "step.onnx")
    for batch in (1, 3):
        ids = torch.stack(random_rows([20] * batch))
        expected = model(ids).logits
        zeros = for_export(model).initial_state(batch)
        assert_close(read(step, ids, zeros)[0], expected[:, -1], 1e-4)
        cache = DynamicCache(config=model.config)
        model(ids[:, :12], past_key_values=cache)
        state = dict(GMAState.from_cache(cache).tensors)
        if "position" in zeros:
            state["position"] = torch.full((batch, 1), 12)
        assert_close(read(step, ids[:, 12:], state)[0], expected[:, -1], 1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_an_encoder_in_onnxruntime(make_config, make_model, random_rows, pad_rows, assert_close, tmp_path):
    model = make_model(GMAForQuestionAnswering, make_config("bidirectional_hybrid", conv_kernel_size=3))
    export_onnx(model, tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    assert [x.name for x in session.get_outputs()] == ["start_logits", "end_logits"]
    for lengths in ([1], [30, 17, 5]):
        inputs = encoder_inputs(random_rows, pad_rows, lengths)
        outputs = session.run(None, {name: x.numpy() for name, x in inputs.items()})
        for x, y in zip(outputs, model(**inputs).to_tuple(), strict=True):
            mask = inputs["attention_mask"]
            assert_close(real(torch.from_numpy(x), mask), real(y, mask), 1e-4)


@pytest.mark.slow
def test_text_from_onnxruntime_alone(tmp_path):
    """The recipe in a process that has no torch: greedy tokens of the shipped checkpoint, as `generate` has them."""
    model, tokenizer = GMAForCausalLM.from_pretrained(SHIPPED), AutoTokenizer.from_pretrained(SHIPPED)
    export_onnx(model, tmp_path / "step.onnx")
    inputs = tokenizer("ROMEO:\n", return_tensors="pt")
    expected = tokenizer.decode(model.generate(**inputs, max_new_tokens=40, do_sample=False)[0])
    recipe = "import sys, runpy; sys.modules['torch'] = sys.modules['transformers'] = None; "
    recipe += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    arguments = [ROOT / "gma_hf" / "recipes" / "onnx_generate.py", tmp_path / "step.onnx", SHIPPED / "tokenizer.json"]
    command = [sys.executable, "-c", recipe, *arguments, "ROMEO:\n", "40"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout == expected + "\n"


@pytest.mark.parametrize(
    ("head", "name", "message"),
    [
        (GMAForSequenceClassification, "causal", "causal GMAForSequenceClassification"),
        (GMAForCausalLM, "causal_hybrid", "layer_types.*full_attention"),
    ],
)
def test_refusals(make_config, make_model, head, name, message):
    with pytest.raises(ValueError, match=message):
        export(make_model(head, make_config(name)))
