"""A gateway on PostgreSQL: node and database killed under load with `kill -9`; every answer is charged once."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
from headgate_gateway.ledger.postgres.audit import audit
from headgate_gateway.settings import Settings, pepper

from tests.acceptance.test_kill import PATIENCE_S, SLOW_ECHO, WORDS, Load


async def test_a_node_and_its_database_are_killed_under_load(
    gateway: Any, database: str, postgres_server: Any
) -> None:
    deployment = gateway(f'[store]\nurl = "{database}"\n{SLOW_ECHO}', workers=2)
    load = Load(deployment.url, deployment.key(budget="100/total"))
    async with load.running():
        await load.progress(50)
        await asyncio.to_thread(deployment.kill_everything)
        await asyncio.to_thread(deployment.start)
        await load.progress(50)
        before = load.broken
        await asyncio.to_thread(postgres_server.kill)
        async with asyncio.timeout(PATIENCE_S):
            while load.broken == before:
                await asyncio.sleep(0.01)
        await asyncio.to_thread(postgres_server.start_again)
        await load.progress(50)
    assert deployment.stop() == 0
    folder = deployment.folder / "data"
    settings = Settings.model_validate({"server": {"data_dir": folder}})
    report = audit(database, folder, pepper=pepper(settings))
    assert report.ok, report.first_difference
    tokens = len(WORDS.split())
    with psycopg.connect(database) as db:
        records = {
            row[0]: row[1:]
            for row in db.execute("SELECT request_id, outcome, input, output, cost FROM usage_records").fetchall()
        }
        assert db.execute("SELECT count(*) FROM holds").fetchone() == (0,)
    assert len(set(load.received)) == len(load.received)
    for request_id in load.received:
        assert records[request_id] == ("ok", tokens, tokens, 2 * tokens * 1000)
