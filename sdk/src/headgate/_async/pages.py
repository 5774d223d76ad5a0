"""A page that goes on by itself: iterating it asks for the next one when this one is used up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from pydantic import BaseModel

ItemT = TypeVar("ItemT", bound=BaseModel)


class AsyncPage(Generic[ItemT]):
    """One page of a list.

    Attributes:
        data: The items of this page alone.
        after: Cursor of the next page; None on the last.
    """

    def __init__(
        self,
        data: Sequence[ItemT],
        after: str | None,
        fetch: Callable[[str], Awaitable[AsyncPage[ItemT]]],
    ) -> None:
        self.data = data
        self.after = after
        self._fetch = fetch

    @property
    def has_next_page(self) -> bool:
        """Whether another page follows."""
        return self.after is not None

    async def next_page(self) -> AsyncPage[ItemT]:
        """The page after this one.

        Raises:
            ValueError: This is the last one.
        """
        if self.after is None:
            raise ValueError("this is the last page")
        return await self._fetch(self.after)

    async def __aiter__(self) -> AsyncIterator[ItemT]:
        """Every item, from this page to the last."""
        page = self
        while True:
            for item in page.data:
                yield item
            if page.after is None:
                return
            page = await page.next_page()
