"""Import of a Hugging Face folder: sentence embedders, cross-encoders and sequence classifiers.

What the folder says is read by `sentence`, the graph is made by `graph`; here they are put together and the
result is measured against torch before anything is kept. Heavy imports stand inside `run`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from headgate_plugin_api import (
    ImportJob,
    LoadFailed,
    LoadProgress,
    Manifest,
    Parity,
    Task,
    TensorSignature,
    sha256_of,
)

from headgate_onnx.importing.folder import fingerprint, new_folder, write_folder
from headgate_onnx.importing.sentence import read_recipe

if TYPE_CHECKING:
    import torch

MAX_ERROR: Final = 1e-4
"""Largest difference to torch in any element that an import may have."""

_FROM_DISK: Final = {"local_files_only": True, "trust_remote_code": False}
"""A folder from elsewhere names neither a download nor code to run, and nobody is asked whether it may."""

_SAMPLES: Final = (
    "a",
    "The gate lets water in and measures it.",
    "Ein Satz auf Deutsch, mit Umlauten: äöü ß, und Zahlen wie 3,14159.",
    "灌溉渠的水闸 λ Ω न",
    "def admit(request):\n    return ledger.hold(price(bound(request)))\n",
    "Many hands have dug at this canal, and every one of them knew how much water a field may have. " * 6,
    "word " * 700,
)
"""Lengths from a token to beyond the limit of most models, several scripts, code."""


class ImportOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of this importer.

    Attributes:
        allow_dimensions: Whether callers may ask for shorter vectors (the model was trained for it).
        max_tokens: A lower limit than the folder's own.
    """

    allow_dimensions: bool | None = None
    max_tokens: int | None = None


class TransformersImporter:
    """Takes folders with a config.json and safetensors weights."""

    backend = "onnx"

    def accepts(self, job: ImportJob) -> bool:
        """A folder that transformers wrote."""
        folder = Path(job.source)
        return (folder / "config.json").is_file() or (folder / "modules.json").is_file()

    def run(self, job: ImportJob, report: Callable[[LoadProgress], None]) -> Manifest:
        """Convert, fuse, measure, write. Raises `LoadFailed`; nothing is left behind then."""
        try:
            options = msgspec.convert(job.options, ImportOptions)
        except msgspec.ValidationError as error:
            raise LoadFailed(f"import options: {error}") from error
        try:
            import onnxscript  # noqa: F401 - missing, it is the exporter that fails, late and unclear
            import torch  # noqa: F401
            import transformers  # noqa: F401
        except ImportError as error:
            raise LoadFailed(f"{error}; `pip install headgate-onnx[import]` brings what imports need") from error
        with new_folder(job.out) as folder:
            return _Import(job, options, folder, report).run()


