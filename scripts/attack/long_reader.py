#!/usr/bin/env python3
"""A reader of the database file (as a backup is) keeps a transaction open while jobs are accepted.

Prints how many jobs were accepted within the time, the slowest answer, and the length of the log. Before the fix all
answers stop in blocks of 30 s once the log has 8 MiB.
"""

import os
import sqlite3
import threading
import time

import common


def main():
    options = common.parser(__doc__)
    options.add_argument("--seconds", type=float, default=45, help="how long jobs are sent")
    options.add_argument("--clients", type=int, default=4)
    args = options.parse_args()
    image = common.PICTURE.read_bytes()
    with common.Service(args.binary) as service:
        reader = sqlite3.connect(service.database(), isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM objects").fetchall()
        end = time.monotonic() + args.seconds
        answers = []

        def send():
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
        log = os.path.getsize(service.database() + "-wal") / 2**20
        print(f"accepted {accepted} of {len(answers)}; slowest answer {slowest:.2f} s; log {log:.0f} MiB")


if __name__ == "__main__":
    main()
