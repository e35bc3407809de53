"""Logits of the tokens that a language model may answer with, for any causal model of the transformers library.

Example:
    >>> model = AnswerModel(Path("Llama-Guard-3-8B"))
    >>> logits, totals = model.read([prompt_ids], depth=0, tokens=[yes, no])
"""

import contextlib
import inspect
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vigil_data.errors import Failure, UserError
from vigil_modeling.encoders.transformers_common import quiet
from vigil_modeling.weights import first_line

DType = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]


def choose_device(device: Device, dtype: DType) -> tuple[str, str]:
    """Return device and dtype: ``auto`` is the GPU if there is one, with bfloat16, or else the CPU with float32.

    Raises:
        UserError: if there is no GPU, but it is asked for.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no GPU here; use --device cpu")
    chosen = "cuda" if torch.cuda.is_available() and device != "cpu" else "cpu"
    return chosen, dtype if dtype != "auto" else "bfloat16" if chosen == "cuda" else "float32"


class AnswerModel:
    """A causal language model that reads prompts and returns logits of a few tokens after them.

    Args:
        path: folder in Hugging Face's layout, or a ``.gguf`` file.
        device: ``cpu`` or ``cuda``; see :func:`choose_device`.
        dtype: dtype of the weights, such as ``float32``.

    Attributes:
        max_tokens: longest sequence that its configuration allows; ``None`` if it states none.

    Raises:
        UserError: if it cannot be loaded.
    """

    def __init__(self, path: Path, device: str = "cpu", dtype: str = "float32") -> None:
        self._device = torch.device(device)
        self._model = _load(path, getattr(torch, dtype)).to(self._device).eval()
        text_config = self._model.config.get_text_config()
        self.max_tokens: int | None = getattr(text_config, "max_position_embeddings", None)
        self._options = {"logits_to_keep", "position_ids"} & set(inspect.signature(self._model.forward).parameters)

    @torch.inference_mode()
    def read(
        self, sequences: Sequence[Sequence[int]], depth: int, tokens: Sequence[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits after the last ``depth + 1`` tokens of each sequence.

        Args:
            sequences: token ids; shorter ones are padded on the left, masked.
            depth: number of tokens before the last one after which logits are read, too.
            tokens: token ids whose logits are returned.

        Returns:
            Logits ``[sequences, depth + 1, tokens]``, and the log of the sum of all tokens' exponentiated logits
            ``[sequences, depth + 1]``, float32.

        Raises:
            Failure: if logits are not finite.
        """
        longest = max(map(len, sequences))
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, longest - len(sequence) :] = torch.tensor(sequence)
            mask[row, longest - len(sequence) :] = 1
        options: dict[str, Any] = {}
        if "position_ids" in self._options:
            options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0).to(self._device)
        if "logits_to_keep" in self._options:
            options["logits_to_keep"] = depth + 1
        output = self._model(
            input_ids=ids.to(self._device), attention_mask=mask.to(self._device), use_cache=False, return_dict=True, **options
        )
        logits: Tensor = output.logits[:, -(depth + 1) :].float()
        read, totals = logits[..., list(tokens)], logits.logsumexp(-1)
        if not (read.isfinite().all() and totals.isfinite().all()):
            raise Failure("the model's logits are not finite; try --dtype float32")
        return read.cpu().numpy(), totals.cpu().numpy()


def _load(path: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    where = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    try:
        with quiet(), contextlib.redirect_stderr(io.StringIO()):  # the bar of a .gguf file's tensors cannot be turned off
            return AutoModelForCausalLM.from_pretrained(str(path.parent if where else path), dtype=dtype, **where)
    except Exception as error:  # the library raises many kinds for files that are missing, damaged, or of another architecture
        raise UserError(f"--model {path}: cannot be loaded as a causal language model ({first_line(error)})") from error
