#!/usr/bin/env python
"""Kills workers of short runs, or their parent, at random moments by SIGKILL, many times. All must end as promised.

    python tests/stress.py [--kills 200] [--synchronous-kills 200] [--parents 30] [--seed 0]

Asynchronous (A3C), under each start method: a run ends with all its steps made. If all attempts of one call were
killed, the run ends with a WorkerError. In both cases:

- The run ends in time, and no process is left.
- θ and the optimizer's memory are finite. Their distance from the start is not larger than the counted updates allow.
- The counted steps are the steps of the environments, except for at most one segment per kill.

Synchronous (A2C): θ is bit for bit the θ of the run without a kill.

The parent is killed while its workers run, are stopped, or hold the GIL. After 5 s, no process and no shared memory is
left. (On systems other than Linux: only while the workers run.)
"""

import argparse
import collections
import functools
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from npg.a3c import actor_learner, parallel_a2c, rollout_gradient
from npg.distributions import Categorical
from npg.network import MLP
from npg.optimizers import RMSProp, state
from npg.policy import ActorCritic, Critic, Policy
from npg.rollout import Sampler
from npg.runner.actors import Actor, Gradients, rounds, share, start_pool
from npg.runner.environments import ReplayableVectorEnv, make_envs
from npg.runner.workers import Pool, WorkerError

WORKERS, ENVS, T_MAX, STEPS, ROUND, RATE = 2, 2, 8, 3000, 500, 1e-3
MODEL = ActorCritic(Policy(MLP((4, 32, 2)), Categorical(2)), Critic(MLP((4, 32, 1))))
SECONDS_BETWEEN_KILLS = {"fork": 0.1, "forkserver": 1.0, "spawn": 1.0}  # a little longer than a process takes to start
LIMIT = 60  # seconds a run may take
UPDATES, RETRIES = 150, 20  # of a synchronous run
FAULTS = "spin", "stop", "hold_gil"  # of tests/runner/faults.py
TESTS = pathlib.Path(__file__).resolve().parent


class CountingSampler(Sampler):
    """Adds a byte to a file for each step made."""

    def segment(self, *args):
        rollout = super().segment(*args)
        with open(self.file, "ab", buffering=0) as file:
            file.write(b"." * rollout.env_steps)
        return rollout


def make_sampler(file, *seeds):
    sampler = CountingSampler(make_envs("CartPole-v1", ENVS), *seeds)
    sampler.file = file
    return sampler


class Killer(threading.Thread):
    """Kills a random worker process at random moments, until `over` is set. It makes at most `limit` kills."""

    def __init__(self, rng, seconds):
        super().__init__(daemon=True)
        self.rng, self.seconds, self.over, self.kills, self.limit = rng, seconds, threading.Event(), 0, float("inf")

    def run(self):
        while not self.over.wait(self.rng.exponential(self.seconds)):
            processes = multiprocessing.active_children()
            if processes and self.kills < self.limit:
                self.rng.choice(processes).kill()
                self.kills += 1


def one_run(method, seed, folder):
    """Trains asynchronously: (kills, replaced processes, 1 if a WorkerError ended the run, else 0)."""
    rng, file = np.random.default_rng(seed), folder / f"{seed}"
    file.touch()
    theta = MODEL.init(rng)
    shared = share(theta, RMSProp(theta, RATE), WORKERS)
    sampler, learn = functools.partial(make_sampler, str(file)), functools.partial(actor_learner, n_steps=T_MAX)
    actors = [Actor(f"stress {seed} {k}", sampler, learn, MODEL, (seed,), k) for k in range(WORKERS)]
    killer = Killer(rng, SECONDS_BETWEEN_KILLS[method])
    gave_up, counted = False, 0
    with start_pool(actors, shared, start_method=method, timeout=10) as pool:
        killer.start()
        try:
            for update in rounds(pool, shared, report_every=ROUND):
                counted += update["rollout"].env_steps
                assert counted == shared.steps.sum(), f"{counted} steps reported, {shared.steps.sum()} counted"
                if counted >= STEPS:
                    break
        except WorkerError:
            gave_up = True
        killer.over.set()
        killer.join()
    lost = file.stat().st_size - shared.steps.sum()
    assert 0 <= lost <= killer.kills * T_MAX * ENVS, f"{lost} steps lost by {killer.kills} kills"
    reach = RATE / np.sqrt(1 - 0.99) * (shared.updates.sum() + killer.kills)
    assert np.abs(shared.theta - theta).max() <= reach, "theta is corrupt"
    for array in (shared.theta, *state(shared.optimizers[0]).values()):
        assert np.isfinite(array).all(), "NaN or Inf"
    assert not multiprocessing.active_children(), "a process is left"
    return killer.kills, pool.restarted, int(gave_up)


