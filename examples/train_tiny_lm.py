"""Trains the small text-generation model that ships in `examples/models/tiny-lm`.

A Llama of about three million parameters learns the King James Bible: public-domain English, and small enough
that ten to fifteen minutes on two CPU threads make text that is visibly text. The text comes out of Debian's
`bible-kjv-text`, read by the `bible` program of `bible-kjv`; both are fetched with apt and unpacked into a
temporary folder, nothing is installed. Elsewhere, give `--text FILE`: documents parted by empty lines.

    python examples/train_tiny_lm.py --out /tmp/tiny-lm

The same seed, thread count and build of torch give the same weights. Needs torch, transformers and tokenizers.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PACKAGES: Final = ("bible-kjv-text", "bible-kjv")
BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
CONTEXT: Final = 512
"""Tokens the model can look back on; training windows are a little shorter."""

CHAT_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] | trim }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
)
"""The model knows no dialogue: what was said so far is text, and the answer continues it."""


def debian_text(folder: Path) -> str:
    """Fetch the packages with apt, unpack them and let the reader print the whole book."""
    if subprocess.run(["apt-get", "-qq", "download", *PACKAGES], cwd=folder).returncode:
        raise SystemExit(f"cannot fetch {', '.join(PACKAGES)}: try apt-get update first, or give --text FILE")
    for package in sorted(folder.glob("*.deb")):
        subprocess.run(["dpkg", "-x", package.name, "root"], cwd=folder, check=True)
    printed = subprocess.run(
        ["root/usr/bin/bible", "-f", "-p", "root/usr/lib", "Gen1:1-Rev22:21"],
        cwd=folder, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return printed.stdout


def chapters(printed: str) -> list[str]:
    """The chapters of a book printed as one verse a line (`Ge1:1 In the beginning ...`), a verse a line still."""
    found: dict[str, list[str]] = {}
    for line in printed.splitlines():
        if (verse := re.match(r"(\S+?\d+):\d+ (.+)", line)) is not None:
            found.setdefault(verse[1], []).append(re.sub(r"[\[\]]", "", verse[2]).strip())
    if not found:
        raise SystemExit("no verses in the text: expected lines such as 'Ge1:1 In the beginning ...'")
    return ["\n".join(verses) for verses in found.values()]


def make_tokenizer(documents: list[str], size: int) -> Tokenizer:
    """A byte-level BPE: any input has tokens, at most one a byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[BEGIN, END, PAD], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 0)])
    return tokenizer


def make_model(vocabulary: int) -> LlamaForCausalLM:
    """An untrained Llama: tied embeddings, grouped-query attention."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=256, intermediate_size=640, num_hidden_layers=4,
            num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=CONTEXT,
            tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        )
    )  # fmt: skip


def batches(tokens: torch.Tensor, *, rows: int, length: int, seed: int) -> Iterator[torch.Tensor]:
    """Random windows for ever: each pass over the text starts at another offset and in another order."""
    draw = random.Random(seed)
    while True:
        starts = list(range(draw.randrange(length), len(tokens) - length - 1, length))
        draw.shuffle(starts)
        for at in range(0, len(starts) - rows + 1, rows):
            yield torch.stack([tokens[start : start + length + 1] for start in starts[at : at + rows]])


def optimizers(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, which learns more from few steps; AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, momentum=0.95),
        torch.optim.AdamW(others, lr=rate / 5, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def loss_of(model: LlamaForCausalLM, windows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy, in nats a token, of predicting each next token."""
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def evaluate(model: LlamaForCausalLM, tokens: torch.Tensor, length: int) -> float:
    """Loss on text that was never trained on."""
    model.eval()
    with torch.inference_mode():
        windows = tokens[: (len(tokens) - 1) // length * length + 1].unfold(0, length + 1, length)
        loss = sum(loss_of(model, part).item() * len(part) for part in windows.split(16)) / len(windows)
    model.train()
    return loss


def train(
    model: LlamaForCausalLM, tokens: torch.Tensor, held_out: torch.Tensor, args: argparse.Namespace
) -> float:
    """Run `args.steps` steps; returns the loss on the held-out text."""
    stream = batches(tokens, rows=args.rows, length=args.length, seed=args.seed)
    chosen = optimizers(model, args.rate)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / 30) * min(1.0, 2 * (1 - step / args.steps)) + 1e-3
        )
        for optimizer in chosen
    ]
    began, smooth = time.monotonic(), math.log(model.config.vocab_size)
    for step, windows in zip(range(1, args.steps + 1), stream, strict=False):
        loss = loss_of(model, windows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(chosen, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        smooth += 0.05 * (loss.item() - smooth)
        if step % 50 == 0 or step == args.steps:
            print(f"step {step}/{args.steps}  loss {smooth:.3f}  {time.monotonic() - began:.0f} s", flush=True)
    return evaluate(model, held_out, args.length)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write the folder: weights as float16 safetensors, tokenizer with a chat template, generation defaults."""
    model.to(torch.float16).save_pretrained(out)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=PAD, model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(out)
    defaults = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "do_sample": True, "temperature": 0.8}
    (out / "generation_config.json").write_text(json.dumps(defaults, indent=2) + "\n")


def main() -> None:
    """Fetch, tokenise, train, save, and show what the model says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--text", type=Path, help="use this text instead of Debian's King James Bible")
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--rows", type=int, default=7, help="windows a step")
    parser.add_argument("--length", type=int, default=448, help="tokens a window")
    parser.add_argument("--rate", type=float, default=0.02, help="Muon's learning rate")
    parser.add_argument("--seed", type=int, default=1611)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    if args.text is not None:
        documents = [text for text in args.text.read_text().split("\n\n") if text.strip()]
    else:
        with tempfile.TemporaryDirectory() as folder:
            documents = chapters(debian_text(Path(folder)))
    tokenizer = make_tokenizer(documents, args.vocabulary)
    rows = [[*encoding.ids, 1] for encoding in tokenizer.encode_batch(documents)]
    # Every fiftieth document is kept back: the loss reported is on text the model has not seen.
    held_out = torch.tensor([token for row in rows[::50] for token in row])
    tokens = torch.tensor([token for at, row in enumerate(rows) if at % 50 for token in row])
    model = make_model(tokenizer.get_vocab_size())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(documents)} documents, {len(tokens)} tokens, {parameters} parameters", flush=True)

    loss = train(model, tokens, held_out, args)
    print(f"held-out loss {loss:.3f} nats a token, perplexity {math.exp(loss):.1f}")
    save(model, tokenizer, args.out)
    model.float().eval()
    prompt = tokenizer.encode("And the king said unto")
    answer = model.generate(
        torch.tensor([prompt.ids]), max_new_tokens=80, do_sample=True, temperature=0.8, top_p=0.95
    )
    print(tokenizer.decode(answer[0].tolist()))


if __name__ == "__main__":
    main()
