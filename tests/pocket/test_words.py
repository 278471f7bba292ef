"""Any English text becomes tokens, words of the captions single ones."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from posecrafter.pocket.words import LENGTH, build_tokenizer, token_ids

CAPTIONS = ["a man with short brown hair, wearing a red shirt, in a car", "a woman with long black hair, in a room"] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(CAPTIONS)


def test_words_of_the_captions_are_single_tokens(tokenizer):
    assert tokenizer.tokenize("a man with red hair") == ["a</w>", "man</w>", "with</w>", "red</w>", "hair</w>"]


@pytest.mark.parametrize("text", ["Quixotic zebra!", "naïve café, 42 years", "日本", "🙂", "x" * 400])
def test_any_text_becomes_known_tokens(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids
    assert tokenizer.unk_token_id not in ids


def test_token_ids_are_padded_and_cut_to_length(tokenizer):
    ids = token_ids(tokenizer, ["", "a man " * 100])
    assert ids.shape == (2, LENGTH)
    assert ids[0, 0] == ids[1, 0] == tokenizer.bos_token_id
    assert ids[1, -1] == tokenizer.eos_token_id


def test_the_saved_tokenizer_reads_without_transformers(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    saved.no_padding()  # it keeps whatever padding the tokenizer was last called with
    ids = saved.encode(CAPTIONS[0]).ids
    assert ids == tokenizer(CAPTIONS[0]).input_ids
