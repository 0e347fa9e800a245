#!/usr/bin/env python3
"""Offers a service three times its capacity and measures how many callers get an answer in time.

    scripts/attack/overload.py --binary target/release/imgcls
    scripts/attack/overload.py --binary OLD --binary NEW        both, in alternation

Each run starts `imgcls up --max-workers 1` in a temporary data directory, measures the capacity in a closed loop, then
offers `--factor` times that rate in an open loop (Poisson) for `--seconds`, regardless of the answers. A caller waits
`--wait` seconds, and an answer is good if it is a 200 within that time. Goodput is the rate of good answers during the
load. Afterwards, one request every 250 ms shows when the service is back to normal: it answers in less than 250 ms or
twice the latency before the load.

One client on the same machine sends all requests, so only shares can be compared. Traffic goes only to 127.0.0.1, and
the script ends by itself. Exit codes: 0 measured, 1 a service did not start, 99 --min-goodput was missed.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGES = ("rocket.jpg", "cup.jpg", "cat.jpg")
STARTED = re.compile(r"open http://127\.0\.0\.1:(\d+)/")
NORMAL_SECONDS = 0.25
PROBE_PERIOD_SECONDS = 0.25
# How long the service is watched after the load at most.
WATCH_SECONDS = 90
FAST_SECONDS = 0.010


@dataclasses.dataclass
class Outcome:
    """One request: its status, or 0 if there was no answer, and the seconds it took."""

    status: int
    seconds: float
    ended: float
    retry_after: int | None = None


class Client:
    """Keeps connections open between requests, as a proxy does."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.images = [(ROOT / "tests" / "pictures" / name).read_bytes() for name in IMAGES]
        self.sent = 0

    async def classify(self, wait: float, timeout: float) -> Outcome:
        """Classifies one image. The time to connect counts."""
        self.sent += 1
        body = self.images[self.sent % len(self.images)]
        started = time.monotonic()
        try:
            status, headers = await asyncio.wait_for(self._request(f"/v1/classify?wait={wait}", body), timeout)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, ValueError):
            return Outcome(0, time.monotonic() - started, time.monotonic())
        retry_after = headers.get("retry-after")
        ended = time.monotonic()
        return Outcome(status, ended - started, ended, int(retry_after) if retry_after else None)

    async def _request(self, path: str, body: bytes) -> tuple[int, dict[str, str]]:
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Length: {len(body)}\r\n\r\n"
        if self.idle:
            reader, writer = self.idle.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(head.encode() + body)
            answer = await self._answer(reader)
        except BaseException:
            writer.close()
            raise
        if answer[1].get("connection") == "close":
            writer.close()
        else:
            self.idle.append((reader, writer))
        return answer

    @staticmethod
    async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        await reader.readexactly(int(headers.get("content-length", 0)))
        return int(lines[0].split()[1]), headers


