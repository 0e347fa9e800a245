#!/usr/bin/env python3
"""Makes hundreds of thousands of messages expire at once.

Prints the slowest accepted job while they are removed, and how long the removal takes.
"""

import sqlite3
import time

import common


def main() -> None:
    """Adds the messages, starts a worker and sends jobs meanwhile."""
    options = common.parser(__doc__)
    options.add_argument("--messages", type=int, default=300_000)
    options.add_argument("--limit", type=float, default=180, help="seconds after which the script gives up")
    args = options.parse_args()
    image = common.IMAGE.read_bytes()
    with common.Service(args.binary) as service:
        database = sqlite3.connect(service.database(), timeout=60, isolation_level=None)
        (queue,) = database.execute(
            "SELECT id FROM queues WHERE name NOT LIKE '%result%' AND name NOT LIKE '%dead%' LIMIT 1"
        ).fetchone()
        database.execute(
            "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)"
            " INSERT INTO messages (queue_id, visible_at_ms, receive_count, sent_at_ms, message_id, body)"
            " SELECT ?, n, 0, n, randomblob(16), hex(randomblob(300)) FROM numbers",
            (args.messages, queue),
        )
        # Its receive calls remove the expired messages.
        service.start("worker", "--sessions", "1")
        started, slowest, refused, left = time.monotonic(), 0.0, 0, args.messages
        while left and time.monotonic() - started < args.limit:
            try:
                status, _, seconds = service.request("POST", "/v1/jobs", image)
            except OSError:
                status, seconds = 0, 120.0
            refused += status != 202
            slowest = max(slowest, seconds)
            (left,) = database.execute("SELECT count(*) FROM messages WHERE sent_at_ms < 1000000000").fetchone()
            time.sleep(0.2)
        elapsed = time.monotonic() - started
        print(f"{left} left after {elapsed:.0f} s; slowest accepted job {slowest:.2f} s; {refused} refused")


if __name__ == "__main__":
    main()
