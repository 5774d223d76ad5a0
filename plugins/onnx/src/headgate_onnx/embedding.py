"""Sentence embedding: rows of tokens in, one vector each out.

Pooling and normalisation stand inside the graph: a pass then hands back one vector a row instead of one a
token, which is also why plain `run` is used on CUDA (there is nothing left worth binding). May import row_model,
tokens, session, options and the plugin API.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from headgate_plugin_api import (
    EmbedPayload,
    EmbedResult,
    Event,
    InferenceRequest,
    InvalidRequest,
    Item,
    Manifest,
)

from headgate_onnx.options import OnnxOptions
from headgate_onnx.row_model import Numbers, RowModel, consumed, in_order, refuse_options
from headgate_onnx.session import Opened
from headgate_onnx.tokens import Row, Tokens


class EmbeddingModel(RowModel):
    """A loaded embedder."""

    def __init__(self, opened: Opened, manifest: Manifest, tokens: Tokens, options: OnnxOptions) -> None:
        longest_prompt = max((tokens.count(prompt) for prompt in manifest.prompts.values()), default=0)
        super().__init__(
            opened,
            manifest,
            tokens,
            options,
            makes=f"{manifest.dimensions} dimensions",
            # One more each for what a tokenizer may put before a text and where prompt and text meet.
            template_tokens=tokens.template + longest_prompt + 2,
            dimensions=manifest.dimensions,
        )

    def prepare(self, request: InferenceRequest) -> Sequence[Item]:
        """Tokenise the inputs. Raises `InvalidRequest` naming the input."""
        payload = _payload(request)
        self._check_dimensions(payload.dimensions)
        refuse_options(request)
        if not payload.inputs:
            raise InvalidRequest("input is empty", path="input")
        prefix = self._prompt(payload)
        rows: dict[int, Row] = {}
        texts: list[str] = []
        places: list[int] = []
        for place, value in enumerate(payload.inputs):
            if isinstance(value, str):
                texts.append(value)
                places.append(place)
            else:
                rows[place] = self._tokens.given(value, f"input[{place}]", payload.truncate)
        encoded = self._tokens.texts(texts, [f"input[{place}]" for place in places], payload.truncate, prefix)
        rows.update(zip(places, encoded, strict=True))
        return [
            Item(request=request, index=place, tokens=len(rows[place]), data=rows[place])
            for place in range(len(payload.inputs))
        ]

    def finish(
        self, request: InferenceRequest, items: Sequence[Item], results: Sequence[Numbers]
    ) -> Sequence[Event]:
        """The vectors in input order, cut if the caller asked for fewer dimensions."""
        wanted = _payload(request).dimensions
        fingerprint = self._manifest.fingerprint
        if wanted is not None and wanted != self._manifest.dimensions:
            results = [_shortened(vector, wanted) for vector in results]
            fingerprint = f"{fingerprint}:{wanted}"
        vectors = tuple(vector.astype("<f4", copy=False).tobytes() for vector in in_order(items, results))
        return EmbedResult(vectors=vectors, fingerprint=fingerprint), consumed(items)

    def _check_dimensions(self, wanted: int | None) -> None:
        full = self._manifest.dimensions
        if wanted is None or full is None or wanted == full:
            return
        if not self._manifest.allow_dimensions:
            raise InvalidRequest(
                f"dimensions is {wanted}, but this model was not trained for shorter vectors; leave it out "
                f"or use {full}",
                path="dimensions",
            )
        if not 1 <= wanted <= full:
            raise InvalidRequest(f"dimensions is {wanted}, expected 1 to {full}", path="dimensions")

    def _prompt(self, payload: EmbedPayload) -> str:
        """The prefix that the caller chose, or the model's default one."""
        prompts = self._manifest.prompts
        known = ", ".join(sorted(prompts)) or "none"
        if payload.prompt_name is not None:
            if payload.prompt_name not in prompts:
                raise InvalidRequest(
                    f"prompt_name {payload.prompt_name!r} is unknown; this model has: {known}", path="prompt_name"
                )
            return prompts[payload.prompt_name]
        if payload.input_type is not None:
            # A model without prompts treats queries and passages alike, so any input_type is right for it.
            for name in (payload.input_type, *_SYNONYMS.get(payload.input_type, ())) if prompts else ():
                if name in prompts:
                    return prompts[name]
            if prompts:
                raise InvalidRequest(
                    f"input_type {payload.input_type!r} has no prompt; this model has: {known}", path="input_type"
                )
        return prompts.get(self._manifest.default_prompt or "", "")


_SYNONYMS = {
    "query": ("search_query",),
    "search_query": ("query",),
    "passage": ("document", "search_document"),
    "document": ("passage", "search_document"),
    "search_document": ("document", "passage"),
}


def _payload(request: InferenceRequest) -> EmbedPayload:
    if not isinstance(request.payload, EmbedPayload):
        raise InvalidRequest(f"this model does embed, not {request.task}", path="model")
    return request.payload


def _shortened(vector: Numbers, dimensions: int) -> Numbers:
    """Cut and scaled to length 1 again."""
    cut = vector[:dimensions]
    length = float(np.linalg.norm(cut))
    return cut / np.float32(length) if length > 0 else cut
