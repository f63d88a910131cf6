"""Playing with a policy: candidates of a search, evaluations that training never sees, films.

`Player` plays a run's policy in episodes of their own seeds, `policy_evaluator` the candidates of a search.
"""

import functools
from typing import NamedTuple

import numpy as np

from npg.exploration import exploring
from npg.gradient_free import evaluate_each
from npg.rollout import play
from npg.runner.environments import freeze_normaliser, merge, normalised
from npg.runner.workers import kept

CALL = 4  # training takes 16 to 25 µs for a step of CartPole, an evaluation 70 to 100 µs for a step of 10 or 100
POINT, CONFIRMING, COMMAND, FILM, FINAL, MORE, GREEDY, MORE_GREEDY = range(8)  # what is played for: its random numbers
EVALUATE = 2  # what a stream of random numbers is for; see `npg.runner.task`
ACT = {"most-likely": 0.0, "sharpened": 0.6, "sampled": 1.0}  # temperature of the policy where it only plays


class Player:
    """Plays episodes that training never sees.

    task       `npg.runner.task.Task`: how environments are made, and the moments of its observations
    learner    `npg.runner.task.Learner`: whose policy plays
    """

    def __init__(self, task, learner):
        self.task, self.learner, self.envs = task, learner, {}

    def actor(self, how, seeds):
        """act(obs) of the policy, acting as the setting `act` says; its random numbers follow from `seeds`."""
        temperature = ACT[how]
        policy = exploring(self.learner.policy, temperature=temperature) if temperature else self.learner.policy
        rng = np.random.default_rng([*seeds, 1]) if temperature else None
        return functools.partial(policy.act, self.learner.theta, rng=rng)

    def returns(self, n, how, *stream):
        """(returns [n] of unseen episodes, their cost in steps): they follow from the run's seed and `stream`.

        how   what the policy does: a value of the setting `act`

        Where all n environments are computed at once, a call counts as `CALL` steps, however many they are.
        """
        task, seeds = self.task, (self.task.seed, EVALUATE, *stream)
        if task.cluster and not task.obs_rms:
            return parallel_play(task.cluster, task.make_envs, self.actor, how, n, task.workers, *seeds)
        n_envs = min(n, task.at_a_time or n)
        envs = self.envs[n_envs] = self.envs.get(n_envs) or task.make_envs(n_envs)
        if task.obs_rms:
            freeze_normaliser(envs, task.obs_rms)
        with np.errstate(all="ignore"):  # what is not finite ends a run with a message of its own
            returns, lengths = play(envs, self.actor(how, seeds), n, *seeds)
        return returns, int(lengths.sum() if task.at_a_time else CALL * lengths.max())

    def frames(self, mode):
        """One episode, played and rendered: yields what `render` gives before each step, and the frames a second."""
        env, moments, over = self.task.make_env(mode), self.task.obs_rms, False
        seeds = self.task.seed, EVALUATE, 0, FILM
        act = self.actor(self.task.act, seeds)
        obs, _ = env.reset(seed=int(np.random.default_rng(seeds).integers(2**31)))
        while not over:
            yield env.render(), env.metadata.get("render_fps", 30)
            if moments:
                obs = normalised(obs, moments.mean, moments.var)
            obs, _, terminated, truncated, _ = env.step(act(obs))
            over = terminated or truncated
        env.close()


def play_chunk(make_envs, act, n, seeds):
    """Returns [n] and lengths [n] of one episode in each of n environments."""
    return play(make_envs(n), act, n, *seeds)


def parallel_play(executor, make_envs, actor, how, episodes, n, *seeds):
    """(returns [episodes], cost) of an evaluation in n chunks, each by a worker; make_envs(number) has to pickle."""
    sizes = [len(part) for part in np.array_split(np.arange(episodes), n) if len(part)]
    streams = [(*seeds, j) for j in range(len(sizes))]
    acts = [actor(how, stream) for stream in streams]
    returns, lengths = zip(*executor.map(functools.partial(play_chunk, make_envs), acts, sizes, streams))
    return np.concatenate(returns), int(max(part.sum() for part in lengths))


class Evaluations(NamedTuple):
    """What the P candidates of an iteration met in n episodes each; named as in `npg.rollout.Rollout`."""

    obs: np.ndarray  # [P, n_obs], each candidate's mean
    rew: np.ndarray  # [P, n], summed over each episode
    episode_returns: list
    episode_lengths: list
    env_steps: int


def policy_evaluator(policy, make_env, n_episodes, rng, obs_rms=None, common=True, executor=None):
    """evaluate(thetas) for `search`: mean undiscounted return of each policy's most likely actions in `n_episodes`.

    make_env   a function that makes one environment, once in each process
    obs_rms    running moments of the observations, a Gymnasium `RunningMeanStd`: the policies see observations with
               mean and variance removed, by the moments of earlier iterations. Or None
    common, executor   as in `evaluator`
    """

    if executor:
        play = functools.partial(play_in_worker, str(make_env), make_env)
    else:
        env = functools.cache(make_env)  # made at the first call
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
    """Returns [n] and lengths [n] of n episodes; mean, variance [n_obs] and number of their observations.

    All returns are NaN if any observation is not finite.
    """
    returns, lengths, seen = np.zeros(n), np.zeros(n, np.int64), []
    for i, episode_seed in enumerate(np.random.default_rng(seed).integers(2**31, size=n).tolist()):
        obs, _ = env.reset(seed=episode_seed)
        over = False
        while not over:
            seen.append(obs)
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
    """`play_episodes` in an environment that this process makes once and keeps."""
    return play_episodes(kept(key, make_env), *arguments)
