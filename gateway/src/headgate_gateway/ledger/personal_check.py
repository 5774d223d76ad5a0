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


class PersonalCheck:
    """What the history says of the table `personal`, and whether the table agrees.

    Rows are read in slices, each with its record beside it. What is of a request that was open then is remembered
    until the history comes to its end, or until the last read, where it is among the open holds.

    Attributes:
        ended: Of how many requests that have ended something was set aside, less what was erased (of any).
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self._place: Place = (-1, "")
        self._unended: dict[str, bytes] = {}
        self._open = 0
        self.ended = 0
        self.rows = 0

    def resume(self, ended: int, since_us: int) -> None:
        """Begin at a seal: what was admitted earlier has been looked at."""
        self.ended = ended
        self._place = (since_us, "")

    def end(self, request_id: str, digest: bytes | None) -> None:
        """A request has ended, with the digest of what was set aside of it."""
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
        self.ended -= rows_erased(action, detail)

    def advance(self) -> None:
        """Look at the rows that there are."""
        while found := self._history.set_aside(self._place):
            for *row, detail in found:
                digest, request_id = row_digest(tuple(row)), row[1]
                if detail is None:
                    self._unended[request_id] = digest
                elif _DETAIL.decode(detail).personal != digest:
                    raise Differs(_not_its_own(request_id))
            self._place = found[-1][:2]
            self.rows += len(found)

    def compare(self) -> None:
        """After the last read: nothing is left over, and nothing is missing."""
        if self._unended:
            raise Differs(f"there are personal fields of {min(self._unended)}, which is not in the history")
        due, present = self.ended + self._open, self._history.how_many_set_aside()
        if present != due:
            raise Differs(
                f"{present} requests have personal fields, the history gives {due}: "
                f"{abs(due - present)} {'went' if present < due else 'came'} without an entry in the audit log"
            )


def _not_its_own(request_id: str) -> str:
    return f"the personal fields of {request_id} are not those that it came with"
