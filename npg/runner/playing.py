"""Plays with a policy without learning: evaluations on unseen episodes, films, and the candidates of a search.

`Player` plays the policy of a run. These episodes have their own seeds. `policy_evaluator` plays the candidates of a
search.
"""

import functools
from typing import NamedTuple

import numpy as np

from npg.exploration import exploring
from npg.gradient_free import evaluate_each
from npg.rollout import play
from npg.runner.environments import freeze_normaliser, merge, normalised
from npg.runner.workers import kept

POINT, CONFIRMING, COMMAND, FILM, FINAL, MORE, GREEDY, MORE_GREEDY = range(8)  # purposes; each has its own seeds
EVALUATE = 2  # a purpose of random numbers; the others are in `npg.runner.task`
ACT = {"most-likely": 0.0, "sharpened": 0.6, "sampled": 1.0}  # temperature of a policy that only plays


class Player:
    """Plays episodes that training never sees.

    task       an `npg.runner.task.Task`: makes the environments, and has the moments of the observations
    learner    an `npg.runner.task.Learner`: has the policy that plays
    """

    def __init__(self, task, learner):
        self.task, self.learner, self.envs = task, learner, {}

    def actor(self, how, seeds):
        """Returns act(obs) of the policy. `how` is a value of the setting `act`; `seeds` seed its random numbers."""
        temperature = ACT[how]
        policy = self.learner.policy
        if temperature not in (0, 1):
            policy = exploring(policy, temperature=temperature)
        rng = np.random.default_rng([*seeds, 1]) if temperature else None
        return functools.partial(policy.act, self.learner.theta, rng=rng)

    def returns(self, n, how, *stream):
        """Plays n unseen episodes: (returns [n], cost in steps). The run's seed and `stream` are their seeds.

        how   the way in which the policy acts, a value of the setting `act`

        If one call computes a step of all n environments, this call costs `task.call_cost` steps, whatever n is.
        """
        task, seeds = self.task, (self.task.seed, EVALUATE, *stream)
        if task.cluster and not task.obs_rms:
            return parallel_play(task.cluster, task.make_envs, self.actor, how, n, task.workers, *seeds)
        rounds = -(-n // (task.at_a_time or n))
        n_envs = -(-n // rounds)  # 10 episodes, at most 6 at a time: 5 environments, and about two episodes in each
        envs = self.envs[n_envs] = self.envs.get(n_envs) or task.open(task.make_envs, n_envs)
        if task.obs_rms:
            freeze_normaliser(envs, task.obs_rms)
        with np.errstate(all="ignore"):  # NaN or Inf ends a run with its own message
            returns, lengths = play(envs, self.actor(how, seeds), n, *seeds)
        cost = task.step_cost * lengths.sum() if task.at_a_time else task.call_cost * lengths.max()
        return returns, int(cost)

    def cost(self, n, length):
        """The expected cost of `returns`, if all n episodes have this length."""
        if self.task.cluster and not self.task.obs_rms:
            return -(-n // self.task.workers) * length
        return (self.task.step_cost * n if self.task.at_a_time else self.task.call_cost) * length

    def frames(self, mode):
        """Plays and renders one episode. Yields (picture by `render`, frames per second) before each step."""
        env, moments, over = self.task.open(self.task.make_env, mode), self.task.obs_rms, False
        fps = env.metadata.get("render_fps")
        fps = fps if isinstance(fps, (int, float)) and 0.01 < fps < 1000 else 30
        seeds = self.task.seed, EVALUATE, 0, FILM
        act = self.actor(self.task.act, seeds)
        obs, _ = env.reset(seed=int(np.random.default_rng(seeds).integers(2**31)))
        while not over:
            yield env.render(), fps
            if moments:
                obs = normalised(obs, moments.mean, moments.var)
            obs, _, terminated, truncated, _ = env.step(act(obs))
            over = terminated or truncated


def play_chunk(make_envs, act, n, seeds):
    """Plays one episode in each of n new environments: (returns [n], lengths [n])."""
    return play(make_envs(n), act, n, *seeds)


def parallel_play(executor, make_envs, actor, how, episodes, n, *seeds):
    """Plays an evaluation in n chunks, one per worker: (returns [episodes], cost). `make_envs` must be picklable.

    The cost is the number of steps in the chunk with the most steps.
    """
    sizes = [len(part) for part in np.array_split(np.arange(episodes), n) if len(part)]
    streams = [(*seeds, j) for j in range(len(sizes))]
    acts = [actor(how, stream) for stream in streams]
    returns, lengths = zip(*executor.map(functools.partial(play_chunk, make_envs), acts, sizes, streams))
    return np.concatenate(returns), int(max(part.sum() for part in lengths))


class Evaluations(NamedTuple):
    """The episodes of one iteration of a search: n per candidate, P candidates. Names as in `npg.rollout.Rollout`."""

    obs: np.ndarray  # [P, n_obs], the mean observation of each candidate
    rew: np.ndarray  # [P, n], the sum of rewards of each episode
    episode_returns: list
    episode_lengths: list
    env_steps: int


def policy_evaluator(policy, make_env, n_episodes, rng, obs_rms=None, common=True, executor=None):
    """Returns evaluate(thetas) for `search`: the mean undiscounted return of each candidate over `n_episodes` episodes.

    The candidates play their most likely actions.

    make_env   make_env() → one environment; each process calls it once
    obs_rms    running moments of the observations, a Gymnasium `RunningMeanStd`, or None. The moments of earlier
               iterations normalise the observations that the policies see
    common, executor   as in `npg.gradient_free.evaluator`
    """

    if executor:
        play = functools.partial(play_in_worker, str(make_env), make_env)
    else:
        env = functools.cache(make_env)  # the first call makes the environment
        play = lambda *arguments: play_episodes(env(), *arguments)

    def evaluate(thetas):
        f = functools.partial(play, policy, n_episodes, obs_rms and (obs_rms.mean, obs_rms.var))
        rew, lengths, mean, var, count = map(np.array, zip(*evaluate_each(f, thetas, rng, common, executor)))
        if obs_rms:
            for of_one_candidate in zip(mean, var, count.tolist()):
                merge(obs_rms, of_one_candidate)
        rollout = Evaluations(mean, rew, rew.ravel().tolist(), lengths.ravel().tolist(), int(lengths.sum()))
        return rew.mean(axis=1), {"rollout": rollout}

    return evaluate


def play_episodes(env, policy, n, moments, theta, seed):
    """Plays n episodes: (returns [n], lengths [n], mean, variance [n_obs] and number of their observations).

    All returns are NaN if any observation is not finite.
    """
    returns, lengths, seen = np.zeros(n), np.zeros(n, np.int64), []
    for i, episode_seed in enumerate(np.random.default_rng(seed).integers(2**31, size=n).tolist()):
        obs, _ = env.reset(seed=episode_seed)
        over = False
        while not over:
            seen.append(np.array(obs))  # a copy: some environments use their array again
            if moments:
                obs = normalised(obs, *moments)
            obs, rew, terminated, truncated, _ = env.step(policy.act(theta, obs))
            over = terminated or truncated
            returns[i] += rew
            lengths[i] += 1
    seen = np.array(seen, np.float64)
    if not np.isfinite(seen).all():
        returns[:] = np.nan
    return returns, lengths, seen.mean(axis=0), seen.var(axis=0), len(seen)


def play_in_worker(key, make_env, *arguments):
    """`play_episodes` in an environment that this process makes once and then keeps."""
    return play_episodes(kept(key, make_env), *arguments)
