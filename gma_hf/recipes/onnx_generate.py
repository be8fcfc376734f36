"""
Generate greedily in onnxruntime, without torch and Transformers, from a checkpoint that was exported before by

    python -c "import gma_hf, gma_hf.export as e; e.export_onnx(
        gma_hf.GMAForCausalLM.from_pretrained('model_cards/gma-shakespeare'), 'gma-shakespeare.onnx')"
    python gma_hf/recipes/onnx_generate.py gma-shakespeare.onnx model_cards/gma-shakespeare/tokenizer.json \
        $'ROMEO:\n' 200

This file imports nothing of gma_hf: copied to another machine, it runs there with onnxruntime, tokenizers and NumPy.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path


try:
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer
except ImportError as error:
    print(f"onnx_generate needs `pip install onnxruntime tokenizers numpy`: {error}.", file=sys.stderr)
    raise SystemExit(2) from error


def generate(session: onnxruntime.InferenceSession, prompt: list[int], count: int) -> Iterator[int]:
    """Read the prompt token by token, then yield the `count` most probable next ones."""
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    _, *inputs = session.get_inputs()  # after `input_ids`: the state, which begins with zeros; the batch is open
    state = {x.name: np.zeros([1, *x.shape[1:]], types[x.type]) for x in inputs}
    waiting = list(prompt)
    for _ in range(len(prompt) + count - 1):
        token = waiting.pop(0)
        logits, *after = session.run(None, {"input_ids": np.array([[token]]), **state})
        state = dict(zip(state, after))
        if not waiting:
            waiting.append(int(logits[0].argmax()))
            yield waiting[0]


def main(arguments: list[str] | None = None) -> None:
    """Print the prompt and what follows it."""
    parser = ArgumentParser(description="Generate greedily in onnxruntime.")
    for name in ("model", "tokenizer"):
        parser.add_argument(name, type=Path, help=f"file of the {name}")
    parser.add_argument("prompt", help="how the text starts")
    parser.add_argument("count", type=int, help="tokens to generate")
    args = parser.parse_args(arguments)
    for path in (args.model, args.tokenizer):
        if not path.is_file():
            parser.error(f"model and tokenizer must be files, but {str(path)!r} is none.")
    if not args.prompt or args.count < 1:
        parser.error(f"prompt must hold some text and count be at least 1: {args.prompt!r}, {args.count}.")
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    tokens = tokenizer.encode(args.prompt).ids
    tokens += generate(onnxruntime.InferenceSession(args.model), tokens, args.count)
    print(tokenizer.decode(tokens))


if __name__ == "__main__":
    main()
