"""Opening an ONNX Runtime session on the device that was asked for, or saying exactly why not.

ONNX Runtime falls back to the CPU with a warning when CUDA cannot be loaded. Here an explicit `cuda:N` never
does: it fails with the cause; only `auto` falls back, and the model's detail line says so. May import options
and the plugin API; numpy and onnxruntime only.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import math
import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import msgspec
import onnxruntime as ort
from headgate_plugin_api import LoadFailed

from headgate_onnx.options import OnnxOptions

_CUDA: Final = "CUDAExecutionProvider"
_CPU: Final = "CPUExecutionProvider"
_DEVICE: Final = re.compile(r"cpu|auto|cuda(?::(\d{1,3}))?")


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """A session and where it runs.

    Attributes:
        session: The `onnxruntime.InferenceSession`.
        device: `cpu` or `cuda:N`.
        detail: One line for people: runtime, provider, threads and why CUDA was passed over, if it was.
    """

    session: Any
    device: str
    detail: str


def usable_cores() -> int:
    """Cores that this process may use: affinity and the cgroup's quota, which onnxruntime does not read."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))  # "max" is no int and leaves cores as they are
    return max(cores, 1)


def check_wheels() -> None:
    """Refuse an environment in which two onnxruntime wheels have overwritten each other.

    Raises:
        LoadFailed: Both are installed; says which to remove.
    """
    found = set()
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.distribution(name)
            found.add(name)
    if len(found) == 2:
        raise LoadFailed(
            "both onnxruntime and onnxruntime-gpu are installed and overwrite each other's files: run "
            "`pip uninstall onnxruntime onnxruntime-gpu`, then `pip install onnxruntime-gpu` (it runs on the "
            "CPU too)"
        )


def cuda_problem() -> str | None:
    """Why CUDA cannot be used here, or None when it can."""
    if _CUDA not in ort.get_available_providers():
        return "the installed onnxruntime has no CUDA provider; install onnxruntime-gpu"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"no NVIDIA driver ({error})"
    count = ctypes.c_int(0)
    if (code := driver.cuInit(0)) != 0 or (code := driver.cuDeviceGetCount(ctypes.byref(count))) != 0:
        return f"the NVIDIA driver answers with error {code}"
    if count.value == 0:
        return "the NVIDIA driver sees no device"
    return _provider_problem()


def _provider_problem() -> str | None:
    """Load the provider's libraries as onnxruntime would; the loader's message names what is missing."""
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it did not find; we ask the loader
            ort.preload_dlls()
    folder = Path(ort.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return (
            f"the CUDA provider cannot be loaded: {error}; `pip install headgate-onnx[cuda]` brings its libraries"
        )
    return None


def open_session(model: Path, device: str, options: OnnxOptions) -> Opened:
    """Open a model file on a device.

    Args:
        model: The `.onnx` file.
        device: `cpu`, `cuda`, `cuda:N` or `auto` (CUDA where it is usable, else the CPU).
        options: The operator's options.

    Raises:
        LoadFailed: The device is unknown or unusable, or the runtime refuses the file; names the cause.
    """
    check_wheels()
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise LoadFailed(f"device {device!r}: expected cpu, cuda:N or auto")
    ordinal = int(match[1] or 0)
    problem = cuda_problem() if device != "cpu" else None
    if device.startswith("cuda") and problem is not None:
        raise LoadFailed(f"device {device!r} cannot be used: {problem}")
    on_cuda = device != "cpu" and problem is None
    threads = options.threads or usable_cores()
    providers: list[Any] = [(_CPU, {})]
    if on_cuda:
        providers.insert(0, (_CUDA, _cuda_options(ordinal, options)))
    try:
        session = ort.InferenceSession(str(model), _session_options(options, threads), providers=providers)
    except Exception as error:  # onnxruntime's errors share no base class
        raise LoadFailed(f"{model}: onnxruntime refuses it: {error}") from error
    if on_cuda and _CUDA not in session.get_providers():
        if device != "auto":
            raise LoadFailed(f"device {device!r}: onnxruntime could not start its CUDA provider; see its log")
        on_cuda, problem = False, "onnxruntime could not start its CUDA provider"
    where = f"CUDA device {ordinal}" if on_cuda else f"CPU, {threads} threads"
    passed_over = f" (auto: {problem})" if problem is not None else ""
    return Opened(
        session=session,
        device=f"cuda:{ordinal}" if on_cuda else "cpu",
        detail=f"onnxruntime {ort.__version__}, {where}{passed_over}",
    )


def _session_options(options: OnnxOptions, threads: int) -> Any:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.enable_cpu_mem_arena = options.arena
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spin else "0")
    levels = ort.GraphOptimizationLevel
    settings.graph_optimization_level = {
        "none": levels.ORT_DISABLE_ALL,
        "basic": levels.ORT_ENABLE_BASIC,
        "extended": levels.ORT_ENABLE_EXTENDED,
        "all": levels.ORT_ENABLE_ALL,
    }[options.graph_optimization]
    return settings


def _cuda_options(ordinal: int, options: OnnxOptions) -> dict[str, str]:
    """Provider options. The default arena doubles at each growth and tries every cuDNN algorithm: both waste."""
    chosen = {
        "device_id": str(ordinal),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "1" if options.tf32 else "0",
    }
    if options.gpu_mem_limit_mb is not None:
        chosen["gpu_mem_limit"] = str(options.gpu_mem_limit_mb << 20)
    return chosen
