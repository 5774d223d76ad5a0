"""Reranking and classification: a sequence-classification head over one text or a pair.

Scores leave as raw logits; sigmoid and softmax belong to whoever answers the caller. May import row_model,
tokens, session, options and the plugin API.
"""

from __future__ import annotations

from collections.abc import Sequence

from headgate_plugin_api import (
    ClassifyPayload,
    ClassifyResult,
    Event,
    InferenceRequest,
    InvalidRequest,
    Item,
    Manifest,
    RerankPayload,
    RerankResult,
)

from headgate_onnx.options import OnnxOptions
from headgate_onnx.row_model import Numbers, RowModel, consumed, in_order, refuse_options
from headgate_onnx.session import Opened
from headgate_onnx.tokens import Row, Tokens


class ScoringModel(RowModel):
    """A loaded cross-encoder or classifier."""

    def __init__(self, opened: Opened, manifest: Manifest, tokens: Tokens, options: OnnxOptions) -> None:
        super().__init__(
            opened,
            manifest,
            tokens,
            options,
            makes=f"{len(manifest.labels)} labels",
            template_tokens=tokens.pair_template + 2,
            labels=manifest.labels,
        )

    def prepare(self, request: InferenceRequest) -> Sequence[Item]:
        """Tokenise. Raises `InvalidRequest` naming the input."""
        refuse_options(request)
        payload = request.payload
        if isinstance(payload, RerankPayload) and self._manifest.task == "rerank":
            rows = self._rerank_rows(payload)
        elif isinstance(payload, ClassifyPayload) and self._manifest.task == "classify":
            rows = self._classify_rows(payload)
        else:
            raise InvalidRequest(f"this model does {self._manifest.task}, not {request.task}", path="model")
        return [Item(request=request, index=place, tokens=len(row), data=row) for place, row in enumerate(rows)]

    def finish(
        self, request: InferenceRequest, items: Sequence[Item], results: Sequence[Numbers]
    ) -> Sequence[Event]:
        """The logits in input order."""
        ordered = in_order(items, results)
        if isinstance(request.payload, RerankPayload):
            return RerankResult(scores=tuple(float(scores[0]) for scores in ordered)), consumed(items)
        return (
            ClassifyResult(
                labels=self._manifest.labels,
                scores=tuple(tuple(map(float, scores)) for scores in ordered),
                multi_label=self._manifest.multi_label,
            ),
            consumed(items),
        )

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
