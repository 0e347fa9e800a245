"""The parts of scripts/bench. They use only the standard library.

`machine` describes this machine and measures processes on it. `systems` starts imgcls and `peers` the other servers.
`load` sends requests. `plan` decides what is measured in which order. `summary` computes medians and ratios. `report`
and `chart` show them. `common` holds the helpers that scripts/bench-aws and scripts/bench-simulation share.
"""
