#!/usr/bin/env python
"""The import time of npg beside the import time of NumPy. Each import runs in new processes; the imports take turns.

    python benchmarks/import_time.py

The clock starts when the interpreter is ready. All modules are compiled to bytecode before. Modules that use
environments (npg.rollout, npg.tabular, npg.runner.environments and others) also import Gymnasium.
"""

import argparse
import os
import subprocess
import sys
import tempfile

from timing import machine, with_spread  # isort: skip  # before NumPy: it sets the number of threads

import numpy as np

from npg.runner.figures import at_least

MATH = (
    "gradcheck network distributions score_function policy rollout returns optimizers baselines reinforce actor_critic "
    "replay"
).split()
IMPORTS = {
    "numpy": "import numpy",
    "npg": "import npg",
    f"npg and its {len(MATH)} math modules": f"from npg import {', '.join(MATH)}",
    "npg.runner.command_line, all of a run script": "import npg.runner.command_line",
}
PROGRAM = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def seconds_to(statement, bytecode):
    """Seconds that an import statement takes in a new interpreter. The folder `bytecode` keeps the bytecode."""
    env = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", PROGRAM.format(statement)]
    return float(subprocess.run(command, env=env, capture_output=True, check=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=at_least(1), default=20, help="processes per import, in turns (20)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as bytecode:
        turns = [[seconds_to(statement, bytecode) for statement in IMPORTS.values()] for _ in range(args.rounds + 1)]
    times = dict(zip(IMPORTS, np.transpose(turns[1:])))  # the first turn compiles
    print(machine("numpy", "gymnasium"), "\n")
    print("| import | ms (quartiles) | times numpy's (quartiles) |")
    print("|---|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {with_spread(1e3 * seconds)} | {with_spread(seconds / times['numpy'], '{:.2f}')} |")


if __name__ == "__main__":
    main()
