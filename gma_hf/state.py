"""The state of a causal model after a text: save it to a file, continue from it, add it to another one."""

import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save
from transformers import Cache, DynamicCache, PreTrainedModel

from .model.cache_gma import adopt, is_gma
from .model.identity_gma import ModelIdentity


FORMAT = "gma_state.1"


@dataclass(frozen=True, eq=False)
class GMAState:
    """
    The state of a causal model after a text: all that it keeps of what it has read.

    Args:
        tensors: by name, `layers.i.state` `[batch, heads, K, d_v + 1]` and `layers.i.conv_tail` `[batch, W - 1,
            channels]` of GMA layers, `layers.i.keys` and `layers.i.values` of the softmax layers of hybrid stacks.
        tokens: how many tokens were read, padding included.
        identity: of the model that read them.
    """

    tensors: dict[str, torch.Tensor]
    tokens: int
    identity: ModelIdentity

    @classmethod
    def from_cache(cls, cache: Cache) -> "GMAState":
        """
        Return the state that a cache holds, as copies of its tensors.

        Args:
            cache: the `cache` (before Transformers 5.24 the `past_key_values`) of a model's output.

        Raises:
            ValueError: for a cache that no GMA model has written to.
        """
        identity = getattr(cache, "identity", None)
        tokens = 0 if identity is None else int(cache.get_seq_length())
        if tokens == 0:
            raise ValueError(f"`cache` must be one that a GMA model has read tokens into, but it is {cache}.")
        tensors = {}
        for index, layer in enumerate(cache.layers):
            if is_gma(layer):
                held = layer.tensors
            else:  # a static cache also has room for tokens to come
                held = {"keys": layer.keys[:, :, :tokens], "values": layer.values[:, :, :tokens]}
            tensors |= {f"layers.{index}.{name}": x.detach().clone() for name, x in held.items()}
        return cls(tensors, tokens, identity)

    @property
    def batch_size(self) -> int:
        """Number of rows of the batch."""
        return next(iter(self.tensors.values())).shape[0]

    @property
    def nbytes(self) -> int:
        """Number of bytes of all tensors."""
        return sum(x.nbytes for x in self.tensors.values())

    def to_cache(self, model: PreTrainedModel, batch_size: int | None = None) -> DynamicCache:
        """
        Return a cache from which `model` continues, on its device and in its dtype (states stay float32).

        Args:
            model: with or without a head, of the config that the state was written by.
            batch_size: rows of the batch to come, if the state has one row, which is then the start of all of them.

        Raises:
            ValueError: for a state of another model, or of another number of rows.
        """
        model = getattr(model, "model", model)
        self._check_model(getattr(model, "identity", None), "`model`")
        rows = self.batch_size if batch_size is None else batch_size
        if type(rows) is not int or rows < 1 or self.batch_size not in (1, rows):
            allowed = "a positive integer" if self.batch_size == 1 else f"{self.batch_size}, the rows of the state"
            raise ValueError(f"`batch_size` must be {allowed}, but it is {batch_size!r}.")
        dtypes = {"state": torch.promote_types(model.dtype, torch.float32)}
        cache = adopt(DynamicCache(config=model.config), model.config)
        cache.identity = self.identity
        for index, layer in enumerate(cache.layers):
            prefix = f"layers.{index}."
            held = {
                name.removeprefix(prefix): x.expand(rows, *x.shape[1:])
                for name, x in self.tensors.items()
                if name.startswith(prefix)
            }
            held = {name: x.to(model.device, dtypes.get(name, model.dtype), copy=True) for name, x in held.items()}
            if "state" in held:
                layer.update(held, self.tokens)
            else:
                layer.update(held["keys"], held["values"])
                if getattr(layer, "is_sliding", False):
                    layer.cumulative_length = self.tokens
        return cache

    def _check_model(self, other: ModelIdentity | None, what: str) -> None:
        if other is None or other.fingerprint != self.identity.fingerprint:
            raise ValueError(
                f"{what} must be of the config and shapes that the state was written with (fingerprint "
                f"{self.identity.fingerprint[:12]}), but its fingerprint is {other and other.fingerprint[:12]}."
            )

    def __add__(self, other: "GMAState") -> "GMAState":
        """
        Return the sum of the memories and masses of two texts that were read apart, layer by layer. In a network of
        one layer this is the state of both as one text. Deeper layers keep each text as it was read, without the
        other.

        Raises:
            ValueError: for states of another model, of a model whose states do not add up, or of other batch sizes.
        """
        if not isinstance(other, GMAState):
            return NotImplemented
        self._check_model(other.identity, "The other state")
        if self.identity.no_sum_because:
            raise ValueError(f"States of this model do not add up, since {self.identity.no_sum_because}.")
        if self.batch_size != other.batch_size:
            raise ValueError(
                f"The other state must have {self.batch_size} rows, as this one has, but it has {other.batch_size}."
            )
        tensors = {name: x + other.tensors[name].to(x.device) for name, x in self.tensors.items()}
        return GMAState(tensors, self.tokens + other.tokens, self.identity)

    def _metadata(self) -> dict[str, str]:
        return {"format": FORMAT, "tokens": str(self.tokens), **self.identity._asdict()}

    def _digest(self) -> str:
        digest = hashlib.sha256(json.dumps(self._metadata(), sort_keys=True).encode())
        for name, x in sorted(self.tensors.items()):
            digest.update(f"{name} {x.dtype} {list(x.shape)}".encode())
            digest.update(x.contiguous().cpu().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file. What stood at `path` is replaced in one step, or left as it was."""
        path = Path(path)
        tensors = {name: x.contiguous() for name, x in self.tensors.items()}
        content = save(tensors, {**self._metadata(), "digest": self._digest()})
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike) -> "GMAState":
        """
        Return the state that a file holds.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not one that `save` has written, whole and unchanged.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"`path` must be a file, but there is none at {str(path)!r}.")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            identity = ModelIdentity(metadata["fingerprint"], metadata["no_sum_because"])
            state = cls(tensors, int(metadata["tokens"]), identity)
            is_whole = metadata["format"] == FORMAT and metadata["digest"] == state._digest()
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"`path` must be a file that GMAState.save has written, but {str(path)!r} is not."
            ) from error
        if not is_whole:
            raise ValueError(f"`path` must be a file as GMAState.save wrote it, but {str(path)!r} has been changed.")
        return state
