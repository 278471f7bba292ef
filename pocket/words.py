"""The text half: a byte-level tokenizer in CLIP's form made from the captions, and a tiny CLIP text encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LENGTH = 48
VOCABULARY = 1024
WIDTH = 96


def build_tokenizer(captions: Sequence[str]) -> CLIPTokenizer:
    """A tokenizer whose merges come from the captions; any other text falls apart into bytes, none is unknown."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    # All bytes, alone and as the end of a word, before anything is merged: the same beginning as CLIP's vocabulary.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    merges = _merges(learner)
    words = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    words += [first + second for first, second in merges]
    vocabulary = {word: index for index, word in enumerate([*dict.fromkeys(words), start, end])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """The learned merges in order."""
    import json

    found = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in found]


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A fresh text encoder: token ids [B, 48] to [B, 48, 96]; 2 layers."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """int64 [n, 48], padded and cut to length."""
    tokens = tokenizer(list(captions), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    return torch.as_tensor(tokens.input_ids)
