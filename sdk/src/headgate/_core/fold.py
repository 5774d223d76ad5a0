"""The contract of a fold: what turns the chunks of a stream into its answer. Imports the shared wire types."""

from __future__ import annotations

from typing import Protocol, TypeVar

from pydantic import BaseModel

from headgate.types.shared import Answer, Usage

ChunkT = TypeVar("ChunkT", bound=BaseModel)
FinalT_co = TypeVar("FinalT_co", bound=Answer, covariant=True)


class Fold(Protocol[ChunkT, FinalT_co]):
    """What turns the chunks of one stream into its final answer."""

    @property
    def chunk_type(self) -> type[ChunkT]:
        """The type of a chunk on the wire."""
        ...

    @property
    def asks_usage(self) -> bool:
        """Whether the dialect has to be asked for usage (`stream_options.include_usage`)."""
        ...

    usage: Usage | None
    """The last usage that a chunk carried."""

    def add(self, chunk: ChunkT) -> None:
        """Take the next chunk."""
        ...

    def text_of(self, chunk: ChunkT) -> str:
        """What the chunk adds to the first choice's text."""
        ...

    def shown(self, chunk: ChunkT) -> bool:
        """Whether the chunk carries more than bookkeeping."""
        ...

    def ends(self, chunk: ChunkT) -> bool:
        """Whether the chunk itself says that the stream is complete (some dialects have no `[DONE]`)."""
        ...

    def final(self) -> FinalT_co:
        """The answer so far."""
        ...
