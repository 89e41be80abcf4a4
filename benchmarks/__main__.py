"""Run the benchmarks: `python -m benchmarks`.

What every process is to inherit is set before anything is imported that looks at it: one BLAS thread, because each
contender has as many workers as the others and would otherwise have as many threads as it likes.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
INHERITED = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"),
    # Tasks are pickled by reference to `benchmarks.tasks`: every worker of everybody must find it.
    "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
}

if __name__ == "__main__":
    os.environ.update(INHERITED)
    from benchmarks.command import main

    sys.exit(main())