class _Import:
    """One import, step by step."""

    def __init__(
        self, job: ImportJob, options: ImportOptions, folder: Path, report: Callable[[LoadProgress], None]
    ) -> None:
        from transformers import AutoConfig

        self.job = job
        self.options = options
        self.folder = folder
        self.report = report
        self.recipe = read_recipe(Path(job.source))
        try:
            self.config: Any = AutoConfig.from_pretrained(self.recipe.transformer, **_FROM_DISK)
        except Exception as error:  # transformers raises whatever it met
            raise LoadFailed(f"{self.recipe.transformer / 'config.json'}: {error}") from error
        self.task = self._task()

    def run(self) -> Manifest:
        from headgate_onnx.importing.graph import ATTENTION, export, fuse, register_attention
        from headgate_onnx.tokens import TOKENIZER_FILE

        self._say(0.02, "reading the tokenizer")
        self._write_tokenizer(self.folder / TOKENIZER_FILE)
        max_tokens = self._max_tokens()
        self._say(0.1, "reading the weights")
        register_attention()
        module = self._module(ATTENTION)
        names = self._input_names(module)
        output = "sentence_embedding" if self.task == "embed" else "scores"
        self._say(0.3, "exporting the graph")
        scratch = self.folder / "export"
        scratch.mkdir()
        export(module, names, output, scratch / "model.onnx")
        self._say(0.7, "fusing operators")
        fused = fuse(
            scratch / "model.onnx",
            self.folder / "model.onnx",
            heads=int(self.config.num_attention_heads),
            hidden=int(self.config.hidden_size),
        )
        for file in scratch.iterdir():
            file.unlink()
        scratch.rmdir()
        self._say(0.85, "measuring against torch")
        parity, width = self._measure(self._module("eager"), names, max_tokens)
        if not parity.max_abs_error < MAX_ERROR:
            raise LoadFailed(
                f"{self.job.source}: the converted model differs from torch by {parity.max_abs_error:.2e}, "
                f"more than the {MAX_ERROR:.0e} that is allowed"
            )
        manifest = write_folder(self.folder, self._manifest(names, output, max_tokens, width, parity, fused))
        self._say(1.0, "done")
        return manifest

    def _say(self, fraction: float, what: str) -> None:
        self.report(LoadProgress(fraction=fraction, what=what))

    def _task(self) -> Task:
        """The task that was asked for, checked, or the one that the config stands for."""
        architecture = next(iter(self.config.architectures or ()), "")
        scores = architecture.endswith("ForSequenceClassification")
        fitting: tuple[Task, ...] = ("embed",)
        if scores:
            fitting = ("rerank", "classify") if self.config.num_labels == 1 else ("classify",)
        task = self.job.task or fitting[0]
        if task not in fitting:
            raise LoadFailed(
                f"{self.job.source}: its architecture is {architecture or 'unnamed'}, which can be imported for "
                f"task {' or '.join(fitting)}, not {task}"
            )
        return task

    def _module(self, attention: str) -> torch.nn.Module:
        import torch
        from transformers import AutoModel, AutoModelForSequenceClassification
        from transformers.utils import logging

        from headgate_onnx.importing.heads import Embedder, Scorer, read_dense

        logging.disable_progress_bar()
        kind = AutoModel if self.task == "embed" else AutoModelForSequenceClassification
        try:
            model = kind.from_pretrained(
                self.recipe.transformer,
                **_FROM_DISK,
                use_safetensors=True,
                attn_implementation=attention,
                dtype=torch.float32,
            ).eval()
        except Exception as error:  # transformers raises whatever it met
            raise LoadFailed(f"{self.recipe.transformer}: {error}") from error
        if self.task != "embed":
            return Scorer(model).eval()
        dense = [read_dense(path) for path in self.recipe.dense]
        return Embedder(model, self.recipe.pooling, dense, self.recipe.normalize).eval()

    def _input_names(self, module: torch.nn.Module) -> tuple[str, ...]:
        import inspect

        inner: Any = next(module.children())
        takes_types = "token_type_ids" in inspect.signature(inner.forward).parameters
        types = takes_types and getattr(self.config, "type_vocab_size", 0) > 1
        return ("input_ids", "attention_mask", *(("token_type_ids",) if types else ()))

    def _write_tokenizer(self, path: Path) -> None:
        """The tokenizer without truncation; its padding section only carries the pad id."""
        from tokenizers import normalizers

        tokenizer = self._read_tokenizer(self.recipe.transformer / "tokenizer.json")
        if self.recipe.lower_case:
            own = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
            tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
        pad_id = int(self.config.pad_token_id or 0)
        tokenizer.no_truncation()
        tokenizer.enable_padding(pad_id=pad_id, pad_token=tokenizer.id_to_token(pad_id) or "[PAD]")
        tokenizer.save(str(path))

    def _read_tokenizer(self, path: Path) -> Any:
        """The folder's tokenizer; made from a vocabulary by transformers where there is no tokenizer.json."""
        from tokenizers import Tokenizer

        try:
            if path.is_file():
                return Tokenizer.from_file(str(path))
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(path.parent, **_FROM_DISK).backend_tokenizer
        except Exception as error:  # tokenizers raises bare Exception, transformers whatever it met
            raise LoadFailed(f"{path}: no tokenizer could be made: {error}") from error

    def _max_tokens(self) -> int:
        """The least of every limit that the folder names; positions of RoBERTa begin behind the pad id."""
        limits = [self.recipe.max_tokens, self.options.max_tokens]
        positions = getattr(self.config, "max_position_embeddings", None)
        if positions is not None and self.config.model_type in _OFFSET_POSITIONS:
            positions -= int(self.config.pad_token_id) + 1
        limits.append(positions)
        stated = _model_max_length(self.recipe.transformer / "tokenizer_config.json")
        limits.append(stated if stated is not None and stated < 1 << 20 else None)
        known = [limit for limit in limits if limit is not None]
        if not known:
            raise LoadFailed(
                f"{self.job.source} names no maximum length; set it with the import option max_tokens"
            )
        return min(known)

    def _measure(self, reference: torch.nn.Module, names: Sequence[str], max_tokens: int) -> tuple[Parity, int]:
        """Largest difference to eager torch, each text alone there and in padded batches here."""
        import numpy as np
        import torch

        from headgate_onnx.options import OnnxOptions
        from headgate_onnx.session import open_session
        from headgate_onnx.tokens import Tokens

        tokens = Tokens(self.folder, max_tokens)
        paths = [f"sample {place}" for place in range(len(_SAMPLES))]
        rows = tokens.texts(_SAMPLES, paths, "END")
        if self.task != "embed":
            rows += tokens.pairs(list(zip(_SAMPLES, reversed(_SAMPLES), strict=True)), paths, "END")
        types = "token_type_ids" in names
        wanted = []
        with torch.no_grad():
            for row in rows:
                feeds = tokens.pad([row], types=types)
                wanted.append(reference(*(torch.from_numpy(feeds[name]) for name in names)).numpy()[0])
        session = open_session(self.folder / "model.onnx", "cpu", OnnxOptions()).session
        worst = 0.0
        for chosen in (list(range(len(rows))), list(range(3)), *([place] for place in range(len(rows)))):
            found = session.run(None, tokens.pad([rows[place] for place in chosen], types=types))[0]
            errors = np.abs(found - np.stack([wanted[place] for place in chosen]))
            worst = max(worst, float(errors.max())) if not np.isnan(errors).any() else float("inf")
        parity = Parity(
            max_abs_error=worst, samples=len(rows), reference=f"torch {torch.__version__}, eager attention"
        )
        return parity, int(wanted[0].shape[0])

    def _manifest(
        self,
        names: Sequence[str],
        output: str,
        max_tokens: int,
        width: int,
        parity: Parity,
        fused: dict[str, int],
    ) -> Manifest:
        recipe = self.recipe
        embeds = self.task == "embed"
        weights = sorted(recipe.transformer.glob("*.safetensors")) + [
            path / "model.safetensors" for path in recipe.dense
        ]
        facts: dict[str, Any] = {
            "task": self.task,
            "pooling": recipe.pooling if embeds else "none",
            "normalize": recipe.normalize and embeds,
            "prompts": recipe.prompts if embeds else {},
            "default_prompt": recipe.default_prompt if embeds else None,
            "dimensions": width if embeds else None,
            "dtype": "float32",
        }
        allowed = self.options.allow_dimensions
        labels = self.config.id2label if not embeds else {}
        return Manifest(
            **facts,
            backend="onnx",
            files={},
            source=self.job.origin or self.job.source,
            inputs=tuple(TensorSignature(name=name, datatype="INT64", shape=(-1, -1)) for name in names),
            outputs=(TensorSignature(name=output, datatype="FP32", shape=(-1, width)),),
            max_tokens=max_tokens,
            allow_dimensions=_trained_for_less(self.config) if allowed is None else allowed,
            labels=tuple(str(labels[place]) for place in sorted(labels)),
            multi_label=getattr(self.config, "problem_type", None) == "multi_label_classification",
            parity=parity,
            fused_nodes=fused,
            fingerprint=fingerprint(
                **facts,
                weights=[sha256_of(path) for path in weights],
                tokenizer=sha256_of(self.folder / "tokenizer.json"),
            ),
        )


_OFFSET_POSITIONS: Final = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet", "longformer"})


def _trained_for_less(config: Any) -> bool:
    return bool(getattr(config, "matryoshka_dimensions", None) or getattr(config, "is_matryoshka", False))


def _model_max_length(path: Path) -> int | None:
    class TokenizerConfig(msgspec.Struct):
        model_max_length: float | None = None

    try:
        stated = msgspec.json.decode(path.read_bytes(), type=TokenizerConfig).model_max_length
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise LoadFailed(f"{path}: {error}") from error
    return None if stated is None else int(stated)
