"""The supervisor: starts the ledger, then engines and workers, keeps them running, and ends them in order.

May import the modules of this room and settings; neither torch nor litestar nor sqlalchemy.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping
from random import Random
from typing import Any, Final

import structlog

from headgate_gateway.config_file import ConfigError
from headgate_gateway.ledger.line import LedgerUnavailable
from headgate_gateway.models.control import Ask, Told
from headgate_gateway.settings import Settings, write_snapshot
from headgate_gateway.supervisor.child import Child, ChildFailed, WriteLine, stop_all
from headgate_gateway.supervisor.children import Children
from headgate_gateway.supervisor.control import Control
from headgate_gateway.supervisor.data_folder import DataFolder, ensure_secrets
from headgate_gateway.supervisor.engines import Engines, same_engine, unknown
from headgate_gateway.supervisor.listening import address_of, bind
from headgate_gateway.supervisor.outbox import GRACE_S as OUTBOX_GRACE_S
from headgate_gateway.supervisor.outbox import Outbox
from headgate_gateway.supervisor.programs import ENTRIES, Programs
from headgate_gateway.supervisor.status import ChildStatus, Kind, Phase, Status, write_status
from headgate_gateway.supervisor.workers import Workers

LEDGER_READY_S: Final = 900.0
"""A store that a new program migrates is copied first, and that may be many gigabytes."""

LEDGER_GRACE_S: Final = 10.0
PREDECESSOR_S: Final = 10.0
"""How long the port of a killed predecessor may stay taken by its workers."""

STATUS_EVERY_S: Final = 0.1
STATUS_AGAIN_S: Final = 1.0
"""When to try again to write what could not be written."""

FIXED: Final = (
    *("server.host", "server.port", "server.admin_host", "server.admin_port"),
    *("server.tls_cert", "server.tls_key", "server.data_dir", "server.pepper", "store.url", "log"),
)
"""What a reload cannot change, because a running process was started with it."""

_log = structlog.get_logger()


class Supervisor:
    """Runs one deployment on this machine until it is told to stop.

    Args:
        settings: Checked, paths absolute.
        reread: Reads the config again for a reload; None where there is no file. Raises `ConfigError`.
        write_line: Where the children's output goes.
        random: For jitter.
        sync_prices: Tells the running ledger what a config's models cost.
        consumers: Which plugins of a config ask for usage records.
        note_model: Has what an operator did to a model kept in the audit log.
        on_serving: Awaited once, when everything was started (models may still load).
        on_status: Called whenever something changed, at most every 0.1 s.
        entries: What Python runs for each kind; tests put in their own.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        reread: Callable[[], Settings] | None,
        write_line: WriteLine,
        random: Random,
        sync_prices: Callable[[Settings], Awaitable[object]] | None = None,
        note_model: Callable[[Settings, str, Ask, Told], Awaitable[object]] | None = None,
        consumers: Callable[[Settings], Collection[str]] = lambda _: (),
        on_serving: Callable[[], Awaitable[None]] | None = None,
        on_status: Callable[[Status], None] | None = None,
        entries: Mapping[Kind, tuple[str, ...]] = ENTRIES,
    ) -> None:
        self._settings = settings
        self._layout = settings.layout
        self._reread = reread
        self._sync_prices = sync_prices
        self._note_model = note_model
        self._on_serving = on_serving
        self._on_status = on_status
        self._phase: Phase = "starting"
        self._generation = 1
        self._reloads = 0
        self._reload_error: str | None = None
        self._address = self._admin_address = ""
        self._on_terminal = os.isatty(0)
        self._changed = asyncio.Event()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._reload_asked = asyncio.Event()
        self._programs = Programs(self._layout, entries)
        self._children = Children(self._programs, write_line, random, self._changed.set)
        self._ledger: Child | None = None
        self._workers = Workers(self._children.start_worker, settings.server.drain_s)
        self._engines = Engines(self._layout, self._children, self._changed.set, self._hurry)
        self._outbox = Outbox(self._children.start_outbox, consumers)

    # -- the whole life

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            AlreadyServed: Another supervisor has the data folder.
            DataFolderError: The data folder cannot be used.
            AddressInUse: The address is taken.
            ChildFailed: The ledger or a worker ended at its first start.
        """
        folder = DataFolder.take(self._layout)
        try:
            with self._signals():
                await self._serve(folder)
        finally:
            folder.release()

    async def _serve(self, folder: DataFolder) -> None:
        with contextlib.ExitStack() as stack:
            listeners = await self._listen(folder, stack)
            self._programs.listen_fds = tuple(listener.fileno() for listener in listeners)
            await folder.prepare()
            ensure_secrets(self._settings)
            publishing = asyncio.create_task(self._publish())
            control = Control(self._layout, self._control)
            await control.start()
            try:
                await self._until_stop(self._start())
                await self._run_until_stopped()
            finally:
                await control.close()
                await self._shut_down(listeners)
                publishing.cancel()
                await asyncio.gather(publishing, return_exceptions=True)

    async def _listen(self, folder: DataFolder, stack: contextlib.ExitStack) -> list[socket.socket]:
        """Bind what clients connect to, and what operators do where that is an address of its own."""
        server = self._settings.server
        patience_s = PREDECESSOR_S if folder.was_killed else 0.0
        tls = server.tls_cert is not None
        listener = stack.enter_context(await bind(server.host, server.port, patience_s=patience_s))
        self._address = address_of(listener, server.host, tls=tls)
        if server.admin_port is None:
            return [listener]
        admin = await bind(server.admin_host, server.admin_port, setting="server.admin_", patience_s=patience_s)
        self._admin_address = address_of(stack.enter_context(admin), server.admin_host, tls=tls)
        return [listener, admin]

    async def _start(self) -> None:
        self._engines.number(self._settings.models)
        self._write_snapshot(self._settings)
        self._ledger = self._children.start_ledger()
        await self._ledger.ready(LEDGER_READY_S)
        if self._sync_prices is not None:
            await self._sync_prices(self._settings)
        self._engines.start(self._settings.models)
        await self._outbox.apply(self._settings)
        await self._workers.start(self._settings.server.workers)
        self._phase = "serving"
        self._changed.set()
        workers, models = self._settings.server.workers, len(self._settings.models)
        _log.info("serving", address=self._address, workers=workers, models=models)
        if self._on_serving is not None:
            await self._on_serving()
            self._changed.set()  # whoever watches may have waited for this

    async def _run_until_stopped(self) -> None:
        while not self._stop.is_set():
            waits = [asyncio.create_task(event.wait()) for event in (self._stop, self._reload_asked)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            if self._reload_asked.is_set() and not self._stop.is_set():
                self._reload_asked.clear()
                await self._until_stop(self._reload())

    async def _until_stop(self, work: Awaitable[None]) -> None:
        """Do something long, but let go of it when it is time to stop."""
        task: asyncio.Future[None] = asyncio.ensure_future(work)
        stop = asyncio.create_task(self._stop.wait())
        both: set[asyncio.Future[Any]] = {task, stop}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _shut_down(self, listeners: list[socket.socket]) -> None:
        """Workers drain, engines end, then the outbox, the ledger last. Bounded; a second signal hurries."""
        self._phase = "stopping"
        _log.info("stopping", drain_s=self._settings.server.drain_s)
        self._changed.set()
        for listener in listeners:  # with the workers' copies closing, new connections are refused from here on
            listener.close()
        await stop_all(self._workers.running.values(), self._workers.grace_s, self._hurry)
        await self._engines.close()
        if self._outbox.child is not None:
            await stop_all([self._outbox.child], OUTBOX_GRACE_S, self._hurry)
        if self._ledger is not None:
            await self._ledger.stop(LEDGER_GRACE_S)
        self._write_status()

    # -- signals

    @contextlib.contextmanager
    def _signals(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        handlers = {signal.SIGTERM: self.stop, signal.SIGINT: self.stop, signal.SIGHUP: self._hung_up}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def _hung_up(self) -> None:
        """SIGHUP: somebody wants a reload, or the terminal that this was started on was closed."""
        if self._on_terminal and not os.isatty(0):
            self.stop()
        else:
            self.reload()

    def stop(self) -> None:
        """Begin to stop; the second time, hurry."""
        (self._hurry if self._stop.is_set() else self._stop).set()

    def reload(self) -> None:
        """Apply the config again, as it is now."""
        self._reload_asked.set()

    # -- reload

    async def _reload(self) -> None:
        try:
            if self._reread is None:
                raise ReloadRefused("there is no config file to reload")
            settings = await asyncio.to_thread(self._reread)
            if changed := [name for name in FIXED if _value(settings, name) != _value(self._settings, name)]:
                raise ReloadRefused(f"{', '.join(changed)} cannot change while serving; restart instead")
            async with self._engines.changing:
                await self._apply(settings)
        except (ConfigError, ReloadRefused, ChildFailed, LedgerUnavailable, OSError, ValueError) as error:
            self._reload_error = str(error)
            _log.error("the reload changed nothing", reason=str(error))
        else:
            self._reload_error = None
            self._generation += 1
            _log.info("reloaded", generation=self._generation, models=len(settings.models))
        self._reloads += 1
        self._changed.set()

    async def _apply(self, settings: Settings) -> None:
        """New engines first, then the workers one by one, then the engines that nobody asks any more.

        A model whose settings changed gets a new slot, so that until the last worker has moved both are there.
        """
        old, engines, workers = self._settings, self._engines, self._workers
        before, slots_before, workers_before = list(engines.running), dict(engines.slots), workers.running
        kept = {
            model.id
            for model in settings.models
            if model.backend is not None and any(same_engine(model, engine.model) for engine in before)
        }
        leaving = [engine for engine in before if engine.model.id not in kept]
        engines.slots = {name: slot for name, slot in engines.slots.items() if name in kept}
        engines.number(settings.models)
        try:
            await engines.loaded(engines.start(model for model in settings.models if model.id not in kept))
            if self._sync_prices is not None:
                await self._sync_prices(settings)
            self._write_snapshot(settings)
            await workers.replace(settings.server.workers, workers.running)
        except BaseException as error:
            engines.slots = slots_before
            with contextlib.suppress(OSError):  # a full disk has not taken the new one either
                self._write_snapshot(old)
            if isinstance(error, Exception):
                await workers.put_back(workers_before)
            await engines.end(engine for engine in engines.running if engine not in before)
            if self._sync_prices is not None:
                await self._sync_prices(old)
            raise
        self._settings = settings
        workers.drain_s = settings.server.drain_s
        await engines.end(leaving)
        await self._outbox.apply(settings)

    def _write_snapshot(self, settings: Settings) -> None:
        """What children read at their start."""
        numbered = settings.model_copy(update={"engine_slots": dict(self._engines.slots)})
        write_snapshot(numbered, self._layout.settings)

    # -- loading and unloading by name, until the next reload

    async def _control(self, ask: Ask) -> Told:
        named = (model for model in self._settings.models if ask.model in (model.id, *model.aliases))
        model = next(named, None)
        if model is None:
            return unknown(ask.model)
        if model.backend is None:
            return Told(code="remote", message=f"{model.id} runs elsewhere: there is nothing to {ask.action}")
        try:
            told = await (self._engines.load(model) if ask.action == "load" else self._engines.unload(model))
        except OSError as error:  # of a full disk
            told = Told(code="failed", message=f"{model.id}: {error}")
        if self._note_model is not None:
            await self._note_model(self._settings, model.id, ask, told)
        self._write_status()  # whoever is told may look there next
        return told

    # -- status

    def status(self) -> Status:
        """What is known of the children now."""
        plain = [
            *(child for child in (self._ledger, self._outbox.child) if child is not None),
            *self._workers.running.values(),
        ]
        children = [
            ChildStatus(
                name=child.program.name,
                kind=child.program.kind,
                pid=child.pid,
                state=child.state,
                restarts=child.restarts,
            )
            for child in plain
        ]
        children += [engine.status() for engine in self._engines.running]
        return Status(
            pid=os.getpid(),
            phase=self._phase,
            address=self._address,
            admin_address=self._admin_address,
            generation=self._generation,
            reloads=self._reloads,
            reload_error=self._reload_error,
            children=tuple(children),
        )

    async def _publish(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            self._write_status()
            await asyncio.sleep(STATUS_EVERY_S)

    def _write_status(self) -> None:
        status = self.status()
        try:
            write_status(status, self._layout.status)
        except OSError as error:  # a full disk must not end the supervisor
            _log.warning("the status file could not be written", reason=str(error))
            asyncio.get_running_loop().call_later(STATUS_AGAIN_S, self._changed.set)
        if self._on_status is not None:
            self._on_status(status)


class ReloadRefused(Exception):
    """A valid config that cannot be applied to running processes."""


def _value(settings: Settings, name: str) -> object:
    value: object = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value
