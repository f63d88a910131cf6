"""Collects experience: a ~ π_θ(·|s) in a Gymnasium vector environment, stored in time-major arrays."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import gymnasium
import numpy as np

OWN_REWARD = "npg: own reward"  # name in `info`: the environment's own reward, if a wrapper scales the rewards


class Rollout(NamedTuple):
    """T steps in N environments side by side.

    obs [T+1, N, n_obs]: where `valid`, obs[t+1] is the true successor of obs[t], also at the end of an episode
    act [T, N] or [T, N, n];  rew, terminated, truncated, valid [T, N]

    With Gymnasium's NEXT_STEP autoreset, the row after the end of an episode is the reset. The environment ignores the
    action of this row, and its reward is 0. `valid` is False in such a row. In a rollout of `Sampler.episodes`, `valid`
    is also False in all rows after the environment's one episode.
    """

    obs: np.ndarray
    act: np.ndarray
    rew: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray
    episode_returns: list  # of the episodes that ended in these rows; they may have begun in an earlier rollout
    episode_lengths: list
    env_steps: int  # steps of the environments for this rollout: with discarded steps, without resets
    theta: np.ndarray | None = None  # the parameters that drew the actions: the vector itself, not a copy

    @property
    def done(self):
        """True where an episode ended, by `terminated` or by `truncated`."""
        return self.terminated | self.truncated

    def flatten(self, *arrays):
        """obs, act and further `arrays` [T, N, …] as [B, …]: only valid steps, time and environments in one axis."""
        return tuple(x[self.valid] for x in (self.obs[:-1], self.act, *arrays))


def resets_in_next_step(envs):
    """Whether a vector environment has NEXT_STEP autoreset, Gymnasium's default, or does not say what it has."""
    mode = envs.metadata.get("autoreset_mode")
    return getattr(mode, "value", mode) in ("NextStep", None)


def _check_autoreset(envs):
    if not resets_in_next_step(envs):
        raise ValueError(f"envs: expected NEXT_STEP autoreset, got {envs.metadata['autoreset_mode']}")


class Sampler:
    """Collects rollouts: a given policy acts in a Gymnasium vector environment.

    envs   a `gymnasium.vector.VectorEnv` with NEXT_STEP autoreset and observations [N, n_obs]
    seeds  whole numbers; they alone determine the random numbers of the environments and of the actions. NumPy
           fills fewer than four seeds up with zeros: (3,) and (3, 0) give the same numbers.

    `steps` continues where the last call stopped. `episodes` begins new episodes. The constructor does not use `envs`
    yet: the first rollout resets them.
    """

    def __init__(self, envs, *seeds):
        if not isinstance(envs, gymnasium.vector.VectorEnv):
            raise ValueError(
                f"envs: expected a vector environment, such as gymnasium.make_vec(id, num_envs=8) or "
                f"gymnasium.vector.SyncVectorEnv([make_env] * 8), got {type(envs).__name__}"
            )
        _check_autoreset(envs)
        self.envs, self.rng = envs, np.random.default_rng(seeds)
        self.seed, self.obs = int(self.rng.integers(2**31)), None  # the first rollout resets the environments
        self.ended = np.zeros(self.envs.num_envs, bool)

    def _begin(self, seed=None):
        self.obs, _ = self.envs.reset(seed=seed)
        self.ended = np.zeros(self.envs.num_envs, bool)
        self.unfinished_return = np.zeros(self.envs.num_envs)
        self.unfinished_length = np.zeros(self.envs.num_envs, np.int64)

    def steps(self, policy, theta, n_steps):
        """The next `n_steps` rows; episodes may end and begin in them.

        The row of a reset is no step. So if n_steps is 1 and all environments must be reset, there are two rows.
        """
        if n_steps < 1 or n_steps != int(n_steps):
            raise ValueError(f"n_steps: expected a whole number of at least 1, got {n_steps}")
        n_rows = max(n_steps, 2) if self.ended.all() else n_steps
        return self._collect(policy, theta, lambda rows, finished: len(rows) == n_rows)[0]

    def segment(self, policy, theta, t_max):
        """Algorithm S3's rollout: it stops after t_max steps, or when an episode has ended in every environment."""
        if t_max < 1 or t_max != int(t_max):
            raise ValueError(f"t_max: expected a whole number of at least 1, got {t_max}")
        n_rows = t_max + bool(self.ended.all())  # the row of a reset is not a step
        return self._collect(policy, theta, lambda rows, finished: finished.all() or len(rows) == n_rows)[0]

    def episodes(self, policy, theta):
        """One complete episode in every environment, from row 0 to its end.

        Every environment contributes exactly one episode, so short episodes are not preferred. An environment that
        finishes early goes on until all have finished. These extra steps are discarded, but `env_steps` counts them.
        """
        if self.obs is None:
            self.envs.reset(seed=self.seed)  # only seeds the environments; the next line begins the episodes
        self._begin()
        rollout, own = self._collect(policy, theta, lambda rows, finished: finished.all())
        over = np.cumsum(rollout.done, axis=0) - rollout.done > 0  # an earlier row ended the episode
        first = rollout.done & ~over
        return rollout._replace(
            rew=np.where(over, 0, rollout.rew),
            terminated=rollout.terminated & first,
            truncated=rollout.truncated & first,
            valid=~over,
            episode_returns=np.where(over, 0, own).sum(axis=0).tolist(),
            episode_lengths=(~over).sum(axis=0).tolist(),
        )

    def _collect(self, policy, theta, enough):
        if self.obs is None:
            self._begin(self.seed)
        rows, finished = [], np.zeros_like(self.ended)
        while not enough(rows, finished):
            obs = np.array(self.obs)  # a copy: environments may reuse their buffers
            act = policy.act(theta, obs, self.rng)
            valid = ~self.ended
            self.obs, rew, terminated, truncated, info = self.envs.step(np.array(act))  # which may change this copy
            own = np.array(info.get(OWN_REWARD, rew), np.float64)
            terminated, truncated = terminated & valid, truncated & valid
            rows.append((obs, act, np.array(rew, np.float32), terminated, truncated, own, valid))
            self.ended = terminated | truncated
            finished |= self.ended
        obs, *columns = zip(*rows)
        obs = np.stack([*obs, self.obs])
        act, rew, terminated, truncated, own, valid = map(np.stack, columns)
        rew[~valid] = own[~valid] = 0
        returns, lengths = self._finished_episodes(own, terminated | truncated, valid)
        return Rollout(obs, act, rew, terminated, truncated, valid, returns, lengths, int(valid.sum()), theta), own

    def _finished_episodes(self, rew, done, valid):
        """Returns and lengths of the episodes that end in these rows. Unfinished sums are kept for the next call."""
        ret = self.unfinished_return + np.cumsum(rew, axis=0, dtype=np.float64)
        length = self.unfinished_length + np.cumsum(valid, axis=0)
        before_ret, before_length = np.zeros_like(ret[0]), np.zeros_like(length[0])
        returns, lengths = [], []
        for t, n in zip(*np.nonzero(done)):
            returns.append(float(ret[t, n] - before_ret[n]))
            lengths.append(int(length[t, n] - before_length[n]))
            before_ret[n], before_length[n] = ret[t, n], length[t, n]
        self.unfinished_return, self.unfinished_length = ret[-1] - before_ret, length[-1] - before_length
        return returns, lengths


