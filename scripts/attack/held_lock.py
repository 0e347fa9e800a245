#!/usr/bin/env python3
"""Holds the write lock of the database, as a process that was stopped in a transaction does.

Prints how long a send waits until it is refused, how long a read takes meanwhile, and how long the web tier takes to
exit after SIGTERM.
"""

import signal
import sqlite3
import subprocess
import time

import common


def main() -> None:
    """Holds the lock and measures."""
    args = common.parser(__doc__).parse_args()
    image = common.IMAGE.read_bytes()
    with common.Service(args.binary) as service:
        holder = sqlite3.connect(service.database(), isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        status, _, seconds = service.request("POST", "/v1/jobs", image)
        print(f"send: status {status} after {seconds:.2f} s")
        status, _, seconds = service.request("GET", "/v1/jobs/01936d5c-7e00-7abc-8def-0123456789ab")
        print(f"read: status {status} after {seconds:.2f} s")
        started = time.monotonic()
        service.web.send_signal(signal.SIGTERM)
        try:
            code = service.web.wait(120)
            print(f"SIGTERM: exit code {code} after {time.monotonic() - started:.2f} s")
        except subprocess.TimeoutExpired:
            print("SIGTERM: still running after 120 s")


if __name__ == "__main__":
    main()
