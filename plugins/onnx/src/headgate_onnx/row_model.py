"""What embedders and scorers share: rows of tokens go through one graph, and one array comes back for each.

May import tokens, session, options and the plugin API.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from headgate_plugin_api import InferenceRequest, InvalidRequest, Item, Manifest, ModelInfo, Usage, UsageReport
from numpy.typing import NDArray

from headgate_onnx.options import OnnxOptions
from headgate_onnx.session import Opened
from headgate_onnx.tokens import Row, Tokens, parts

Numbers = NDArray[np.float32]


class RowModel:
    """A loaded model whose inputs are rows of tokens.

    Args:
        opened: Its session.
        manifest: What it is.
        tokens: Its tokenizer.
        options: How much goes into a pass.
        makes: What comes of a row, for people.
        template_tokens: Tokens that a request may have beside its own text.
        more: Further facts about the model.
    """

    def __init__(
        self,
        opened: Opened,
        manifest: Manifest,
        tokens: Tokens,
        options: OnnxOptions,
        *,
        makes: str,
        template_tokens: int,
        **more: Any,
    ) -> None:
        self._session: Any = opened.session
        self._manifest = manifest
        self._tokens = tokens
        self._budget = options.max_batch_tokens
        self._types = any(value.name == "token_type_ids" for value in opened.session.get_inputs())
        self._info = ModelInfo(
            device=opened.device,
            detail=f"{manifest.dtype}, {makes}; {opened.detail}",
            max_input_tokens=tokens.limit,
            tokens_per_byte=tokens.per_byte,
            template_tokens=template_tokens,
            fingerprint=manifest.fingerprint,
            inputs=manifest.inputs,
            outputs=manifest.outputs,
            platform="onnxruntime",
            **more,
        )

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        return self._info

    def run_batch(self, items: Sequence[Item]) -> Sequence[Numbers]:
        """What the graph makes of each row, in their order."""
        rows: list[Row] = [item.data for item in items]
        made: list[Numbers] = [np.empty(0, dtype=np.float32)] * len(rows)
        for part in parts([len(row) for row in rows], self._budget):
            feeds = self._tokens.pad([rows[place] for place in part], types=self._types)
            for place, numbers in zip(part, self._session.run(None, feeds)[0], strict=True):
                made[place] = numbers
        return made

    def close(self) -> None:
        """Drop the session."""
        self._session = None


def refuse_options(request: InferenceRequest) -> None:
    """These models know none. Raises `InvalidRequest` naming the first."""
    if request.options:
        name = next(iter(request.options))
        raise InvalidRequest(f"options.{name} is not known to this model", path=f"options.{name}")


def in_order(items: Sequence[Item], made: Sequence[Numbers]) -> list[Numbers]:
    """What was made, in the order of the request's inputs."""
    return [numbers for _, numbers in sorted(zip(items, made, strict=True), key=lambda pair: pair[0].index)]


def consumed(items: Sequence[Item]) -> UsageReport:
    """The tokens that ran."""
    return UsageReport(usage=Usage(input=sum(item.tokens for item in items)))
