#!/usr/bin/env python3
"""The wall clock is stepped while jobs wait, and again while they are worked on.

For each step: jobs are accepted, the clock is stepped, a worker is started, after three seconds the clock is set back. Prints
how the jobs ended. A small library that is loaded before libc steps the clock (tests/shim.c); it needs a C compiler.
"""

import json
import time

import common

STEPS = {"five days ahead": 5 * 86_400, "two hours ahead": 7_200, "one hour back": -3_600}


def main():
    options = common.parser(__doc__)
    options.add_argument("--jobs", type=int, default=30)
    options.add_argument("--wait", type=float, default=40, help="seconds that the jobs have to end")
    args = options.parse_args()
    image = common.PICTURE.read_bytes()
    for name, step in STEPS.items():
        with common.Service(args.binary, environment=True) as service:
            ids = [json.loads(service.request("POST", "/v1/jobs", image)[1])["id"] for _ in range(args.jobs)]
            service.step(step)
            # Something looks at the depth of the queue meanwhile, as the scaling loop does.
            service.start("autoscale", "--min-workers", "1", "--max-workers", "1")
            time.sleep(3)
            service.step(0)
            ends, deadline = {}, time.monotonic() + args.wait
            for job in ids:
                while True:
                    state = json.loads(service.request("GET", f"/v1/jobs/{job}")[1])["status"]
                    if state != "queued" or time.monotonic() > deadline:
                        break
                    time.sleep(0.1)
                ends[state] = ends.get(state, 0) + 1
            print(f"{name}: {ends}")


if __name__ == "__main__":
    main()
