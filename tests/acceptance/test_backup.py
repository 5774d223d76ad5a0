"""A copy of the store that is made while it is written, and put back after the worst."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tests.deployment import ECHO, Gateway, run, wait_for


def test_a_backup_of_a_serving_gateway_can_be_served_again(
    gateway: Callable[..., Gateway], tmp_path: Path
) -> None:
    own = gateway(ECHO)
    key, file = own.key(budget="1/total"), tmp_path / "copy.sqlite"
    over, answered = threading.Event(), []

    def ask_on() -> None:
        while not over.is_set():
            answered.append(own.ask(key)[0])

    asking = threading.Thread(target=ask_on)
    asking.start()
    try:
        wait_for(lambda: len(answered) > 20, "some requests")
        made = own.command("backup", str(file))
        until = len(answered) + 20
        wait_for(lambda: len(answered) > until, "some more")
    finally:
        over.set()
        asking.join()
    assert set(answered) == {200}
    kept = made["checked"]["usage_records"]
    assert 20 < kept < len(answered)
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.glob("copy*")] == ["copy.sqlite"]

    own.kill_everything()  # the log of the store that is replaced is full, its flight files lie there
    restored = own.command("restore", str(file))
    assert Path(restored["replaced"], "headgate.sqlite").exists()
    own.start()
    assert own.ask(key)[0] == 200
    # What the copy met in flight has no flight file any more, and ends unpaid.
    ended = [record["outcome"] for record in own.command("usage", "--records", "1000")["records"]]
    assert (ended.count("ok"), set(ended) <= {"ok", "gateway_crash"}) == (kept + 1, True)
    assert own.audit()["ok"]
    assert own.stop() == 0


def test_an_older_store_is_not_served_without_a_word(gateway: Callable[..., Gateway]) -> None:
    own = gateway(ECHO)
    key = own.key()
    own.ask(key)
    own.stop()
    older = own.layout.store.read_bytes()
    own.start()
    own.ask(key)
    own.stop()
    own.layout.store.write_bytes(older)  # as who copies a backup back by hand
    own.begin("--config", str(own.config))
    assert own.process.wait(60) == 1
    assert "has lost what was committed" in own.err
    (own.layout.data_dir / "chain.head").unlink()
    assert own.start().ask(key)[0] == 200


def test_what_cannot_be_restored_is_said_and_changes_nothing(
    gateway: Callable[..., Gateway], tmp_path: Path
) -> None:
    own = gateway(ECHO)
    own.ask(own.key())
    file = tmp_path / "copy.sqlite"
    own.command("backup", str(file))

    def refused(*words: str, code: int = 1) -> str:
        return run(own.folder, *words, "--config", str(own.config), code=code)

    assert "exists already" in refused("backup", str(file), code=2)
    assert f"process {own.process.pid} serves" in refused("restore", str(file))
    own.stop()
    before = own.layout.store.read_bytes()
    with closing(sqlite3.connect(file)) as db:
        db.execute("DROP TRIGGER usage_records_no_update")
        db.execute("UPDATE usage_records SET cost = 0")
        db.commit()
    assert "the trigger that forbids UPDATE on usage_records is missing" in refused("restore", str(file))
    file.write_bytes(file.read_bytes()[: 3 * 4096])
    assert "nothing was restored" in refused("restore", str(file))
    own.layout.pepper.write_text("another")
    assert "no backup was made: the first difference" in refused("backup", str(tmp_path / "other"))
    assert own.layout.store.read_bytes() == before
    assert not list(tmp_path.glob("**/*.part*")) + list(tmp_path.glob("**/replaced-*"))


def test_a_database_is_backed_up_by_its_own_means(tmp_path: Path) -> None:
    (tmp_path / "headgate.toml").write_text('[store]\nurl = "postgresql://gate@nowhere/x"\n' + ECHO)
    assert "PostgreSQL" in run(tmp_path, "backup", "copy", code=2)
