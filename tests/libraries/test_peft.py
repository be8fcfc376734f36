"""PEFT: LoRA on the projections, the mixture trained as a whole, merged and unmerged, saved and loaded."""

import pytest
import torch

from gma_hf import GMAForCausalLM, GMAForSequenceClassification
from gma_hf.model.compat_gma import CACHE_NAME


peft = pytest.importorskip("peft")

# PEFT 0.21.2 asks a model for what Transformers 5.23 has renamed
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # It says so of layer norms in every model
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
    # `generate` gives GPT-2's positions too, and prompts have none
    pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning"),
]

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["qkv_proj", "o_proj", "up_proj", "down_proj"]}
HYBRID = [*LORA["target_modules"], "q_proj", "k_proj", "v_proj"]
MIXTURE = {"modules_to_save": ["mixture"]}


@pytest.fixture
def ids(random_rows):
    return torch.stack(random_rows([33, 33]))


def adapted(make_config, make_model, name="causal", **more):
    model = make_model(GMAForCausalLM, make_config(name))
    return peft.get_peft_model(model, peft.LoraConfig(**{"task_type": "CAUSAL_LM", **LORA, **more}))


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("name", ["causal", "causal_additions"])
def test_lora_and_the_mixture_learn_and_nothing_else(make_config, make_model, ids, train, name):
    model = adapted(make_config, make_model, name, **MIXTURE)
    before = {key: value.clone() for key, value in model.named_parameters()}
    losses = train(model, lambda: model(ids, labels=ids).loss)
    assert losses[-1] < losses[0]
    changed = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert changed == trained_names(model)
    layers = model.config.num_hidden_layers
    mixture = [key for key in changed if "mixture" in key]
    assert (
        len(mixture) == layers * len(list(model.base_model.model.model.layers[0].attention.mixture.parameters())) / 2
    )
    assert len(changed) == len(mixture) + 2 * len(LORA["target_modules"]) * layers


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("causal", LORA["target_modules"]),
        ("causal_additions", LORA["target_modules"]),
        ("causal_hybrid", HYBRID),
    ],
)
def test_merged_weights_give_the_same_logits(make_config, make_model, ids, train, assert_close, name, targets):
    model = adapted(make_config, make_model, name, target_modules=targets, **MIXTURE)
    assert {key.split(".")[-4] for key in trained_names(model) if "lora_A" in key} == set(targets)
    with model.disable_adapter(), torch.no_grad():
        start = model(ids).logits
    train(model, lambda: model(ids, labels=ids).loss)
    model.eval()
    with torch.no_grad():
        expected = model(ids).logits
        with model.disable_adapter():
            assert_close(model(ids).logits, start, 1e-6, "logits without the adapter")
        merged = model.merge_and_unload()
        assert isinstance(merged, GMAForCausalLM)
        assert (expected - start).abs().max() > 1e-2
        assert_close(merged(ids).logits, expected, 1e-5, "merged logits")
    assert set(merged.state_dict()) == set(make_model(GMAForCausalLM, make_config(name)).state_dict())


def test_an_adapter_is_saved_and_loaded(make_config, make_model, ids, train, assert_close, tmp_path):
    model = adapted(make_config, make_model, **MIXTURE)
    train(model, lambda: model(ids, labels=ids).loss)
    model.eval().save_pretrained(tmp_path)
    base = make_model(GMAForCausalLM, make_config("causal"))
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        assert_close(loaded(ids).logits, model(ids).logits, 1e-6)


def test_an_adapted_model_generates_from_its_state(make_config, make_model, ids, train):
    model = adapted(make_config, make_model, **MIXTURE)
    train(model, lambda: model(ids, labels=ids).loss)
    model.eval()
    choices = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(**choices), model.generate(**choices, use_cache=False))


