"""Can each distribution be installed alone, and does it then carry only what it should?

`python -m benchmarks.wheels [NAME ...]` builds every wheel, installs each into an empty environment of its own,
imports it and looks at what came along. Siblings come from the wheels just built, everything else from the
package index, with constraints.txt. Needs the network, some gigabytes and minutes; tests look at the metadata.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

DISTRIBUTIONS = {
    "headgate": ("sdk", "headgate"),
    "headgate[server]": ("sdk", "headgate_gateway.cli"),
    "headgate-gateway": ("gateway", "headgate_gateway"),
    "headgate-plugin-api": ("plugins/api", "headgate_plugin_api"),
    "headgate-dialects": ("plugins/dialects", "headgate_dialects"),
    "headgate-engine": ("plugins/engine", "headgate_engine"),
    "headgate-echo": ("plugins/echo", "headgate_echo"),
    "headgate-onnx": ("plugins/onnx", "headgate_onnx.plugin"),
    "headgate-torch": ("plugins/torch", "headgate_torch.plugin"),
    "headgate-remote": ("plugins/remote", "headgate_remote.plugin"),
}
"""Folder and the module that is imported first, by distribution."""

NEVER = {
    "headgate": "litestar msgspec pluggy torch onnxruntime headgate_gateway",
    "headgate[server]": "torch transformers headgate_gateway.crash_orders",
    "headgate-gateway": "torch onnxruntime transformers numpy headgate headgate_gateway.crash_orders",
    "headgate-plugin-api": "litestar torch onnxruntime numpy",
    "headgate-dialects": "litestar torch onnxruntime numpy",
    "headgate-engine": "litestar sqlalchemy uvicorn pyreqwest torch onnxruntime",
    "headgate-echo": "litestar torch onnxruntime numpy",
    "headgate-onnx": "litestar torch transformers",
    "headgate-torch": "litestar sqlalchemy uvicorn onnxruntime",
    "headgate-remote": "litestar torch onnxruntime numpy",
}
"""What must not be importable beside each: it was not asked for, or is for tests only."""

LOOK = """
import importlib, importlib.util, sys
importlib.import_module(sys.argv[1])
print(" ".join(name for name in sys.argv[2:] if importlib.util.find_spec(name) is not None))
"""


def main() -> int:
    """Check the named distributions, or all; the exit code says whether every one stood alone."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wheels")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(DISTRIBUTIONS)}; all of them")
    names = parser.parse_args().names or list(DISTRIBUTIONS)
    if unknown := set(names) - DISTRIBUTIONS.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(DISTRIBUTIONS)}")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        wheels = Path(folder) / "wheels"
        build(wheels)
        for name in names:
            began = time.monotonic()
            problem = check(name, Path(folder) / name, wheels)
            failed += problem is not None
            print(f"{name:22} {problem or 'stands alone'}  ({time.monotonic() - began:.0f} s)", flush=True)
    return 1 if failed else 0


def build(wheels: Path) -> None:
    """Make every wheel."""
    folders = sorted({str(ROOT / folder) for folder, _ in DISTRIBUTIONS.values()})
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), *folders]
    subprocess.run(command, check=True)


def check(name: str, folder: Path, wheels: Path) -> str | None:
    """What is wrong with a distribution that is installed alone; None when nothing is."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*install, "--find-links", str(wheels), "-c", str(ROOT / "constraints.txt"), name],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return f"cannot be installed:\n{done.stderr}"
    module = DISTRIBUTIONS[name][1]
    looked = subprocess.run(
        [python, "-c", LOOK, module, *NEVER[name].split()],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    if looked.returncode:
        return f"cannot be imported:\n{looked.stderr}"
    return f"brought along {looked.stdout.strip()}" if looked.stdout.strip() else None


if __name__ == "__main__":
    raise SystemExit(main())
