"""The client's journal against the ledger's records. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headgate._core.money import Cost, to_nano
from headgate.types.usage import Difference, Reconciliation, UsageReport, UsageRow


def next_page(report: UsageReport) -> str | None:
    """The cursor of the page after this one; None at the end."""
    return report.after if report.has_more else None


def compare(
    journal: Mapping[str, tuple[str | None, int | None]], rows: Sequence[UsageRow], *, forgotten: int
) -> Reconciliation:
    """Every request that is not the same on both sides.

    A record that cost nothing and that the client never saw an answer to is no difference. A key sees the records
    of its whole project: of those that the client never made, only the ones of its own key count.
    """
    own = {row.key for row in rows if row.request_id in journal}
    rows = [row for row in rows if not own or row.key in own]
    there = {row.request_id: (row.model, to_nano(row.cost) or 0) for row in rows if row.request_id is not None}
    matched = 0
    differing: list[Difference] = []
    missing_there: list[Difference] = []
    for request_id, (model, nano) in journal.items():
        record = there.get(request_id)
        here = None if nano is None else Cost(nano)
        if record is None:
            if nano:
                missing_there.append(Difference(request_id, model, here, None))
        elif nano == record[1]:
            matched += 1
        else:
            differing.append(Difference(request_id, model, here, Cost(record[1])))
    missing_here = [
        Difference(request_id, model, None, Cost(nano))
        for request_id, (model, nano) in there.items()
        if request_id not in journal and nano
    ]
    return Reconciliation(
        matched,
        tuple(differing),
        tuple(missing_here),
        tuple(missing_there),
        Cost(sum(nano or 0 for _, nano in journal.values())),
        Cost(sum(nano for _, nano in there.values())),
        forgotten,
    )
