"""The benchmarks' own parts, standard library only.

`machine` reads this machine and what processes cost on it; `systems` starts imgcls, and `peers` the others;
`load` drives them; `plan` decides what is measured in which order; `summary` turns the measurements into medians and
ratios; `report` and `chart` show them. `common` is what scripts/bench-aws shares.
"""
