"""The operator's half of the client against a real gateway: accounts, keys, budgets, limits, prices, credits."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from headgate import errors

from tests.acceptance.test_outbox import install_notes
from tests.deployment import ECHO, Gateway, wait_for

from .conftest import HELLO, Driver

MODELS = (
    ECHO
    + """
[[models]]
id = "vectors"
task = "embed"
backend = "echo"
price = { input = "1" }
"""
)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("operator")
    install_notes(folder, "notes")
    gateway = Gateway(folder, MODELS + '[plugins]\nenable = ["notes"]\n', workers=2)
    gateway.environment = {"PYTHONPATH": str(folder), "NOTES": str(folder)}
    gateway.start()
    yield gateway
    gateway.close()


@pytest.fixture
def operator(drive: Driver, real: Gateway) -> Any:
    return drive.kind(api_key=real.admin_key, base_url=real.url, timeout=30)


async def test_accounts_and_keys(drive: Driver, operator: Any) -> None:
    name = f"shop-{drive.colour}"
    async with drive.within(operator):
        admin = operator.admin
        ends = datetime.now(UTC) + timedelta(days=1)
        made = await drive.do(
            admin.keys.create, project=name, organization=f"org-{name}", budget="1.50/day", rpm=100, tpm=10_000,
            concurrency=7, models=["echo"], scopes=["inference", "usage"], expires_at=ends, max_output=64,
            name="till",
        )  # fmt: skip
        projects = await drive.list(await drive.do(admin.projects.list))
        project = next(account for account in projects if account.name == name)
        assert (project.kind, project.id) == ("project", made.project)
        organizations = await drive.list(await drive.do(admin.organizations.list, limit=1))
        assert made.organization == next(one.id for one in organizations if one.name == f"org-{name}")
        assert project.parent == made.organization
        (key,) = await drive.list(await drive.do(admin.keys.list, project=name))
        assert (key.id, key.name, key.models, key.max_output) == (made.id, "till", ["echo"], 64)
        assert made.key.startswith(key.prefix)
        assert key.expires_at == ends.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        assert key.account.requests_per_minute == 100
        assert key.account.tokens_per_minute == 10_000
        assert key.account.concurrency == 7
        assert [(budget.kind, budget.limit) for budget in key.account.budgets] == [("day", "1.5")]
        for number in range(3):
            await drive.do(admin.keys.create, project=name, name=str(number))
        pages = await drive.list(await drive.do(admin.keys.list, project=name, limit=2))
        assert [key.name for key in pages] == ["till", "0", "1", "2"]
        holder = operator.with_options(api_key=made.key)
        with pytest.raises(errors.Forbidden):
            await drive.do(holder.embeddings.create, model="vectors", input="a")
        with pytest.raises(errors.Forbidden):
            await drive.do(holder.admin.keys.list)
        assert [model.id for model in await drive.do(holder.models.list)] == ["echo"]


async def test_budgets_limits_and_credits_bite(drive: Driver, operator: Any) -> None:
    async with drive.within(operator):
        admin = operator.admin
        made = await drive.do(admin.keys.create, project=f"tight-{drive.colour}")
        holder = operator.with_options(api_key=made.key, max_retries=0)
        ask = holder.chat.completions.create
        assert (await drive.do(admin.budgets.set, made.id, "0.0000001", window="total")).changed
        with pytest.raises(errors.QuotaExceeded) as spent:
            await drive.do(ask, model="echo", messages=HELLO)
        assert spent.value.code == "request_exceeds_budget"
        assert (await drive.do(admin.budgets.set, made.id, None, window="total")).changed
        await drive.do(ask, model="echo", messages=HELLO)
        await drive.do(admin.limits.set, made.id, "requests", 1)
        await drive.do(ask, model="echo", messages=HELLO)
        with pytest.raises(errors.RateLimited):
            await drive.do(ask, model="echo", messages=HELLO)
        await drive.do(admin.limits.set, made.id, "requests", None)
        await drive.do(admin.credits.grant, made.id, "0.0000001", note="a taste")
        with pytest.raises(errors.QuotaExceeded):
            await drive.do(ask, model="echo", messages=HELLO)
        await drive.do(admin.credits.grant, made.id, "1", note="a meal", priority=1)
        answer = await drive.do(ask, model="echo", messages=HELLO)
        listed = (await drive.do(admin.credits.list)).data
        ours = [grant for grant in listed if grant.account == made.id]
        assert [(grant.amount, grant.priority) for grant in ours] == [("1", 1), ("0.0000001", 100)]
        budgets = (await drive.do(holder.limits.retrieve)).budgets
        grants = [budget for budget in budgets if budget["kind"] == "credit"]
        assert {grant["limit"] for grant in grants} == {"0.0000001", "1"}
        assert sum(Decimal(grant["spent"]) for grant in grants) == answer.cost.amount
        with pytest.raises(errors.InvalidRequest) as wrong:
            await drive.do(admin.budgets.set, made.id, "1.0000000001", window="total")
        assert wrong.value.path == "amount"
        with pytest.raises(errors.NotFound):
            await drive.do(admin.keys.revoke, "key_none")


async def test_prices_are_set_and_quoted(drive: Driver, operator: Any) -> None:
    async with drive.within(operator):
        admin = operator.admin
        made = await drive.do(admin.keys.create, project=f"priced-{drive.colour}")
        rates = {"input": "3", "output": "5"}
        (version,) = (await drive.do(admin.prices.set, "echo", rates, scope=made.id)).versions
        assert version.rates == rates
        holder = operator.with_options(api_key=made.key)
        assert (await drive.do(holder.models.retrieve, "echo")).price == rates
        quote = await drive.do(holder.quotes.create, model="echo", messages=HELLO, max_tokens=2)
        assert quote.price == version.id
        assert quote.rates == rates
        answer = await drive.do(holder.chat.completions.create, model="echo", messages=HELLO, max_tokens=2)
        tokens_in, tokens_out = answer.usage.prompt_tokens, answer.usage.completion_tokens
        assert answer.cost.nano == (3 * tokens_in + 5 * tokens_out) * 1000 <= quote.most.nano
        assert answer.cost.price == version.id
        listed = await drive.list(await drive.do(admin.prices.list))
        assert version.id in {one.id for one in listed}
        (none,) = (await drive.do(admin.prices.set, "echo", None, scope=made.id)).versions
        assert none.rates == {}


async def test_prices_are_planned_changed_and_cancelled(drive: Driver, operator: Any) -> None:
    async with drive.within(operator):
        admin = operator.admin
        made = await drive.do(admin.keys.create, project=f"plans-{drive.colour}")
        tiered = {"input": "3", "output": "5", "minimum": "0.01", "context": [{"above": 1000, "input": "6"}]}
        begins = datetime.now(UTC) + timedelta(days=1)
        (plan,) = (
            await drive.do(admin.prices.set, "vectors", tiered, scope=made.id, effective_from=begins)
        ).versions
        assert (plan.rates, plan.effective_at) == (tiered, begins.isoformat().replace("+00:00", "Z"))
        holder = operator.with_options(api_key=made.key)
        assert (await drive.do(holder.models.retrieve, "vectors")).price == {"input": "1"}
        assert (await drive.do(holder.quotes.create, model="vectors", input="a")).rates == {"input": "1"}
        (margin,) = (await drive.do(admin.prices.set, "vectors", {"margin": "20"}, scope=made.id)).versions
        assert (margin.rates, margin.margin) == ({"input": "1.2"}, "20")
        assert (await drive.do(holder.models.retrieve, "vectors")).price == {"input": "1.2"}
        (instead,) = (await drive.do(admin.prices.cancel, plan.id)).versions
        assert instead.rates == margin.rates

        listed = await drive.list(await drive.do(admin.prices.list, model="vectors", history=True, limit=1))
        states = {one.id: one.state for one in listed if one.scope == made.id}
        assert states == {plan.id: "replaced", margin.id: "in_force", instead.id: "coming"}
        with pytest.raises(errors.InvalidRequest, match="has begun"):
            await drive.do(admin.prices.cancel, margin.id)
        with pytest.raises(errors.NotFound):
            await drive.do(admin.prices.cancel, "prc_none")
        with pytest.raises(errors.InvalidRequest) as wrong:
            await drive.do(admin.prices.set, "echo", {}, effective_from=datetime(2020, 1, 1, tzinfo=UTC))
        assert wrong.value.path == "effective_from"
        with pytest.raises(errors.InvalidRequest, match="did you mean 'vectors'") as unknown:
            await drive.do(admin.keys.create, project="p", models=["vector"])
        assert unknown.value.path == "models"
        await drive.do(admin.keys.create, project="p", models=["vector"], any_model=True)
        await drive.do(admin.prices.set, f"later-{drive.colour}", {"input": "1"}, any_model=True)


async def test_accounts_without_keys_and_the_log(drive: Driver, operator: Any) -> None:
    async with drive.within(operator):
        admin = operator.admin
        name = f"empty-{drive.colour}"
        made = await drive.do(admin.projects.create, name, organization=f"{name}-org")
        again = await drive.do(admin.projects.create, name, organization=f"{name}-org")
        assert (made.id, made.kind, made.name) == (again.id, "project", name)
        organization = await drive.do(admin.organizations.create, f"{name}-org")
        assert (organization.id, organization.kind) == (made.parent, "organization")
        await drive.do(admin.credits.grant, made.id, "3", note="hello")
        entries = await drive.list(await drive.do(admin.log.list, limit=3))
        ours = [entry for entry in entries if entry.target == made.id]
        assert [entry.action for entry in ours] == ["project.create", "credit.grant"]
        assert ours[1].detail["note"] == "hello"
        assert [entry.id for entry in entries] == list(range(1, len(entries) + 1))
        with pytest.raises(errors.InvalidRequest):
            await drive.do(admin.projects.create, "")


async def holder_of(drive: Driver, operator: Any) -> Any:
    """A client whose key runs models."""
    return operator.with_options(api_key=(await drive.do(operator.admin.keys.create, project="runs")).key)


async def test_models_are_stopped_and_started(drive: Driver, operator: Any) -> None:
    async with drive.within(operator):
        models = operator.admin.models
        holder = await holder_of(drive, operator)
        states = {model.id: (model.task, model.state) for model in (await drive.do(models.list)).data}
        assert states == {"echo": ("chat", "ready"), "vectors": ("embed", "ready")}
        try:
            stopped = await drive.do(models.unload, "vectors")
            assert (stopped.id, stopped.state) == ("vectors", "unloaded")
            with pytest.raises(errors.ModelOverloaded):
                await drive.do(holder.embeddings.create, model="vectors", input="a", max_retries=0)
        finally:
            started = await drive.do(models.load, "vectors", timeout=60)
        assert (started.id, started.state) == ("vectors", "ready")
        await drive.do(holder.embeddings.create, model="vectors", input="a")
        with pytest.raises(errors.NotFound):
            await drive.do(models.load, "org/none")


async def test_consumers_are_seen_set_back_and_forgotten(drive: Driver, operator: Any, real: Gateway) -> None:
    given = real.folder / "notes.notes"
    async with drive.within(operator):
        consumers = operator.admin.consumers
        await drive.do(consumers.reset, "notes", "now")
        holder = await holder_of(drive, operator)
        answer = await drive.do(holder.chat.completions.create, model="echo", messages=HELLO)
        wait_for(lambda: given.exists() and answer.request_id in given.read_text(), "the record's delivery")
        assert (await drive.do(consumers.reset, "notes", "beginning")).changed
        wait_for(lambda: given.read_text().count(answer.request_id) > 1, "the second delivery", 20)
        (seen,) = (await drive.do(consumers.list)).data
        assert seen.name == "notes"
        assert seen.position + seen.behind > 0
        assert seen.error == ""
        for to in (answer.request_id, 1, "now"):
            assert (await drive.do(consumers.reset, "notes", to)).id == "notes"
        with pytest.raises(errors.InvalidRequest) as wrong:
            await drive.do(consumers.reset, "notes", "yesterday")
        assert wrong.value.path == "to"
        for method in (lambda: consumers.remove("nobody"), lambda: consumers.reset("nobody", "now")):
            with pytest.raises(errors.NotFound, match="no consumer 'nobody'"):
                await drive.do(method)
        await drive.do(consumers.remove, "notes")


async def test_keys_end(drive: Driver, operator: Any) -> None:
    async with drive.within(operator):
        made = await drive.do(operator.admin.keys.create, project="ends")
        holder = operator.with_options(api_key=made.key)
        heir = await drive.do(operator.admin.keys.rotate, made.id, overlap_s=600)
        for secret in (made.key, heir.key):
            await drive.do(operator.with_options(api_key=secret).models.list)
        done = await drive.do(operator.admin.keys.revoke, made.id)
        assert (done.id, done.changed) == (made.id, True)
        with pytest.raises(errors.Unauthenticated):
            await drive.do(holder.models.list)
