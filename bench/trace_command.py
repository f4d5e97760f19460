"""``moebench trace``: runs a local transformers model on tokens and saves which experts they went to."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.errors import Exit, RequestError
from bench.trace import Recording, TracedLayer, record
from bench.units import three_digits

CONTEXT = 2048
"""Tokens in one sequence: attention costs grow with its square, and a layer's routing hardly depends on it."""
MAX_TEXT_BYTES = 64 * 2**20


def trace_command(
    model: str,
    *,
    text: Path | None,
    ids: Path | None,
    random: int | None,
    out: Path,
    max_tokens: int,
    layers: tuple[int, ...],
    seed: int,
) -> int:
    """Record a model's routing on tokens; prints the files, and what is in them on stderr."""
    if (text is not None) + (ids is not None) + (random is not None) != 1:
        raise RequestError("give the tokens in one way: --text FILE, --ids FILE.npy or --random N")
    transformers = _transformers()
    loaded = _load(transformers, model)
    vocabulary = int(loaded.get_input_embeddings().weight.shape[0])
    if text is not None:
        tokens, source = _tokens_of_text(transformers, model, text, max_tokens), f"text of {text.name}"
    elif ids is not None:
        tokens, source = _tokens_of_file(ids)[:max_tokens], f"token ids of {ids.name}"
    else:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(vocabulary, (min(random or 0, max_tokens),), generator=generator)
        source = f"random token ids, seed {seed}"
    if not len(tokens):
        raise RequestError(f"{source}: there are no tokens")
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary:
        raise RequestError(f"{source}: token ids should be from 0 to {vocabulary - 1}, the model's vocabulary")
    with record(loaded, layers or None) as recording, torch.inference_mode():
        for chunk in torch.split(tokens, CONTEXT):
            _call(loaded, chunk.unsqueeze(0))
    _save(recording, out, {"model_type": str(loaded.config.model_type), "tokens": len(tokens), "source": source})
    return Exit.OK


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise RequestError(
            f"moebench trace runs a model with transformers, which cannot be imported ({error}): "
            "pip install 'transformers>=5.23'"
        ) from None


def _load(transformers: Any, model: str) -> Any:
    """The model without its head, from this machine only."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # it reports the head that is left out
    try:
        return transformers.AutoModel.from_pretrained(model, local_files_only=True, dtype="auto").eval()
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RequestError(
            f"no model {model!r} can be loaded from this machine ({reason}); give the folder of a saved model, or "
            "download it first: moebench does not use the network"
        ) from None


def _call(model: Any, tokens: torch.Tensor) -> None:
    if model.config.is_encoder_decoder:
        model(input_ids=tokens, decoder_input_ids=tokens)
    else:
        model(input_ids=tokens, use_cache=False)


def _tokens_of_text(transformers: Any, model: str, text: Path, max_tokens: int) -> torch.Tensor:
    try:
        with text.open("rb") as stream:
            content = stream.read(MAX_TEXT_BYTES).decode("utf-8", errors="replace")
    except OSError as error:
        raise RequestError(f"--text {text}: cannot be read: {error.strerror or error}") from None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise RequestError(
            f"--text needs the tokenizer of {model!r}, which cannot be loaded ({type(error).__name__}); "
            "--ids FILE.npy takes token ids instead, --random N draws some"
        ) from None
    return torch.tensor(tokenizer(content)["input_ids"][:max_tokens], dtype=torch.int64)


def _tokens_of_file(ids: Path) -> torch.Tensor:
    try:
        array = np.load(ids, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RequestError(f"--ids {ids}: cannot be read as a NumPy .npy file ({error})") from None
    if not isinstance(array, np.ndarray) or array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise RequestError(f"--ids {ids}: should hold a whole-number array of one dimension, the token ids")
    return torch.from_numpy(array.astype(np.int64))


def _save(recording: Recording, out: Path, facts: dict[str, object]) -> None:
    try:
        files = recording.save(out)
        told = {files[layer.name].name: _facts(layer) for layer in recording.layers}
        (out / "trace.json").write_text(json.dumps(facts | {"files": told}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise RequestError(f"--out {out}: cannot be written: {error.strerror or error}") from None
    for layer in recording.layers:
        found = _facts(layer)
        print(
            f"{layer.name}: {facts['tokens']} tokens, top-{found['top_k']} of {layer.num_experts} experts, "
            f"the fullest has {three_digits(float(str(found['load_imbalance'])))} times the mean",
            file=sys.stderr,
        )
        print(files[layer.name])


def _facts(layer: TracedLayer) -> dict[str, object]:
    ids_TK = layer.expert_ids
    loads_E = np.bincount(ids_TK.reshape(-1), minlength=layer.num_experts)
    return {
        "layer": layer.name,
        "num_experts": layer.num_experts,
        "top_k": ids_TK.shape[1],
        "load_imbalance": round(float(loads_E.max() / loads_E.mean()), 6),
    }