def test_the_mixture_stays_in_float32(make_config, make_model, ids):
    model = make_model(GMAForCausalLM, make_config("causal")).to(torch.bfloat16)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **LORA, **MIXTURE))
    model.to(torch.bfloat16)
    dtypes = {value.dtype for key, value in model.named_parameters() if "mixture" in key}
    assert dtypes == {torch.float32}
    assert model(ids, labels=ids).loss.isfinite()


def test_a_classifier(make_config, make_model, ids, train):
    """`task_type="SEQ_CLS"` trains the new head beside the adapter."""
    model = make_model(GMAForSequenceClassification, make_config("bidirectional", num_labels=2))
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", **LORA, **MIXTURE))
    assert any("classifier.modules_to_save" in key for key in trained_names(model))
    losses = train(model, lambda: model(ids, labels=torch.tensor([0, 1])).loss)
    assert losses[-1] < losses[0]


def test_all_linear_leaves_the_mixture_alone(make_config, make_model):
    model = make_model(GMAForCausalLM, make_config("causal_additions"))
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    adapted_modules = {key.split(".")[-4] for key in trained_names(model)}
    assert adapted_modules == {*LORA["target_modules"], "forget_gate", "output_gate"}


METHODS = {
    "LoRA": lambda: peft.LoraConfig(task_type="CAUSAL_LM"),
    "all-linear": lambda: peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
    "DoRA": lambda: peft.LoraConfig(task_type="CAUSAL_LM", use_dora=True),
    "mixture as a whole": lambda: peft.LoraConfig(task_type="CAUSAL_LM", **MIXTURE),
    "means": lambda: peft.LoraConfig(task_type="CAUSAL_LM", target_modules=[], target_parameters=["mixture.means"]),
    "means beside": lambda: peft.LoraConfig(task_type="CAUSAL_LM", target_parameters=["mixture.means"]),
    "IA3": lambda: peft.IA3Config(task_type="CAUSAL_LM"),
    "AdaLoRA": lambda: peft.AdaLoraConfig(task_type="CAUSAL_LM", total_step=10),
    "VeRA": lambda: peft.VeraConfig(task_type="CAUSAL_LM"),
    "layer norms": lambda: peft.LNTuningConfig(task_type="CAUSAL_LM"),
    "prompt tuning": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "p-tuning": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=16),
}


@pytest.mark.parametrize("name", ["causal", "causal_additions", "causal_hybrid"])
@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_saves_loads_generates_and_merges(
    make_config, make_model, ids, train, assert_close, tmp_path, method, name
):
    """PEFT's own default targets, where a method has targets."""
    model = peft.get_peft_model(make_model(GMAForCausalLM, make_config(name)), METHODS[method]())
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    losses = train(model, lambda: model(**batch, labels=ids).loss)
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make_model(GMAForCausalLM, make_config(name)), tmp_path).eval()
    with torch.no_grad():
        logits = model(**batch).logits
        assert_close(loaded(**batch).logits, logits, 1e-5, "logits of the loaded adapter")
    # What is generated from the state is what one call predicts. Of prompts PEFT 0.21.2 does not see that the cache is
    # called `cache` now, and gives the virtual tokens again at each step, to GPT-2 too: there only the first token
    is_prompt = isinstance(model.active_peft_config, peft.PromptLearningConfig)
    count = 1 if is_prompt and CACHE_NAME == "cache" else 6
    tokens = model.generate(**batch, max_new_tokens=count, do_sample=False)
    with torch.no_grad():
        predicted = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits.argmax(-1)
    assert torch.equal(predicted[:, -count - 1 : -1], tokens[:, -count:])
    if not is_prompt:
        with torch.no_grad():
            assert_close(model.merge_and_unload()(**batch).logits, logits, 1e-4, "merged logits")


def test_prefix_tuning_is_refused(make_config, make_model, ids):
    """It gives keys and values, which a GMA layer has none of."""
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    model = peft.get_peft_model(make_model(GMAForCausalLM, make_config("causal")), config)
    with pytest.raises(ValueError, match="it holds keys and values, as PEFT's prefix tuning gives"):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
