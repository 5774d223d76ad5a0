"""The `options` table of a torch model in the config. Imports msgspec only."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Attention = Literal["auto", "sdpa", "eager"]


class TorchOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator may say about a torch model.

    Attributes:
        dtype: Type of weights and activations; `auto` is float32 on a CPU and bfloat16 on CUDA.
        threads: CPU threads for one operator; None picks one for models under 20 million parameters, where
            threads cost more than they bring, and leaves torch's own choice for larger ones.
        max_requests: Requests held at once, and rows of the batch that decodes together. A request with several
            choices has them take rows one after another when too few are free.
        attention: Which of transformers' attention functions runs; `auto` leaves the model's own choice.
    """

    dtype: Dtype = "auto"
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    max_requests: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16
    attention: Attention = "auto"