class Service:
    """`imgcls up` with one worker, in a temporary data directory."""

    def __init__(self, binary: pathlib.Path, flags: list[str]) -> None:
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="imgcls-overload-"))
        self.binary = binary
        command = [binary, "up", "--listen", "127.0.0.1:0", "--data-dir", self.directory / "data", "--max-workers", "1"]
        log = (self.directory / "log").open("w")
        environment = {**os.environ, "IMGCLS_LOG": "warn"}
        self.process = subprocess.Popen(
            [*command, *flags], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
        line = self.process.stdout.readline()
        started = STARTED.search(line)
        if started is None:
            self.stop()
            raise SystemExit(f"{binary} did not start; its first line is {line!r}")
        self.port = int(started.group(1))

    def memory_mib(self) -> float:
        """Resident memory of the web tier, which is the process that was started."""
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text).group(1)) / 1024

    def depth(self) -> int:
        """Messages in the request queue."""
        command = [self.binary, "queue", "depth", "--json", "--data-dir", self.directory / "data"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        requests = next(queue for queue in json.loads(output)["queues"] if queue["role"] == "requests")
        return requests["visible"] + requests["in_flight"]

    def stop(self) -> None:
        """Terminates the service and removes its data."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


async def measure(service: Service, options: argparse.Namespace, wait: float) -> dict:
    """Runs the measurement; returns its figures."""
    client = Client(service.port)
    await closed_loop(client, 2.0)
    capacity, usual = await closed_loop(client, options.capacity_seconds)
    rate = options.rate or capacity * options.factor
    before = service.memory_mib()
    memory: list[float] = []
    async with sampling(service, memory):
        load_ended, outcomes = await open_loop(client, rate, options.seconds, wait)
        depth = await asyncio.to_thread(service.depth)
        normal_after = await until_normal(client, load_ended, usual, wait)
        outcomes = [await outcome for outcome in outcomes]
    return report(outcomes, load_ended, options.seconds, wait, capacity) | {
        "wait": wait,
        "capacity": capacity,
        "rate": rate,
        "depth_at_end": depth,
        "normal_after": normal_after,
        "memory": (before, max(memory)),
    }


async def closed_loop(client: Client, seconds: float, clients: int = 8) -> tuple[float, float]:
    """The rate of answers with `clients` callers, and the median latency of a single caller."""
    ends = time.monotonic() + seconds

    async def caller() -> list[Outcome]:
        outcomes = []
        while time.monotonic() < ends:
            outcomes.append(await client.classify(30, 60))
        return outcomes

    started = time.monotonic()
    by_caller = await asyncio.gather(*(caller() for _ in range(clients)))
    answered = [outcome for outcomes in by_caller for outcome in outcomes]
    rate = sum(outcome.status == 200 for outcome in answered) / (time.monotonic() - started)
    alone = [(await client.classify(30, 60)).seconds for _ in range(20)]
    return rate, statistics.median(alone)


async def open_loop(client: Client, rate: float, seconds: float, wait: float) -> tuple[float, list[asyncio.Task]]:
    """Sends at this rate regardless of the answers; returns the time when the load ended, and the requests."""
    loop, rng, tasks = asyncio.get_running_loop(), random.Random(1), []
    started = loop.time()
    due = 0.0
    while (due := due + rng.expovariate(rate)) < seconds:
        if (pause := started + due - loop.time()) > 0:
            await asyncio.sleep(pause)
        tasks.append(asyncio.create_task(client.classify(wait, wait + 60)))
    return time.monotonic(), tasks


async def until_normal(client: Client, load_ended: float, usual: float, wait: float) -> float | None:
    """The seconds after the load until three probes in a row were answered about as fast as before it."""
    good, since = 0, None
    while time.monotonic() < load_ended + WATCH_SECONDS:
        started = time.monotonic()
        outcome = await client.classify(wait, wait + 60)
        if outcome.status == 200 and outcome.seconds < max(2 * usual, NORMAL_SECONDS):
            since = started if good == 0 else since
            good += 1
            if good == 3:
                return max(since - load_ended, 0.0)
        else:
            good = 0
        await asyncio.sleep(max(PROBE_PERIOD_SECONDS - (time.monotonic() - started), 0))
    return None


@contextlib.asynccontextmanager
async def sampling(service: Service, memory: list[float]):
    """Samples the memory during the block."""

    async def sample() -> None:
        while True:
            memory.append(service.memory_mib())
            await asyncio.sleep(0.25)

    task = asyncio.create_task(sample())
    try:
        yield
    finally:
        task.cancel()


def report(outcomes: list[Outcome], load_ended: float, seconds: float, wait: float, capacity: float) -> dict:
    """Counts and shares of the outcomes. Goodput is the rate of answers in time during the load."""
    in_time = [outcome for outcome in outcomes if outcome.status == 200 and outcome.seconds <= wait]
    good = len(in_time)
    goodput = sum(outcome.ended <= load_ended for outcome in in_time) / seconds
    refused = [outcome for outcome in outcomes if outcome.status == 503]
    late = sum(outcome.status in (200, 202) for outcome in outcomes) - good
    fast = sum(outcome.seconds <= FAST_SECONDS for outcome in refused)
    latencies = sorted(outcome.seconds for outcome in refused) or [0.0]
    answered = sorted(outcome.seconds for outcome in outcomes if outcome.status == 200) or [0.0]
    return {
        "sent": len(outcomes),
        "good": good,
        "refused": len(refused),
        "late": late,
        "failed": len(outcomes) - good - len(refused) - late,
        "goodput": goodput,
        "goodput_share": goodput / capacity,
        "refused_fast": fast / max(len(refused), 1),
        "refused_p50_ms": latencies[len(latencies) // 2] * 1e3,
        "refused_p99_ms": latencies[len(latencies) * 99 // 100] * 1e3,
        "answered_p50_s": answered[len(answered) // 2],
        "retry_after": (
            min((outcome.retry_after or 0 for outcome in refused), default=0),
            max((outcome.retry_after or 0 for outcome in refused), default=0),
        ),
    }


def show(binary: pathlib.Path, figures: dict) -> None:
    """Prints a paragraph about a run."""
    normal = figures["normal_after"]
    before, most = figures["memory"]
    print(f"{binary}, callers wait {figures['wait']:g} s")
    print(f"  capacity {figures['capacity']:.1f}/s, offered {figures['rate']:.1f}/s, sent {figures['sent']}")
    print(
        f"  in time {figures['good']} (in load {figures['goodput']:.1f}/s, {figures['goodput_share']:.0%} of capacity; "
        f"median {figures['answered_p50_s']:.2f} s), late or 202 {figures['late']}, refused {figures['refused']}, "
        f"failed {figures['failed']}"
    )
    print(
        f"  refused within 10 ms: {figures['refused_fast']:.1%} (median {figures['refused_p50_ms']:.1f} ms, 99 % "
        f"{figures['refused_p99_ms']:.1f} ms), Retry-After {figures['retry_after'][0]} to {figures['retry_after'][1]} s"
    )
    again = "not within " + str(WATCH_SECONDS) + " s" if normal is None else f"after {normal:.1f} s"
    print(f"  left in the queue {figures['depth_at_end']}, normal {again}, web tier {before:.0f} -> {most:.0f} MiB")
    sys.stdout.flush()


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT / "target" / "release" / "imgcls"
    parser.add_argument("--binary", type=pathlib.Path, action="append", help=f"repeatable [default: {default}]")
    parser.add_argument("--wait", type=float, action="append", help="seconds a caller waits; repeatable [2]")
    parser.add_argument("--factor", type=float, default=3.0, help="offered rate as a multiple of the capacity [3]")
    parser.add_argument("--rate", type=float, help="offered rate per second, instead of --factor")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the load [20]")
    parser.add_argument("--capacity-seconds", type=float, default=6.0, help="length of the closed loop [6]")
    parser.add_argument("--rounds", type=int, default=1, help="how often each binary is measured, in alternation [1]")
    parser.add_argument(
        "--min-goodput", type=float, help="exit with 99 if the share of the last binary is lower [none]"
    )
    parser.add_argument("flags", nargs="*", help="more flags for `imgcls up`, after --")
    options = parser.parse_args()
    options.binary = options.binary or [default]
    options.wait = options.wait or [2.0]
    return options


def main() -> int:
    """Runs the measurements; returns the exit code."""
    options = arguments()
    missed = False
    for _ in range(options.rounds):
        for wait in options.wait:
            for binary in options.binary:
                service = Service(binary, options.flags)
                try:
                    figures = asyncio.run(measure(service, options, wait))
                finally:
                    service.stop()
                show(binary, figures)
            missed |= options.min_goodput is not None and figures["goodput_share"] < options.min_goodput
    return 99 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
