"""Where things lie: every path of a data folder, and of the sockets that belong to it.

Imports nothing of ours. Sockets do not lie in the data folder itself, because Unix limits their paths to about
100 bytes and a data folder may be deep; they lie in a short folder named after it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """Paths of one deployment on this machine."""

    data_dir: Path
    run_dir: Path

    @classmethod
    def of(cls, data_dir: Path) -> Layout:
        """The layout of a data folder; nothing is created."""
        data_dir = data_dir.absolute()
        name = hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:12]  # by whatever way it is reached
        return cls(data_dir, Path(tempfile.gettempdir()) / f"headgate-{os.getuid()}" / name)

    @property
    def store(self) -> Path:
        """The SQLite file."""
        return self.data_dir / "headgate.sqlite"

    @property
    def chain_head(self) -> Path:
        """Where the last link of the SQLite store's chain is noted outside of it."""
        return self.data_dir / "chain.head"

    @property
    def lock(self) -> Path:
        """The file that the one living ledger holds a lock on."""
        return self.data_dir / "ledger.lock"

    @property
    def admin_key(self) -> Path:
        """The admin key, mode 0600."""
        return self.data_dir / "admin.key"

    @property
    def pepper(self) -> Path:
        """What key hashes and chains are keyed with; mode 0600, outside the store."""
        return self.data_dir / "pepper"

    @property
    def pid(self) -> Path:
        """The supervisor's process id, while it runs."""
        return self.data_dir / "headgate.pid"

    @property
    def ledger_socket(self) -> Path:
        """Where the ledger listens."""
        return self.run_dir / "ledger.sock"

    @property
    def settings(self) -> Path:
        """The checked settings that the children of the running supervisor were started with (JSON)."""
        return self.run_dir / "settings.json"

    @property
    def status(self) -> Path:
        """What the supervisor last knew of its children (JSON)."""
        return self.run_dir / "status.json"

    @property
    def metrics(self) -> Path:
        """Folder in which the workers' metrics are added up."""
        return self.run_dir / "metrics"

    @property
    def control_socket(self) -> Path:
        """Where the supervisor listens."""
        return self.run_dir / "control.sock"

    def engine_unloaded(self, model: int) -> Path:
        """A file that exists while a model is unloaded on purpose."""
        return self.run_dir / f"e{model}.unloaded"

    def engine_was_ready(self, model: int) -> Path:
        """A file that exists once any engine of a model was ready."""
        return self.run_dir / f"e{model}.was-ready"

    def worker_socket(self, worker: int) -> Path:
        """Where one worker listens for its siblings."""
        return self.run_dir / f"w{worker}.sock"

    @property
    def connections(self) -> Path:
        """How many connections each worker holds."""
        return self.run_dir / "connections"

    def flight(self, worker: int) -> Path:
        """The flight file of a worker."""
        return self.data_dir / "flight" / f"worker-{worker}.flight"

    def engine_socket(self, model: int, replica: int) -> Path:
        """Where the engine of a replica listens; models are numbered in the order of the config."""
        return self.run_dir / f"e{model}-{replica}.sock"

    def engine_spec(self, model: int, replica: int) -> Path:
        """What an engine was told to load (JSON)."""
        return self.run_dir / f"e{model}-{replica}.json"
