"""A folder of images: `imgcls classify --out` against the bare loop and a pool of Python processes, in turn."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from . import fp32, machine, peers
from .common import say
from .load import FailedError, PeakMemory
from .peers import PEERS, NotInstalledError
from .plan import wait_for_quiet
from .summary import Figure
from .systems import WORKERS, Bench, Workload, bare_loop

# The peer whose virtual environment has what the pool needs.
POOL = next(peer for peer in PEERS if peer.name == "flask")
WARM_UP_SECONDS = 1
# `classify` has at least so many times the rate of the other.
LEAST_RATIOS = {"ceiling": 0.97, "pool": 1.15, "pool-fp32": 1.4}
MOST_MEMORY_MB = 300


def run(bench: Bench, loads: list[Workload], *, rounds: int, busy_ok: bool) -> Iterator[dict]:
    """Yields a measurement of each system for each set and round. Rates count the start of the program too."""
    models = pool_models(bench)
    for load in loads:
        rate = bare_loop(bench, load, WARM_UP_SECONDS)["images_per_second"]
        folder, count = links(bench, load, max(16, round(rate * load.seconds)))
        systems: dict[str, Callable[[], float]] = {
            "ceiling": lambda load=load: bare_loop(bench, load, load.seconds)["images_per_second"],
            "classify": lambda folder=folder, count=count: count / classify(bench, folder),
        }
        for name, model in models.items():
            systems[name] = lambda folder=folder, count=count, model=model: count / python_pool(bench, model, folder)
        for number in range(1, rounds + 1):
            for name, measure in systems.items():
                wait_for_quiet(busy_ok)
                clock = machine.Clock()
                with PeakMemory() as memory:
                    images_per_second = measure()
                found = {"system": name, "set": load.set, "round": number, "images": count}
                found |= {"images_per_second": images_per_second, "memory_mb": memory.peak_mb}
                found |= {"others_cpu_share": clock.share()}
                say(f"round {number}, {load.set}: {name}: {images_per_second:.1f} images/s, {memory.peak_mb:.0f} MB")
                yield found


def table(measurements: list[dict]) -> str:
    """Medians of each set and system, with the median of the rounds' ratios of `classify` to each."""
    lines = ["| set | system | images/s | classify to it | memory |", "|---|---|---|---|---|"]
    for (set_, system), group in by_system(measurements).items():
        rate = statistics.median(it["images_per_second"] for it in group)
        ratio = ratio_to(measurements, set_, system)
        memory = max(it["memory_mb"] for it in group)
        lines.append(f"| {set_} | {system} | {rate:.1f} | {ratio:.3f} | {memory:.0f} MB |")
    return "\n".join(lines)


def figures(measurements: list[dict]) -> list[Figure]:
    """All targets that these measurements cover."""
    found = []
    for (set_, system), group in by_system(measurements).items():
        if least := LEAST_RATIOS.get(system):
            ratio = ratio_to(measurements, set_, system)
            found.append(Figure(f"classify / {system}, {set_}, images/s", ratio, f"≥ {least}", ratio >= least))
        if system == "classify":
            memory = max(it["memory_mb"] for it in group)
            holds = memory <= MOST_MEMORY_MB
            found.append(Figure(f"classify, {set_}, memory in MB", memory, f"≤ {MOST_MEMORY_MB}", holds))
    return found


def by_system(measurements: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """The measurements of each set and system."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for found in measurements:
        groups.setdefault((found["set"], found["system"]), []).append(found)
    return groups


def ratio_to(measurements: list[dict], set_: str, system: str) -> float:
    """The median of the rounds' ratios of `classify` to a system."""
    groups = by_system(measurements)
    rates = [{it["round"]: it["images_per_second"] for it in groups[set_, name]} for name in ("classify", system)]
    return statistics.median(rate / rates[1][number] for number, rate in rates[0].items())


def links(bench: Bench, load: Workload, count: int) -> tuple[Path, int]:
    """A folder with so many links to the images of a set."""
    folder = bench.folder()
    files = load.files()
    for number in range(count):
        (folder / f"{number:06}.jpg").symlink_to(files[number % len(files)].resolve())
    return folder, count


def classify(bench: Bench, folder: Path) -> float:
    """The seconds that `imgcls classify` takes for a folder."""
    output = bench.folder() / "labels.csv"
    command = [bench.binary, "classify", folder, "--out", output, "--jobs", WORKERS]
    command += ["--model", bench.package, "--variant", bench.variant]
    return seconds(command, bench.environment())


def python_pool(bench: Bench, model: Path, folder: Path) -> float:
    """The seconds that the pool of Python processes takes for a folder."""
    home = bench.folder()
    environment = peers.environment(model, bench.package / "labels.txt", home)
    return seconds([POOL.bin / "python", peers.APPS / "pool.py", folder, home / "labels.csv"], environment)


def seconds(command: list, environment: dict) -> float:
    """How long a command takes."""
    begun = time.perf_counter()
    done = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True, env=environment)
    elapsed = time.perf_counter() - begun
    if done.returncode:
        raise FailedError(f"{command[0]} failed: {(done.stderr.strip() or '-').splitlines()[-1]}")
    return elapsed


def pool_models(bench: Bench) -> dict[str, Path]:
    """The models that the pool can run here: the file of `imgcls`, and the network in single precision."""
    models = {}
    try:
        POOL.install()
        models["pool"] = bench.model
        fp32.export()
        models["pool-fp32"] = fp32.MODEL
    except NotInstalledError as error:
        say(f"left out: {error}")
    return models
