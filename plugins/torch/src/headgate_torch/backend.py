"""The backend `torch`: what the gateway sees of it, and the door to what the engine loads.

Light; the modules that import torch are imported in `load`.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from headgate_plugin_api import (
    ChatPayload,
    CompletionPayload,
    InferenceRequest,
    LoadedModel,
    LoadFailed,
    ModelInfo,
    ModelSpec,
    Report,
    Task,
    Usage,
)

from headgate_torch.options import TorchOptions


class TorchBackend:
    """Causal language models of transformers, decoded in batches."""

    name = "torch"
    kind: Literal["engine"] = "engine"
    tasks: frozenset[Task] = frozenset({"chat", "completion"})
    options_type: type[msgspec.Struct] = TorchOptions

    def load(self, spec: ModelSpec, report: Report) -> LoadedModel:
        """Load a model folder or `hf://` source, and check that batching does not change its answers.

        Raises:
            LoadFailed: With the file or option at fault and the cause.
        """
        if spec.task not in self.tasks:
            raise LoadFailed(f"model {spec.id}: backend torch does {_names(self.tasks)}, not {spec.task}")
        try:
            options = msgspec.convert(spec.options, TorchOptions)
        except msgspec.ValidationError as error:
            raise LoadFailed(f"model {spec.id}: options: {error}") from error
        from headgate_torch.loading import load

        return load(spec, options, report)

    def bound(self, request: InferenceRequest, spec: ModelSpec, info: ModelInfo | None) -> Usage | None:
        """An upper bound of what a request can consume: its bytes go in, `max_output` comes out per choice.

        A token of the input stands for at least one byte where the vocabulary is byte-level; what specials and
        template add was measured when the model was loaded.
        """
        del spec  # what the operator limits is in `info` already
        if info is None or request.max_output is None:
            return None
        payload = request.payload
        if isinstance(payload, ChatPayload):
            texts = [message.text for message in payload.messages]
            choices = payload.n
        elif isinstance(payload, CompletionPayload):
            texts = list(payload.prompts)
            choices = payload.n * len(payload.prompts)
        else:
            return None
        content = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) * info.tokens_per_byte
        overhead = info.template_tokens * (len(texts) + 1)
        most = (
            request.max_output
            if info.max_output_tokens is None
            else min(request.max_output, info.max_output_tokens)
        )
        return Usage(input=content + overhead, output=most * choices)


def _names(tasks: frozenset[Task]) -> str:
    return " and ".join(sorted(tasks))
