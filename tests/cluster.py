"""A real Dask cluster for the tests. The scheduler and each worker run in their own process and talk over TCP."""

import contextlib
import os
import pathlib
import subprocess
import sys
import time

TESTS = pathlib.Path(__file__).parent
LIMIT = 60  # seconds until the cluster must run


@contextlib.contextmanager
def dask_cluster(n, folder):
    """Starts a scheduler and n workers with one thread each, in `folder`. Yields the scheduler's address."""
    from distributed import Client

    path = ":".join(map(str, (TESTS.parent, TESTS, TESTS / "runner")))
    env = {**os.environ, "PYTHONPATH": path, "DASK_DISTRIBUTED__WORKER__DAEMON": "False"}
    file, log = pathlib.Path(folder) / "scheduler.json", open(pathlib.Path(folder) / "log", "w")

    def start(*arguments):
        command = [sys.executable, "-m", *arguments, "--scheduler-file", str(file)]
        return subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log)

    processes = [start("distributed.cli.dask_scheduler", "--host", "tcp://127.0.0.1", "--port", "0", "--no-dashboard")]
    worker = "distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny", "--no-dashboard"
    try:
        end = time.monotonic() + LIMIT
        while not file.exists():
            assert time.monotonic() < end, f"no scheduler; see {log.name}"
            time.sleep(0.02)
        processes += [start(*worker) for _ in range(n)]
        with Client(scheduler_file=file, timeout=LIMIT) as client:
            client.wait_for_workers(n, timeout=LIMIT)
            address = client.scheduler.address
        yield address
    finally:
        for process in processes:
            process.kill()
            process.wait()
        log.close()
