"""Prompts to embeddings: the stored ones as they are, any other through the bundle's tokenizer and text encoder."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from posecrafter.errors import RequestError
from posecrafter.runtime.bundle import Bundle
from posecrafter.runtime.network import Network

Floats = NDArray[np.float32]


def embed(network: Network, bundle: Bundle, prompt: str | None, stored: Floats) -> Floats:
    """`stored` for None, else the embedding of `prompt`; float32 [T, D]. A prompt longer than T tokens is cut.

    Raises: RequestError "prompt-text" where the bundle has no tokenizer (one held in memory only).
    """
    if prompt is None:
        return stored
    if bundle.folder is None:
        raise RequestError("prompt-text", "a changed prompt needs an exported bundle; run: posecrafter export")
    tokenizer = Tokenizer.from_file(str(bundle.folder / "graphs" / "tokenizer.json"))
    ids = tokenizer.encode(prompt).ids  # padded and cut to T by the tokenizer file itself
    embedding: Floats = network.encode_text(np.array([ids], dtype=np.int64))[0]
    return embedding