def replayable(*seeds):
    make = functools.partial(make_envs, "CartPole-v1", ENVS)
    probe = make()
    return Sampler(ReplayableVectorEnv(make, ENVS, probe.single_observation_space, probe.single_action_space), *seeds)


def one_synchronous_run(method, seed, seconds):
    """Makes UPDATES synchronous updates, with a kill every `seconds` on average: (θ, kills, replaced processes)."""
    rng = np.random.default_rng(seed)
    theta = MODEL.init(rng)
    learn, name = functools.partial(rollout_gradient, n_steps=T_MAX), f"synchronous {seed} {seconds}"
    actors = [Actor(name, replayable, learn, MODEL, (seed,), k) for k in range(WORKERS)]
    killer = Killer(rng, seconds)
    with Pool(WORKERS, method, timeout=10, retries=RETRIES) as pool:
        killer.start()
        updates = parallel_a2c(Gradients(pool, actors), theta, RMSProp(theta, RATE))
        for _ in range(UPDATES):
            killer.limit = killer.kills + RETRIES  # on a busy machine, all kills may hit one call
            next(updates)
        killer.over.set()
        killer.join()
        replaced = pool.restarted
    assert not multiprocessing.active_children(), "a process is left"
    return theta, killer.kills, replaced


def synchronous(method, seed):
    """Checks that kills do not change θ, bit for bit: (kills, replaced processes)."""
    undisturbed, *_ = one_synchronous_run("fork", seed, 1e9)
    theta, kills, replaced = one_synchronous_run(method, seed, SECONDS_BETWEEN_KILLS[method])
    assert np.array_equal(theta, undisturbed), f"seed {seed}: θ is another one after {kills} kills"
    return kills, replaced


def kill_a_parent(method, fault, folder):
    """Kills a parent while its two workers are in a fault. After 5 s, no process and no shared memory may be left."""
    shared_memory = lambda: {path.name for path in pathlib.Path("/dev/shm").glob("p[sy]m*")}
    before, path = shared_memory(), folder / f"{time.monotonic_ns()}"
    command = [sys.executable, str(TESTS / "runner" / "faults.py"), method, str(path), fault, fault]
    env = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    parent = subprocess.Popen(command, env=env, start_new_session=True)
    files = [pathlib.Path(f"{path}{k}") for k in range(2)]
    while not all(file.exists() for file in files):
        time.sleep(0.01)
    time.sleep(0.1)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 5
    while left := processes_of(parent.pid):
        assert time.monotonic() < end, f"{method}, {fault}: {left} live on without their parent"
        time.sleep(0.01)
    assert shared_memory() <= before, "shared memory is left"


def processes_of(session):
    """Ids of the living processes of a session."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session, *_ = path.read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if int(its_session) == session and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def alarm_after(seconds):
    """A timer that ends the program, unless it is cancelled before."""
    alarm = threading.Timer(seconds, lambda: (print("FAILED: a run hangs", flush=True), os._exit(1)))
    alarm.daemon = True  # an exception ends the program at once
    alarm.start()
    return alarm


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="in all, at least (200)")
    parser.add_argument("--synchronous-kills", type=int, default=200, help="in all, at least (200)")
    parser.add_argument("--parents", type=int, default=30, help="killed in each state of their workers (30)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started, total = time.perf_counter(), collections.Counter()
    share_of = {"fork": 0.8, "forkserver": 0.1, "spawn": 0.1}  # of the kills; fresh interpreters start slowly
    with tempfile.TemporaryDirectory() as folder:
        for method, part in share_of.items():
            here = collections.Counter()
            while here["kills"] < part * args.kills:
                alarm = alarm_after(LIMIT)
                run = total["runs"] + here["runs"]
                kills, replaced, gave_up = one_run(method, args.seed + run, pathlib.Path(folder))
                alarm.cancel()
                here.update(runs=1, kills=kills, replaced=replaced, gave_up=gave_up)
            print(f"{method}: {dict(here)}", flush=True)
            total += here
        for method, part in share_of.items():
            here = collections.Counter()
            while here["kills"] < part * args.synchronous_kills:
                alarm = alarm_after(2 * LIMIT)
                kills, replaced = synchronous(method, args.seed + here["runs"])
                alarm.cancel()
                here.update(runs=1, kills=kills, replaced=replaced)
            print(f"synchronous, {method}: {dict(here)}, every θ as without", flush=True)
        for fault in FAULTS if sys.platform == "linux" else FAULTS[:1]:
            methods = [("fork", "spawn")[k % 2] for k in range(args.parents)]  # the fork server is itself a parent
            for method in methods:
                alarm = alarm_after(LIMIT)
                kill_a_parent(method, fault, pathlib.Path(folder))
                alarm.cancel()
            print(f"parents killed while workers {fault}: {len(methods)}, nothing is left", flush=True)
    print(f"all: {dict(total)}, {time.perf_counter() - started:.0f} s: every run ended as promised")


if __name__ == "__main__":
    sys.exit(main())
