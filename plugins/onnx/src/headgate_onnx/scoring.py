"""Reranking and classification: a sequence-classification head over one text or a pair.

Scores leave as raw logits; sigmoid and softmax belong to whoever answers the caller. May import tokens, session,
options and the plugin API.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from headgate_plugin_api import (
    ClassifyPayload,
    ClassifyResult,
    Event,
    InferenceRequest,
    InvalidRequest,
    Item,
    Manifest,
    ModelInfo,
    RerankPayload,
    RerankResult,
    Usage,
    UsageReport,
)
from numpy.typing import NDArray

from headgate_onnx.options import OnnxOptions
from headgate_onnx.session import Opened
from headgate_onnx.tokens import Row, Tokens, parts

Scores = NDArray[np.float32]


class ScoringModel:
    """A loaded cross-encoder or classifier."""

    def __init__(self, opened: Opened, manifest: Manifest, tokens: Tokens, options: OnnxOptions) -> None:
        self._session = opened.session
        self._manifest = manifest
        self._tokens = tokens
        self._budget = options.max_batch_tokens
        self._types = any(value.name == "token_type_ids" for value in opened.session.get_inputs())
        self._info = ModelInfo(
            device=opened.device,
            detail=f"{manifest.dtype}, {len(manifest.labels)} labels; {opened.detail}",
            max_input_tokens=tokens.limit,
            tokens_per_byte=tokens.per_byte,
            template_tokens=tokens.pair_template + 2,
            fingerprint=manifest.fingerprint,
            labels=manifest.labels,
            inputs=manifest.inputs,
            outputs=manifest.outputs,
            platform="onnxruntime",
        )

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        return self._info

    def prepare(self, request: InferenceRequest) -> Sequence[Item]:
        """Tokenise. Raises `InvalidRequest` naming the input."""
        if request.options:
            name = next(iter(request.options))
            raise InvalidRequest(f"options.{name} is not known to this model", path=f"options.{name}")
        payload = request.payload
        if isinstance(payload, RerankPayload) and self._manifest.task == "rerank":
            rows = self._rerank_rows(payload)
        elif isinstance(payload, ClassifyPayload) and self._manifest.task == "classify":
            rows = self._classify_rows(payload)
        else:
            raise InvalidRequest(f"this model does {self._manifest.task}, not {request.task}", path="model")
        return [Item(request=request, index=place, tokens=len(row), data=row) for place, row in enumerate(rows)]

    def run_batch(self, items: Sequence[Item]) -> Sequence[Scores]:
        """One row of logits for each item, in their order."""
        rows: list[Row] = [item.data for item in items]
        scores: list[Scores] = [np.empty(0, dtype=np.float32)] * len(rows)
        for part in parts([len(row) for row in rows], self._budget):
            feeds = self._tokens.pad([rows[place] for place in part], types=self._types)
            for place, logits in zip(part, self._session.run(None, feeds)[0], strict=True):
                scores[place] = logits
        return scores

    def finish(
        self, request: InferenceRequest, items: Sequence[Item], results: Sequence[Scores]
    ) -> Sequence[Event]:
        """The logits in input order."""
        ordered = [
            scores for _, scores in sorted(zip(items, results, strict=True), key=lambda pair: pair[0].index)
        ]
        report = UsageReport(usage=Usage(input=sum(item.tokens for item in items)))
        if isinstance(request.payload, RerankPayload):
            return RerankResult(scores=tuple(float(scores[0]) for scores in ordered)), report
        return (
            ClassifyResult(
                labels=self._manifest.labels,
                scores=tuple(tuple(map(float, scores)) for scores in ordered),
                multi_label=self._manifest.multi_label,
            ),
            report,
        )

    def close(self) -> None:
        """Drop the session."""
        self._session = None

    def _rerank_rows(self, payload: RerankPayload) -> list[Row]:
        if not payload.query:
            raise InvalidRequest("query is empty", path="query")
        if not payload.documents:
            raise InvalidRequest("documents is empty", path="documents")
        pairs = [(payload.query, document) for document in payload.documents]
        return self._tokens.pairs(pairs, [f"documents[{place}]" for place in range(len(pairs))], payload.truncate)

    def _classify_rows(self, payload: ClassifyPayload) -> list[Row]:
        if not payload.inputs:
            raise InvalidRequest("input is empty", path="input")
        rows: list[Row] = []
        for place, value in enumerate(payload.inputs):
            path = [f"input[{place}]"]
            if isinstance(value, str):
                rows += self._tokens.texts([value], path, payload.truncate)
            else:
                rows += self._tokens.pairs([value], path, payload.truncate)
        return rows
