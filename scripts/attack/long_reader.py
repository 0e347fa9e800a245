#!/usr/bin/env python3
"""Keeps a read transaction open on the database, as a backup does, while jobs are submitted.

Prints how many jobs were accepted, the slowest answer, and the size of the write-ahead log. Releases with the old bug
stop answering for 30 s at a time once the log has 8 MiB.
"""

import pathlib
import sqlite3
import threading
import time

import common


def main() -> None:
    """Holds the transaction and submits jobs meanwhile."""
    options = common.parser(__doc__)
    options.add_argument("--seconds", type=float, default=45, help="how long jobs are sent")
    options.add_argument("--clients", type=int, default=4)
    args = options.parse_args()
    image = common.IMAGE.read_bytes()
    with common.Service(args.binary) as service:
        reader = sqlite3.connect(service.database(), isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM objects").fetchall()
        end = time.monotonic() + args.seconds
        answers = []

        def send() -> None:
            while time.monotonic() < end:
                try:
                    status, _, seconds = service.request("POST", "/v1/jobs", image)
                except OSError:
                    status, seconds = 0, 120.0
                answers.append((status, seconds))

        clients = [threading.Thread(target=send) for _ in range(args.clients)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        accepted = sum(status == 202 for status, _ in answers)
        slowest = max(seconds for _, seconds in answers)
        log = pathlib.Path(service.database() + "-wal").stat().st_size / 2**20
        print(f"accepted {accepted} of {len(answers)}; slowest answer {slowest:.2f} s; log {log:.0f} MiB")


if __name__ == "__main__":
    main()
