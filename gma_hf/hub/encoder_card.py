"""The card of a sentence encoder: the one that sentence-transformers writes, with sections of ours."""

import re
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import ModelCard

from .modules import FILES, read_settings


def encoder_card(
    folder: Path,
    name: str,
    description: str,
    sections: str,
    license: str | None = None,
    language: str | None = None,
    base_model: str | None = None,
    dataset: str | None = None,
) -> ModelCard | None:
    """
    Return the card that sentence-transformers writes of a checkpoint, or None where it is not installed or the
    checkpoint is no sentence encoder.

    Args:
        folder: folder of the checkpoint.
        name: Hub name or folder, as the checkpoint is opened.
        description: what stands before the details of the model, in Markdown.
        sections: what stands before the details of the training, in Markdown.
        license: identifier of the licence.
        language: code of the language.
        base_model: Hub name of the source.
        dataset: Hub name of the data that it was trained on.
    """
    if not (folder / FILES[0]).is_file() or find_spec("sentence_transformers") is None:
        return None
    if read_settings(folder).get("model_type", "SentenceTransformer") != "SentenceTransformer":
        return None
    from sentence_transformers import SentenceTransformer, SentenceTransformerModelCardData
    from sentence_transformers.base.model_card import generate_model_card

    class CardData(SentenceTransformerModelCardData):
        def generate_usage_snippet(self) -> str:
            words = "# `trust_remote_code` is not needed after `import gma_hf`"
            opening = f'\\1("{name}", trust_remote_code=True)  {words}'
            return re.sub(r'(?:#.*\n)?(model = \w+)\("[^"]*"\)', opening, super().generate_usage_snippet())

    data = CardData(language=language, license=license, model_name=name.split("/")[-1], local_files_only=True)
    data.base_model, data.datasets = base_model, [] if dataset is None else [dataset]
    data.set_losses([])  # and with these what is to be cited
    data.add_tags(["gma", "gaussian-mixture-attention", "custom_code"])
    encoder = SentenceTransformer(str(folder), device="cpu", model_card_data=data, local_files_only=True)
    text = re.sub(r"<!--.*?-->\n?", "", generate_model_card(encoder), flags=re.DOTALL)  # what it asks people to write
    for heading, before in (("## Model Details", description), ("## Training Details", sections)):
        start, found, rest = text.partition(f"\n{heading}\n")
        text = f"{start}\n{before.strip()}\n{found}{rest}"
    return ModelCard(re.sub(r"\n{3,}", "\n\n", text))
