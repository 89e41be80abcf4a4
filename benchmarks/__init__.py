"""Comparisons of this package with others and with itself: `python -m benchmarks --help`.

One module for each noun: `tasks` (what runs), `workloads` (what is computed, by subject in `graphs`, `arrays`,
`frames`, `learning` and `futures`), `contenders` (who computes it) and `peers` (those of them that are not Dask's),
`stage` (a contender in a process of its own), `memory` (of its processes), `measuring` (turns), `results` (what is kept
of them), `targets` (what must hold), `report` and `plots` (how it is shown), `ablation` (our engine with parts switched
off), `factors` (the same, calculated for AWS), `command` (the command line). `latency`, `wide` and `giant` are programs
of their own.
"""