def joined(rollouts, axis):
    """Joins rollouts into one, along time (axis 0) or along the environments (axis 1). `theta` is the first rollout's.

    Along time, each part keeps its T+1 observations, so the result cannot be flattened.
    """

    def add(parts):
        return np.concatenate(parts, axis) if isinstance(parts[0], np.ndarray) else sum(parts, type(parts[0])())

    return Rollout(*map(add, zip(*(rollout[:-1] for rollout in rollouts))), rollouts[0].theta)


class AheadSampler:
    """Collects the next rollout in threads while the learner uses the last rollout, so that neither waits.

    Each of `samplers` has its own environments and its own thread. While the environments of one sampler make a step,
    the policy computes the actions of another sampler.

    The acting policy is one update older than the learning policy. So only an algorithm with importance weights may
    use this class. Such an algorithm computes log b with the rollout's `theta`.
    """

    def __init__(self, samplers, *seeds):
        self.samplers, self.threads, self.ahead = samplers, ThreadPoolExecutor(len(samplers)), []
        self.rng = np.random.default_rng([*seeds, len(samplers)])  # for the learner; each sampler has its own

    def steps(self, policy, theta, n_steps):
        """The rollouts that the previous call began, with that call's θ and n_steps; the first call uses its own.

        They are those of `Sampler.steps`, joined along the environments.
        """
        if n_steps < 2:  # the environments of one sampler may all end at once; the next row is then no step
            raise ValueError(f"n_steps: expected at least 2 if rollouts are drawn ahead, got {n_steps}")
        self.ahead = self.ahead or self._draw(policy, theta, n_steps)
        rollouts = [part.result() for part in self.ahead]
        self.ahead = self._draw(policy, theta, n_steps)
        return joined(rollouts, axis=1)

    def _draw(self, policy, theta, n_steps):
        theta = theta.copy()
        return [self.threads.submit(sampler.steps, policy, theta, n_steps) for sampler in self.samplers]


def play(envs, act, episodes, *seeds):
    """Plays `episodes` complete episodes; returns only their undiscounted returns and their lengths, each [episodes].

    act(obs) maps observations [N, n_obs] to actions. `seeds` seed the environments. An environment that ends an episode
    begins the next one, if one is left. Every episode that begins is played to its end, so short episodes are not
    preferred.
    """
    _check_autoreset(envs)
    obs, _ = envs.reset(seed=int(np.random.default_rng(seeds).integers(2**31)))
    returns, lengths = np.zeros(episodes), np.zeros(episodes, np.int64)
    episode, begun = np.arange(envs.num_envs), envs.num_envs  # the number of the episode that each environment plays
    ended = np.zeros(envs.num_envs, bool)
    while (episode < episodes).any():
        obs, rew, terminated, truncated, _ = envs.step(act(obs))
        counts = (episode < episodes) & ~ended  # the row of a reset is not a step
        returns[episode[counts]] += rew[counts]
        lengths[episode[counts]] += 1
        ended = (terminated | truncated) & ~ended
        episode[ended] = begun + np.arange(ended.sum())
        begun += ended.sum()
    return returns, lengths
