"""Tiny random transformers folders, written as transformers would write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaForSequenceClassification,
)

WORDS = [chr(code) for code in range(97, 123)]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "water", "gate", *WORDS, *(f"##{word}" for word in WORDS)]

SIZES = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordPiece({word: place for place, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=False)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def seeded(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = make()
        for parameter in model.parameters():  # fresh weights are nearly zero, which would hide any mistake
            parameter.data.normal_(0.0, 0.3)
        return model.eval()


def cross_encoder(folder: Path) -> Path:
    return save(seeded(lambda: BertForSequenceClassification(BertConfig(**SIZES, num_labels=1))), folder)


def classifier(folder: Path, **facts: Any) -> Path:
    """A RoBERTa: no token types, and positions that begin behind the pad id."""
    config = RobertaConfig(
        **SIZES, type_vocab_size=1, pad_token_id=0, id2label={0: "calm", 1: "flood", 2: "drought"}, **facts
    )
    return save(seeded(lambda: RobertaForSequenceClassification(config)), folder)


def sentence_model(folder: Path, *, pooling: dict[str, Any], modules: tuple[str, ...] = ()) -> Path:
    """A sentence-transformers folder around a tiny BERT."""
    save(seeded(lambda: BertModel(BertConfig(**SIZES))), folder)
    kinds = ("Transformer", "Pooling", *modules)
    listed = [
        {
            "idx": n,
            "name": str(n),
            "path": "" if not n else f"{n}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for n, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def distilled(folder: Path) -> Path:
    config = DistilBertConfig(
        vocab_size=SIZES["vocab_size"], dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40
    )
    return save(seeded(lambda: DistilBertModel(config)), folder)


def decoder(folder: Path) -> Path:
    """An embedder made of a language model: causal, rotary, two queries to a key; pooled at the last token."""
    config = Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8, pad_token_id=0)
    save(seeded(lambda: Qwen3Model(config)), folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))
    return folder


def hidden(source: Path, text: str) -> Any:
    """Token vectors of one text, from eager torch."""
    model = AutoModel.from_pretrained(source, attn_implementation="eager").eval()
    ids = torch.tensor([tokenizer().encode(text).ids])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0].numpy()
