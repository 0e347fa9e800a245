#!/usr/bin/env python3
"""Steps the wall clock while jobs wait, and again while they are processed.

For each step it submits jobs, steps the clock, starts a worker, sets the clock back after three seconds, and prints the
outcomes of the jobs. A small library that is loaded before libc steps the clock (tests/shim.c); it needs a C compiler.
"""

import json
import time

import common

STEPS = {"five days ahead": 5 * 86_400, "two hours ahead": 7_200, "one hour back": -3_600}


def main() -> None:
    """Runs each step and prints the outcomes."""
    options = common.parser(__doc__)
    options.add_argument("--jobs", type=int, default=30)
    options.add_argument("--wait", type=float, default=40, help="timeout of the jobs in seconds")
    args = options.parse_args()
    image = common.IMAGE.read_bytes()
    for name, step in STEPS.items():
        with common.Service(args.binary, environment=True) as service:
            ids = [json.loads(service.request("POST", "/v1/jobs", image)[1])["id"] for _ in range(args.jobs)]
            service.step(step)
            # The scaling loop reads the depth of the queue meanwhile.
            service.start("autoscale", "--min-workers", "1", "--max-workers", "1")
            time.sleep(3)
            service.step(0)
            outcomes, deadline = {}, time.monotonic() + args.wait
            for job in ids:
                while True:
                    state = json.loads(service.request("GET", f"/v1/jobs/{job}")[1])["status"]
                    if state != "queued" or time.monotonic() > deadline:
                        break
                    time.sleep(0.1)
                outcomes[state] = outcomes.get(state, 0) + 1
            print(f"{name}: {outcomes}")


if __name__ == "__main__":
    main()
