"""The systems to measure: how each is started and which measurements it supports."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import common, fp32, machine, peers
from .load import FailedError, PeakMemory, Target, closed_loop, open_loop
from .peers import Peer

WORKERS = 2
FIRST_ANSWER_SECONDS = 90
START_POLL_SECONDS = 0.005
# Clients of the warm-up, whose rate gives the number of requests of a measurement.
WARM_UP_CLIENTS = 8
# Images that each worker completes before the measurement starts, and that are left in the queue when it stops.
QUEUE_MARGIN = 60
QUEUE_POLL_SECONDS = 0.25
FRESH_PROCESSES = 4
READY_STARTS = 5
FP32_SUFFIX = "-fp32"
# Labels of imgcls_worker_endings_total.
SUCCEEDED, OTHER_OUTCOME = 'ending="succeeded"', 'ending="(?!succeeded")'


@dataclass(frozen=True)
class Workload:
    """The measurements of every system with one image set."""

    set: str
    images: Path
    clients: tuple[int, ...]
    open_loop_shares: tuple[float, ...]
    seconds: float
    warm_up_images: int
    seed: int = 1

    def files(self) -> list[Path]:
        """The images in the order in which they are sent."""
        found = sorted(file for file in self.images.iterdir() if file.suffix.lower() in (".jpg", ".jpeg"))
        if not found:
            raise FailedError(f"no .jpg in {self.images}")
        return found


@dataclass
class Bench:
    """Paths of the programs, the model and the scratch folder, which is kept until the end (see `common.scratch`)."""

    binary: Path
    ceiling: Path
    package: Path
    variant: str
    scratch: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def model(self) -> Path:
        """The ONNX file that all systems serve."""
        return self.package / f"{self.package.name}-{self.variant}.onnx"

    def environment(self) -> dict:
        """The environment of imgcls, with the ONNX Runtime library of this checkout."""
        library = sorted((common.ROOT / "lib" / "imgcls").glob("libonnxruntime.so.*"))
        return os.environ | ({"ORT_DYLIB_PATH": str(library[-1])} if library else {})

    def folder(self) -> Path:
        """A new folder."""
        return Path(tempfile.mkdtemp(dir=self.scratch))

    def log(self, name: str) -> Path:
        """A new log file of a system."""
        return self.scratch / f"{name}-{next(self.numbers)}.log"


Measurement = dict
Measured = Iterator[Measurement]


def attempt(kind: str, measure: Callable[[], Measurement], **labels: object) -> Measurement:
    """Runs a measurement; returns its figures or why it failed."""
    try:
        return {"kind": kind, **labels, **measure()}
    except FailedError as error:
        return {"kind": kind, **labels, "failed": str(error)}


# --- the ceiling ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ceiling:
    """Decoding, preprocessing and inference in a bare loop with two threads: benches/ceiling.rs."""

    name: str = "ceiling"
    title: str = "bare loop (the ceiling)"
    is_fp32: bool = False

    def prepare(self, bench: Bench) -> None:
        """Does nothing: it is already built."""

    def measure(self, bench: Bench, workload: Workload) -> Measured:
        """One measurement."""
        yield attempt("ceiling", lambda: self._run(bench, workload))

    def _run(self, bench: Bench, workload: Workload) -> Measurement:
        clock = machine.Clock()
        with PeakMemory() as memory:
            report = bare_loop(bench, workload, workload.seconds)
        return {
            "images": report["images"],
            "images_per_second": report["images_per_second"],
            "cpu_ms_per_image": report["cpu_ms_per_image"],
            "prepare_ms_per_image": report["prepare_ms_per_image"],
            "infer_ms_per_image": report["infer_ms_per_image"],
            "memory_mb": memory.peak_mb,
            "others_cpu_share": clock.share(),
        }


# --- HTTP servers ----------------------------------------------------------------------------------------------


class HttpSystem:
    """A server that takes an image at POST /v1/classify."""

    name: str
    title: str
    # True if it serves the network in single precision instead of the file of the others.
    is_fp32: bool = False

    def prepare(self, bench: Bench) -> None:
        """Installs the dependencies."""

    def command(self, bench: Bench, port: int) -> tuple[list, dict, Path]:
        """The command line, environment and working directory."""
        raise NotImplementedError

    def measure(self, bench: Bench, workload: Workload) -> Measured:
        """Measures the first answer, then closed loops, then open loops at shares of their capacity."""
        port = common.free_port()
        command, environment, folder = self.command(bench, port)
        log = bench.log(self.name)
        with _process(command, environment, folder, log) as server:
            target = Target(bench.binary, port, workload.images)
            started = attempt("start", lambda: self._first_answer(server, port, workload, log))
            yield started
            if "failed" not in started:
                yield from self._loads(target, workload)

    def _first_answer(self, server: _Started, port: int, workload: Workload, log: Path) -> Measurement:
        image = workload.files()[0].read_bytes()
        end = server.at + FIRST_ANSWER_SECONDS
        while time.monotonic() < end:
            if answered(port, image):
                return {"first_answer_seconds": time.monotonic() - server.at}
            if server.process.poll() is not None:
                raise FailedError(f"it exited with code {server.process.returncode}: {last_line(log)}")
            time.sleep(START_POLL_SECONDS)
        raise FailedError(f"no answer within {FIRST_ANSWER_SECONDS} s: {last_line(log)}")

    def _loads(self, target: Target, workload: Workload) -> Measured:
        try:
            rate = closed_loop(target, WARM_UP_CLIENTS, workload.warm_up_images)["images_per_second"]
        except FailedError as error:
            yield {"kind": "warm-up", "failed": str(error)}
            return
        capacity = 0.0
        for clients in workload.clients:
            requests = round(rate * workload.seconds * (0.6 if clients == 1 else 1.0))
            found = attempt("closed", lambda: closed_loop(target, clients, requests), clients=clients)  # noqa: B023
            capacity = max(capacity, found.get("images_per_second", 0.0))
            yield found
        for share in workload.open_loop_shares if capacity else ():
            rate, seconds = capacity * share, 2 * workload.seconds
            measure = lambda: open_loop(target, rate, seconds, workload.seed)  # noqa: B023, E731
            yield attempt("open", measure, share=share, rate=rate)


class Up(HttpSystem):
    """The full path of imgcls: HTTP, queue, worker, store, reply."""

    name = "up"
    title = "imgcls up"

    def command(self, bench: Bench, port: int) -> tuple[list, dict, Path]:
        """Two workers with one thread each."""
        folder = bench.folder()
        flags = ["--listen", f"127.0.0.1:{port}", "--data-dir", folder / "data", *model_flags(bench)]
        workers = ["--min-workers", WORKERS, "--max-workers", WORKERS]
        return [bench.binary, "up", *flags, *workers], bench.environment(), folder


@dataclass(frozen=True)
class PeerSystem(HttpSystem):
    """A peer in scripts/bench_peers, with the file of imgcls or with the network in single precision."""

    peer: Peer
    is_fp32: bool = False

    @property
    def name(self) -> str:
        """The name on the command line."""
        return f"{self.peer.name}{FP32_SUFFIX}" if self.is_fp32 else self.peer.name

    @property
    def title(self) -> str:
        """The name in tables."""
        return f"{self.peer.title}, fp32" if self.is_fp32 else self.peer.title

    def prepare(self, bench: Bench) -> None:
        """Creates the virtual environment, and the network in single precision."""
        self.peer.install()
        if self.is_fp32:
            fp32.export()

    def command(self, bench: Bench, port: int) -> tuple[list, dict, Path]:
        """Two workers with one thread each."""
        # The scratch folder itself, because Ray creates sockets deep below it and socket paths are at most 107 bytes.
        model = fp32.MODEL if self.is_fp32 else bench.model
        environment = peers.environment(model, bench.package / "labels.txt", bench.scratch)
        return self.peer.command(self.peer.bin, port), environment, peers.APPS


# --- workers without a web tier --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QueueWorkers:
    """Two worker processes that empty a full local queue while no web tier runs."""

    name: str = "worker"
    title: str = "imgcls worker, full queue"
    is_fp32: bool = False

    def prepare(self, bench: Bench) -> None:
        """Does nothing: it is already built."""

    def measure(self, bench: Bench, workload: Workload) -> Measured:
        """Measures their rate, and the time until a worker is ready."""
        yield attempt("queue", lambda: self._drain(bench, workload))
        yield attempt("ready", lambda: self._ready(bench))

    def _drain(self, bench: Bench, workload: Workload) -> Measurement:
        images = [file.read_bytes() for file in workload.files()]
        data = bench.folder() / "data"
        # The workers cannot be faster than the bare loop, so the queue lasts long enough.
        rate = bare_loop(bench, workload, 1)["images_per_second"]
        count = round(rate * workload.seconds * 1.2) + 2 * WORKERS * QUEUE_MARGIN
        self._fill(bench, data, images, count)
        admin = [common.free_port() for _ in range(WORKERS)]
        with contextlib.ExitStack() as stack:
            for port in admin:
                flags = ["--admin-listen", f"127.0.0.1:{port}", "--sessions", 1]
                command = [bench.binary, "worker", *local(data), *flags, *model_flags(bench)]
                stack.enter_context(_process(command, bench.environment(), data.parent, bench.log(self.name)))
            return self._watch(admin, count)

    def _fill(self, bench: Bench, data: Path, images: list[bytes], count: int) -> None:
        port = common.free_port()
        command = [bench.binary, "serve-web", *local(data), "--listen", f"127.0.0.1:{port}"]
        with _process(command, bench.environment(), data.parent, bench.log("serve-web")) as web:
            common.wait_until("the web tier", lambda: common.is_ready(port))
            common.submit(port, images, count)
            # Killed, so that its reply queue remains and the workers' replies have their usual cost.
            web.process.kill()

    def _watch(self, admin: list[int], count: int) -> Measurement:
        """Measures from the time when every worker is warm until the queue is almost empty."""
        completed = [0.0 for _ in admin]
        while min(completed) < QUEUE_MARGIN:
            time.sleep(QUEUE_POLL_SECONDS)
            completed = self._completed(admin)
        clock, cpu_before = machine.Clock(), machine.cpu_seconds(machine.family())
        started, before = time.monotonic(), sum(completed)
        elapsed = after = cpu = 0.0
        while True:
            time.sleep(QUEUE_POLL_SECONDS)
            total = sum(self._completed(admin))
            if total > count - WORKERS * QUEUE_MARGIN / 2:
                break
            elapsed, after = time.monotonic() - started, total
            cpu = machine.cpu_seconds(machine.family()) - cpu_before
        images = after - before
        if images <= 0:
            raise FailedError("the queue was empty before anything was measured")
        if others := sum(self._completed(admin, OTHER_OUTCOME)):
            raise FailedError(f"{others:.0f} images were not classified")
        return {
            "images": images,
            "images_per_second": images / elapsed,
            "cpu_ms_per_image": cpu * 1e3 / images,
            "memory_mb": machine.pss_mb(machine.family()),
            "others_cpu_share": clock.share(),
        }

    def _completed(self, admin: list[int], labels: str = SUCCEEDED) -> list[float]:
        found = []
        for port in admin:
            try:
                found.append(common.metric_sum(port, "imgcls_worker_endings_total", labels))
            except OSError:
                found.append(0.0)  # The worker is still loading the model.
        return found

    def _ready(self, bench: Bench) -> Measurement:
        """The median time from exec to the line `ready`, on an existing data directory."""
        data = bench.folder() / "data"
        times = []
        for _ in range(READY_STARTS):
            command = [bench.binary, "worker", *local(data), "--sessions", 1, "--drain-on-stdin-close"]
            began = time.monotonic()
            worker = subprocess.Popen(
                [*map(str, [*command, *model_flags(bench)])],
                env=bench.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            line = worker.stdout.readline()
            times.append(time.monotonic() - began)
            worker.communicate()
            if line.strip() != b"ready":
                raise FailedError(f"the worker printed {line!r} instead of ready")
        return {"exec_to_ready_ms": sorted(times)[len(times) // 2] * 1e3}


# --- the design of the legacy system ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class FreshProcess:
    """A Python process with torch for every image, two at a time. Only a few images, because each takes seconds."""

    name: str = "fresh-process"
    title: str = "a Python process with torch per image"
    is_fp32: bool = False

    def prepare(self, bench: Bench) -> None:
        """Checks that torch is installed."""
        check = [peers.python(), "-c", "import torch, torchvision, PIL"]
        if subprocess.run(check, capture_output=True, check=False).returncode:
            hint = "Debian: apt-get install python3-torch python3-torchvision python3-pil"
            raise peers.NotInstalledError(f"{peers.python()} has no torch, torchvision or PIL ({hint})")

    def measure(self, bench: Bench, workload: Workload) -> Measured:
        """Makes one measurement, after one process that fills the page cache."""
        yield attempt("fresh", lambda: self._run(bench, workload))

    def _run(self, bench: Bench, workload: Workload) -> Measurement:
        files = list(itertools.islice(itertools.cycle(workload.files()), 1 + FRESH_PROCESSES))
        self._images(files[:1])
        clock, cpu_before, began = machine.Clock(), os.times(), time.monotonic()
        with PeakMemory() as memory:
            latencies = [
                latency
                for batch in (files[at : at + WORKERS] for at in range(1, len(files), WORKERS))
                for latency in self._images(batch)
            ]
        elapsed, cpu = time.monotonic() - began, os.times()
        used = cpu.children_user + cpu.children_system - cpu_before.children_user - cpu_before.children_system
        images = len(latencies)
        return {
            "images": images,
            "images_per_second": images / elapsed,
            "p50_ms": sorted(latencies)[images // 2] * 1e3,
            "cpu_ms_per_image": used * 1e3 / images,
            "memory_mb": memory.peak_mb,
            "others_cpu_share": clock.share(),
        }

    def _images(self, files: list[Path]) -> list[float]:
        began = time.monotonic()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [peers.python(), str(peers.APPS / "fresh_process.py")]
        running = [
            subprocess.Popen([*command, str(file)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            for file in files
        ]
        latencies = []
        for process in running:
            _, errors = process.communicate()
            latencies.append(time.monotonic() - began)
            if process.returncode:
                text = errors.decode(errors="replace").strip() or "no reason given"
                raise FailedError(f"a process failed: {text.splitlines()[-1]}")
        return latencies


SYSTEMS = (
    Ceiling(),
    Up(),
    QueueWorkers(),
    *(PeerSystem(peer, is_fp32) for peer in peers.PEERS for is_fp32 in (False, True)),
    FreshProcess(),
)


# --- helpers -------------------------------------------------------------------------------------------------------


def bare_loop(bench: Bench, workload: Workload, seconds: float) -> dict:
    """The report of benches/ceiling.rs."""
    command = [bench.ceiling, "--threads", WORKERS, "--seconds", seconds, "--json", "--pictures", workload.images]
    command += ["--model", bench.package, "--variant", bench.variant]
    run = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True, env=bench.environment())
    if run.returncode:
        raise FailedError(f"the bare loop failed: {(run.stderr.strip() or '-').splitlines()[-1]}")
    return json.loads(run.stdout)


def local(data: Path) -> list:
    """The flags of the local backend."""
    return ["--backend", "local", "--data-dir", data]


def model_flags(bench: Bench) -> list:
    """The flags that select the model file and one thread per session."""
    return ["--model", bench.package, "--variant", bench.variant, "--intra-threads", 1]


def answered(port: int, image: bytes) -> bool:
    """Classifies one image. Returns False if the server does not listen or is not ready."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/v1/classify", body=image, headers={"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        answer.read()
        return answer.status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def last_line(log: Path) -> str:
    """The last line of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "the log is empty"


@dataclass(frozen=True)
class _Started:
    process: subprocess.Popen
    at: float


@contextlib.contextmanager
def _process(command: list, environment: dict, folder: Path, log: Path) -> Iterator[_Started]:
    """Runs a process and terminates it at the end of the block. `machine.end_family` terminates its daemons."""
    folder.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        began = time.monotonic()
        process = subprocess.Popen(
            [*map(str, command)], env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        yield _Started(process, began)
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
