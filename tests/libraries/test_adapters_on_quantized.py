"""An adapter on a base whose weights are int8, by torchao and by quanto: trained, saved, loaded, generating."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, QuantoConfig, TorchAoConfig


peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def torchao():
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def quanto():
    pytest.importorskip("optimum.quanto")
    return QuantoConfig(weights="int8")


@pytest.mark.parametrize("quantization", [torchao, quanto])
def test_an_adapter_on_int8_weights(shakespeare, train, assert_close, tmp_path, quantization):
    def base():
        return AutoModelForCausalLM.from_pretrained(shakespeare, quantization_config=quantization())

    batch = AutoTokenizer.from_pretrained(shakespeare)("To be, or not to be", return_tensors="pt")
    model = peft.get_peft_model(base(), peft.LoraConfig(task_type="CAUSAL_LM", modules_to_save=["mixture"]))
    assert {p.dtype for name, p in model.named_parameters() if "mixture" in name} == {torch.float32}
    losses = train(model, lambda: model(**batch, labels=batch["input_ids"]).loss)
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(base(), tmp_path).eval()
    with torch.no_grad():
        assert_close(loaded(**batch).logits, model(**batch).logits, 1e-5, "logits of the loaded adapter")
    choices = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(**batch, **choices), model.generate(**batch, **choices, use_cache=False))
