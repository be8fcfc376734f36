"""
Transformers' own tests of models and configs, run on every GMA model in both styles and on a hybrid stack.

What does not apply is skipped by name, with the reason; the tests themselves skip what needs a GPU or another kind of
model.
"""

import unittest

from transformers.testing_utils import torch_device
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask

import gma_hf
from gma_hf import GMAConfig


HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice")
SHARED_MODELS = (gma_hf.GMAModel, *(getattr(gma_hf, f"GMAFor{head}") for head in HEADS))


class GMAModelTester:
    """Makes the small configs and the inputs that the tests run on."""

    is_training = True
    batch_size = 5
    seq_length = 7
    num_choices = 3
    vocab_size = 99
    hidden_size = 32
    num_attention_heads = 4

    def __init__(self, style: str, **choices):
        self.style = style
        self.choices = choices
        self.num_hidden_layers = choices.get("num_hidden_layers", 2)

    def get_config(self) -> GMAConfig:
        arguments = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": 37,
            "max_position_embeddings": 64,
            "num_components": 8,
            "chunk_size": 4,
            "pad_token_id": 0,
        }
        return getattr(GMAConfig, f"{self.style}_style")(**{**arguments, **self.choices})

    def prepare_config_and_inputs_for_common(self) -> tuple[GMAConfig, dict]:
        config = self.get_config()
        shape = [self.batch_size, self.seq_length]
        # Without the padding token, which the mask decides about
        inputs = {"input_ids": ids_tensor(shape, self.vocab_size - 1) + 1, "attention_mask": self.random_mask(config)}
        if config.type_vocab_size:
            inputs["token_type_ids"] = ids_tensor(shape, config.type_vocab_size)
        return config, inputs

    def random_mask(self, config: GMAConfig):
        shape = [self.batch_size, self.seq_length]
        mask = random_attention_mask(shape)
        if "sliding_attention" in config.layer_types:  # which refuses padding between tokens
            mask = mask.sort(dim=-1, descending=True).values
        return mask.to(torch_device)


class Conformance(ModelTesterMixin):
    """The tests of models and of the config, for one style."""

    # The tests tell a model's age by a copyright line, which our files lack, and leave out the oldest
    test_can_init_all_missing_weights_before_2023 = True
    # Tests that do not apply, and why
    skipped = {
        "test_bc_cache_name_forward": "asks for a warning at the older name of `cache`, which our models take too",
        "test_resize_position_vector_embeddings": "learned positions cannot be resized, as in GPT-2 and BERT",
    }

    def make_tester(self) -> GMAModelTester:
        raise NotImplementedError

    def setUp(self):
        if self._testMethodName in self.skipped:
            self.skipTest(self.skipped[self._testMethodName])
        self.model_tester = self.make_tester()
        is_causal = self.model_tester.get_config().is_causal
        self.config_tester = ConfigTester(self, config_class=GMAConfig, hidden_size=24, is_causal=is_causal)

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_retain_grad_hidden_states_attentions(self):
        # Of hidden states only: a GMA layer forms its affinity to be looked at, its output does not come from it
        self.has_attentions = False
        super().test_retain_grad_hidden_states_attentions()


class GMACausalConformance(Conformance, unittest.TestCase):
    all_model_classes = (*SHARED_MODELS, gma_hf.GMAForCausalLM)
    skipped = {
        **Conformance.skipped,
        "test_generation_tester_mixin_inheritance": "asks for generation tests that the source distribution lacks",
    }

    def make_tester(self):
        return GMAModelTester("gpt2")


class GMABidirectionalConformance(Conformance, unittest.TestCase):
    all_model_classes = (*SHARED_MODELS, gma_hf.GMAForMaskedLM)

    def make_tester(self):
        return GMAModelTester("bert")


class GMAHybridConformance(Conformance, unittest.TestCase):
    all_model_classes = (gma_hf.GMAModel, gma_hf.GMAForCausalLM)  # the heads are those of the causal style
    skipped = {
        **GMACausalConformance.skipped,
        "test_num_layers_is_small": "allows two layers, and three types of layer take three",
    }

    def make_tester(self):
        layer_types = ["gma", "full_attention", "sliding_attention"]
        return GMAModelTester("gpt2", num_hidden_layers=3, layer_types=layer_types, sliding_window=3)
