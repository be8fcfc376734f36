"""
Open a checkpoint with the code that lies beside it, as somebody without gma_hf does: `python open_copy.py FOLDER`.

`publish` gives the text of this file to a fresh Python process. The process prints what is wrong in one line, and
nothing where the checkpoint opens.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path


def open_copy(folder: str) -> None:
    """Open config, classes, model and tokenizer of `folder` and compute with the model, or raise what is wrong."""
    sys.modules["gma_hf"] = None  # as if it were not installed

    import torch
    import transformers
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    for reference in config.auto_map.values():
        get_class_from_dynamic_module(reference, folder)
    class_name = config.architectures[0]
    auto_class = next(key for key, value in config.auto_map.items() if value.endswith(f".{class_name}"))
    model, report = getattr(transformers, auto_class).from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    for kind in ("missing", "unexpected", "mismatched"):
        if keys := sorted(map(str, report[f"{kind}_keys"])):
            raise ValueError(f"the weights of a {class_name} are not whole, {keys[0]!r} is {kind}")
    if (Path(folder) / "tokenizer_config.json").is_file():
        transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    ids = torch.arange(4)[None] % config.vocab_size
    with torch.no_grad():
        output = model.eval()(ids[None] if class_name == "GMAForMultipleChoice" else ids)
    if not output[0].isfinite().all():
        raise ValueError("what the model computes is not finite")
    if (Path(folder) / "modules.json").is_file() and find_spec("sentence_transformers") is not None:
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(folder, device="cpu", trust_remote_code=True)
        if not encoder.encode(["A text."], convert_to_tensor=True).isfinite().all():
            raise ValueError("the embedding of a text is not finite")


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer
    try:
        open_copy(sys.argv[1])
    except Exception as error:
        print((str(error).strip() or type(error).__name__).splitlines()[0], file=answers)
