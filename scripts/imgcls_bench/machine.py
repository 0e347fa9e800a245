"""Describes this machine and measures its load, and the CPU time and memory of a tree of processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import time
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PR_SET_CHILD_SUBREAPER = 36
# Fields of /proc/stat's first line that are work: user, nice, system, irq, softirq, steal.
WORK_FIELDS = (0, 1, 2, 5, 6, 7)


def description() -> dict:
    """The properties that results depend on, without host or user names."""
    cpu = _first_value(Path("/proc/cpuinfo"), ("model name", "Model", "CPU part")) or platform.machine()
    memory = int((_first_value(Path("/proc/meminfo"), ("MemTotal",)) or "0 kB").split()[0])
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 1024**2),
        "kernel": f"{platform.system()} {platform.release().split('-')[0]}",
        "architecture": platform.machine(),
    }


def has_int8_dot_product() -> bool:
    """Returns true if 8-bit dot products are exact and fast: VNNI on x86-64, the dot product extension on aarch64."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    return bool({"avx512_vnni", "avx_vnni", "asimddp"} & set(flags))


def _first_value(path: Path, names: tuple[str, ...]) -> str | None:
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in names:
            return value.strip()
    return None


# --- processes -----------------------------------------------------------------------------------------------------


def adopt_orphans() -> None:
    """Keeps daemons of the systems under test as descendants of this process, to measure and terminate them."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass(frozen=True)
class Process:
    """A line of /proc/<pid>/stat. The CPU time includes that of terminated and reaped children."""

    pid: int
    parent: int
    cpu_seconds: float

    @classmethod
    def read(cls, pid: int) -> Process | None:
        """Returns None if the process has terminated."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        # The name in parentheses may contain anything. After it come state, parent, …, and from the 12th on four times.
        fields = stat.rpartition(")")[2].split()
        return cls(pid, int(fields[1]), sum(map(int, fields[11:15])) / TICKS_PER_SECOND)


def family() -> list[Process]:
    """All descendants of this process."""
    processes = [Process.read(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    children: dict[int, list[Process]] = {}
    for process in filter(None, processes):
        children.setdefault(process.parent, []).append(process)
    found, pending = [], [os.getpid()]
    while pending:
        offspring = children.get(pending.pop(), [])
        found += offspring
        pending += [process.pid for process in offspring]
    return found


def cpu_seconds(processes: list[Process]) -> float:
    """The sum of their user and system time since they started."""
    return sum(process.cpu_seconds for process in processes)


def pss_mb(processes: list[Process]) -> float:
    """Their total memory in MB of 10^6 bytes. Shared memory is counted once (proportional set size)."""
    kib = 0
    for process in processes:
        # The process may terminate meanwhile.
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8")
            kib += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return kib * 1024 / 1e6


def end_family(timeout_seconds: float = 10) -> None:
    """Terminates all remaining descendants of this process, first with SIGTERM, then with SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
        end = time.monotonic() + timeout_seconds
        while family() and time.monotonic() < end:
            _reap()
            time.sleep(0.02)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


# --- other processes -------------------------------------------------------------------------------------------------


class Clock:
    """CPU time of all other processes than this one and its descendants, as a share of the machine."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.others = _others_cpu_seconds()

    def share(self) -> float:
        """The share since the clock was created; 1.0 is all cores."""
        elapsed = time.monotonic() - self.began
        cores = os.cpu_count() or 1
        return max(0.0, (_others_cpu_seconds() - self.others) / elapsed / cores)


def _others_cpu_seconds() -> float:
    ticks = [int(field) for field in Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]]
    everything = sum(ticks[field] for field in WORK_FIELDS) / TICKS_PER_SECOND
    own = Process.read(os.getpid())
    return everything - (own.cpu_seconds if own else 0) - cpu_seconds(family())


def others_share(seconds: float) -> float:
    """The share of the machine that other processes use during the next seconds."""
    clock = Clock()
    time.sleep(seconds)
    return clock.share()
