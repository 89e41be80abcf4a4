"""Chaos from the command line: `python -m tests.chaos --seconds 600`."""

from __future__ import annotations

import argparse
import secrets
import sys

from tests.chaos.harness import KINDS, run


def main() -> int:
    """Run, print the report, and return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--executors", type=int, default=4)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument(
        "--kinds",
        default="",
        help=f"what else goes wrong as often, beside the kills: all, or some of {', '.join(KINDS)}",
    )
    parser.add_argument("--calm", action="store_true", help="without a kill every half second")
    options = parser.parse_args()
    print(f"chaos: seed {options.seed}", flush=True)
    report = run(
        options.seconds,
        options.seed,
        kinds=KINDS if options.kinds == "all" else tuple(filter(None, options.kinds.split(","))),
        always=() if options.calm else ("kill",),
        executors=options.executors,
        shards=options.shards,
        say=lambda line: print(f"  {line}", flush=True),
    )
    print(report)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
