"""The audit of personal fields: each row against its request, and their number against the audit log.

May import book, chain, history, personal and replay.
"""

from __future__ import annotations

from typing import Final

import msgspec

from headgate_gateway.ledger.book import Detail
from headgate_gateway.ledger.chain import row_digest
from headgate_gateway.ledger.history import History
from headgate_gateway.ledger.personal import Place, rows_erased
from headgate_gateway.ledger.replay import Differs

_DETAIL: Final = msgspec.msgpack.Decoder(Detail)


class PersonalAudit:
    """What the history says of the table `personal`, and whether the table agrees.

    Rows are read in slices, each with its record beside it. What is of a request that was open then is remembered
    until the history comes to its end, or until the last read, where it is among the open holds.

    Attributes:
        ended: Of how many requests that have ended something was set aside, less what was erased (of any). None
            after a seal that does not say, until something says it.
        left_us: Records of requests that were admitted until then may have left the store for the archive. Their
            rows stay, because files of the archive could not be erased from; they are only counted.
        rows: How many rows were looked at.
    """

    def __init__(self) -> None:
        self._place: Place = (-1, "")
        self._unended: dict[str, bytes] = {}
        self._open = 0
        self.ended: int | None = 0
        self.left_us = -1
        self.rows = 0

    def resume(self, ended: int | None, since_us: int) -> None:
        """Begin at a seal: what was admitted earlier has been looked at."""
        self.ended = ended
        self._place = (since_us, "")

    def agree(self, number: int, ended: int | None) -> None:
        """Hold the count against a seal's; where only the seal knows one, take it."""
        if self.ended is None:
            self.ended = ended
        elif ended not in (None, self.ended):
            raise Differs(f"seal {number} says personal fields {ended}, the history gives {self.ended}")

    def end(self, request_id: str, digest: bytes | None) -> None:
        """A request has ended, with the digest of what was set aside of it."""
        if self.ended is not None:
            self.ended += digest is not None
        self._meet(request_id, digest)

    def open(self, request_id: str, digest: bytes | None) -> None:
        """A request is open at the last read."""
        self._open += digest is not None
        self._meet(request_id, digest)

    def _meet(self, request_id: str, digest: bytes | None) -> None:
        if self._unended.pop(request_id, digest) != digest:
            raise Differs(_not_its_own(request_id))

    def entry(self, action: str, detail: str) -> None:
        """An entry of the audit log."""
        if self.ended is not None:
            self.ended -= rows_erased(action, detail)

    def advance(self, history: History) -> None:
        """Look at the rows that there are."""
        while found := history.set_aside(self._place):
            for *row, detail in found:
                at_us, request_id, *_ = row
                digest = row_digest(tuple(row))
                if detail is not None:
                    if _DETAIL.decode(detail).personal != digest:
                        raise Differs(_not_its_own(request_id))
                elif at_us > self.left_us:
                    self._unended[request_id] = digest
            self._place = found[-1][:2]
            self.rows += len(found)

    def compare(self, history: History) -> None:
        """After the last read: nothing is left over, and nothing is missing."""
        if self._unended:
            raise Differs(f"there are personal fields of {min(self._unended)}, which is not in the history")
        present = history.how_many_set_aside()
        if self.ended is None:  # counted from here on
            self.ended = present - self._open
        if (due := self.ended + self._open) != present:
            raise Differs(
                f"{present} requests have personal fields, the history gives {due}: "
                f"{abs(due - present)} {'went' if present < due else 'came'} without an entry in the audit log"
            )


def _not_its_own(request_id: str) -> str:
    return f"the personal fields of {request_id} are not those that it came with"
