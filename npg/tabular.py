"""The lecture's sums over trajectories, computed exactly for a finite MDP. All its trajectories are enumerated.

    U(θ) = Σ_τ P(τ; θ) R(τ),     P(τ; θ) = ρ_0(s_0) Π_t π_θ(a_t|s_t) P(s_{t+1}|s_t, a_t)

U, ∇U, and the mean, bias and covariance of any estimator are exact; nothing is sampled. The estimators are those of the
package: `rollout` returns all K trajectories as the columns of a `Rollout`. From this rollout, `npg.returns`,
`npg.baselines` and `npg.replay` compute their weights. `FiniteMDPVectorEnv` samples from the same MDP.
"""

from typing import NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space

from npg.distributions import draw_index
from npg.rollout import Rollout

MAX_TRAJECTORIES = 1_000_000


class Moments(NamedTuple):
    """An estimator's mean E[ĝ] and bias E[ĝ] − ∇U(θ), both [size], and its covariance [size, size]."""

    mean: np.ndarray
    bias: np.ndarray
    covariance: np.ndarray

    @property
    def variance(self):
        """Var(ĝ) = tr E[(ĝ − E[ĝ]) (ĝ − E[ĝ])ᵀ] (slide "Variance")."""
        return np.trace(self.covariance)


class FiniteMDP:
    """S states, A actions, H = `horizon` steps, and all K possible trajectories s_0, a_0, …, a_{H−1}, s_H.

    P [S, A, S], R [S, A], rho0 [S]    P(s'|s, a), R(s, a), P(s_0)
    terminal [S]                       optional, bool: states that end the episode. P and R are ignored there

    states [K, H+1], actions [K, H]    the trajectories, padded after their end with the terminal state and action 0
    rewards, valid [K, H]              r_t, and whether step t is still within the episode
    dynamics [K]                       ρ_0(s_0) Π_t P(s_{t+1}|s_t, a_t), the factor of P(τ; θ) without θ

    The methods take a `Policy` over A discrete actions, and its θ, float64 (or complex, for the complex step). The
    policy observes a state as a one-hot vector. Raises ValueError if the arrays are not such an MDP, or K > 1,000,000.
    """

    def __init__(self, P, R, rho0, horizon, terminal=None):
        P, R, rho0 = (np.asarray(x, np.float64) for x in (P, R, rho0))
        if P.ndim != 3 or P.shape[0] != P.shape[2]:
            raise ValueError(f"P: expected shape [S, A, S], got {P.shape}")
        terminal = np.zeros(len(P), bool) if terminal is None else np.asarray(terminal, bool)
        for name, x, n_axes in ("R", R, 2), ("rho0", rho0, 1), ("terminal", terminal, 1):
            if x.shape != P.shape[:n_axes]:
                raise ValueError(f"{name}: expected shape {P.shape[:n_axes]} to match P, got {x.shape}")
        for name, x in ("P", P[~terminal]), ("rho0", rho0):
            if np.any(x < 0) or not np.allclose(x.sum(axis=-1), 1, rtol=0, atol=1e-12):
                raise ValueError(f"{name}: expected probabilities that sum to 1 over the last axis, got {x}")
        if rho0[terminal].any():
            raise ValueError(f"rho0: expected no episode to begin in a terminal state, got {rho0}")
        if not np.all(np.isfinite(R[~terminal])):
            raise ValueError(f"R: expected finite rewards, got {R}")
        if horizon < 1:
            raise ValueError(f"horizon: expected at least 1 step, got {horizon}")
        self.n_states, self.n_actions, self.horizon = *P.shape[:2], horizon
        self.P = np.where(terminal[:, None, None], 0, P)  # zeros after the end, so that the values there are 0, too
        self.R = np.where(terminal[:, None], 0, R)
        self.rho0, self.terminal, self.observations = rho0, terminal, np.eye(len(P))
        self.states, self.actions, self.dynamics = self._enumerate()
        self.rewards, self.valid = self.R[self.states[:, :-1], self.actions], ~terminal[self.states[:, :-1]]

    def _enumerate(self):
        """Extends every trajectory, H times, by every (a, s') that is possible in its last state."""
        P, ended = self.P.copy(), np.flatnonzero(self.terminal)
        P[ended, 0, ended] = 1  # a terminal state is padded with itself
        branches = np.count_nonzero(P, axis=(1, 2))
        states = np.flatnonzero(self.rho0)[:, None]
        actions, dynamics = np.empty((len(states), 0), np.int64), self.rho0[states[:, 0]]
        for _ in range(self.horizon):
            if branches[states[:, -1]].sum() > MAX_TRAJECTORIES:
                got = f"got more in {self.horizon} steps"
                raise ValueError(f"horizon: expected at most {MAX_TRAJECTORIES:,} trajectories, {got}")
            parent, act, following = np.nonzero(P[states[:, -1]])
            dynamics = dynamics[parent] * P[states[parent, -1], act, following]
            states, actions = np.c_[states[parent], following], np.c_[actions[parent], act]
        return states, actions, dynamics

    def rollout(self, trajectories=slice(None)):
        """The chosen trajectories (default: all K) as a `Rollout` of N complete episodes, one per column: [H, N]."""
        states, act, rew, valid = (x[trajectories].T for x in (self.states, self.actions, self.rewards, self.valid))
        length = valid.sum(axis=0)
        terminated = np.arange(self.horizon)[:, None] == length - 1
        return Rollout(
            self.observations[states], act, rew, terminated, np.zeros_like(terminated), valid,
            rew.sum(axis=0).tolist(), length.tolist(), int(length.sum()),
        )

    def along(self, table):
        """Reads a table of times and states (and actions) along each trajectory: [T, K].

        table is [T, S] with T ≤ H+1, or [T, S, A] with T ≤ H.
        """
        where = np.arange(len(table))[:, None], self.states.T[: len(table)], self.actions.T[: len(table)]
        return table[where[: table.ndim]]

    def log_policy(self, policy, theta):
        """log π_θ(a|s) [S, A]."""
        if policy.distribution.n != self.n_actions:
            raise ValueError(f"policy: expected {self.n_actions} actions, got {policy.distribution.n}")
        obs = np.repeat(self.observations[:, None], self.n_actions, axis=1)
        return policy.log_prob(theta, obs, np.tile(np.arange(self.n_actions), (self.n_states, 1)))

    def scores(self, policy, theta):
        """∇_θ log π_θ(a|s) [S, A, size]."""
        actions = range(self.n_actions)
        return np.array([[policy.grad_log_prob(theta, s, a, 1.0) for a in actions] for s in self.observations])

    def prob(self, policy, theta):
        """P(τ; θ) = dynamics · Π_t π_θ(a_t|s_t) [K] (slide "Policy objective")."""
        logp = self.log_policy(policy, theta)[self.states[:, :-1], self.actions]
        return self.dynamics * np.exp(np.where(self.valid, logp, 0).sum(axis=1))

    def objective(self, policy, theta, gamma=1.0):
        """U(θ) = Σ_τ P(τ; θ) R(τ),  R(τ) = Σ_t γᵗ r_t."""
        return self.prob(policy, theta) @ self.rewards @ (gamma ** np.arange(self.horizon))

    def gradient(self, policy, theta, gamma=1.0):
        """∇U(θ) = Σ_τ P(τ; θ) R(τ) ∇_θ log P(τ; θ) [size] (slide "Derivatives of the policy objective")."""
        ret = self.rewards @ (gamma ** np.arange(self.horizon))
        return (self.prob(policy, theta) * ret) @ self.estimates(policy, theta, 1.0)

    def values(self, policy, theta, gamma=1.0):
        """Q_t(s, a) [H, S, A] and V_t(s) [H+1, S] by Bellman's equations, backwards from V_H = 0.

            Q_t(s, a) = R(s, a) + γ Σ_s' P(s'|s, a) V_{t+1}(s'),     V_t(s) = Σ_a π_θ(a|s) Q_t(s, a)

        Q and V depend on t, because the number of steps that are left depends on t. U(θ) = ρ_0 · V_0.
        """
        pi = np.exp(self.log_policy(policy, theta))
        Q, V = [], [np.zeros(self.n_states, pi.dtype)]
        for _ in range(self.horizon):
            Q.append(self.R + gamma * self.P @ V[-1])
            V.append((pi * Q[-1]).sum(axis=1))
        return np.array(Q[::-1]), np.array(V[::-1])

    def occupancy(self, policy, theta):
        """P(s_t = s, a_t = a) [H, S, A] for steps within the episode, computed forwards from ρ_0."""
        pi = np.exp(self.log_policy(policy, theta))
        d = [self.rho0[:, None] * pi]
        for _ in range(self.horizon - 1):
            next_state = np.tensordot(d[-1], self.P, axes=2)  # summed over s and a
            d.append((next_state * ~self.terminal)[:, None] * pi)
        return np.array(d)

    def policy_gradient_theorem(self, policy, theta, gamma=1.0):
        """∇U(θ) = Σ_t γᵗ Σ_{s,a} P(s_t = s, a_t = a) Q_t(s, a) ∇_θ log π_θ(a|s) [size], without trajectories.

        Sutton et al. 2000, theorem 1, for a finite horizon.
        """
        Q, _ = self.values(policy, theta, gamma)
        d = gamma ** np.arange(self.horizon)[:, None, None] * self.occupancy(policy, theta)
        return np.tensordot((d * Q).sum(axis=0), self.scores(policy, theta), axes=2)  # summed over s and a

    def estimates(self, policy, theta, weight, trajectories=slice(None)):
        """Σ_t Ψ_t ∇_θ log π_θ(a_t|s_t) for each of M chosen trajectories (default: all K), [M, size]; weight [H, M].

        Weights of 1 give ∇_θ log P(τ; θ), because the dynamics drop out (slide "From trajectories to actions").
        """
        states, act, valid = (x[trajectories].T for x in (self.states[:, :-1], self.actions, self.valid))
        total = np.zeros((valid.shape[1], self.n_states, self.n_actions))  # the factor of each score
        for t, psi in enumerate(np.where(valid, weight, 0)):
            total[np.arange(len(total)), states[t], act[t]] += psi
        return np.tensordot(total, self.scores(policy, theta), axes=2)  # summed over s and a

    def moments(self, policy, theta, weight, n=1, gamma=1.0, prob=None):
        """The exact `Moments` of ĝ = 1/N Σ_i Σ_t Ψ_t⁽ⁱ⁾ ∇_θ log π_θ(a_t⁽ⁱ⁾|s_t⁽ⁱ⁾), N = `n` independent trajectories.

        weight   the weights of every trajectory, [H, K] or a shape that broadcasts to it. A weight that depends on the
                 other N − 1 trajectories is a function: it maps a `Rollout` of N trajectories to [H, N]. It is
                 called for each of the Kᴺ groups
        gamma    the discount of U. The bias is E[ĝ] − ∇U
        prob     [K], the probabilities of the trajectories, if another policy draws them
        """
        prob = self.prob(policy, theta) if prob is None else prob
        if n < 1 or callable(weight) and len(prob) ** n > MAX_TRAJECTORIES:
            raise ValueError(f"n: expected at least 1, and at most {MAX_TRAJECTORIES:,} groups Kᴺ, got {n}")
        if callable(weight):
            groups = np.indices([len(prob)] * n).reshape(n, -1)  # [N, Kᴺ]
            psi = np.stack([np.broadcast_to(weight(self.rollout(k)), (self.horizon, n)) for k in groups.T], axis=-1)
            g = sum(self.estimates(policy, theta, psi[:, i], groups[i]) for i in range(n)) / n
            prob = prob[groups].prod(axis=0)
            n = 1  # each row of g is already the mean of N trajectories
        else:
            g = self.estimates(policy, theta, weight)
        mean = prob @ g
        covariance = (prob[:, None] * (g - mean)).T @ (g - mean) / n
        return Moments(mean, mean - self.gradient(policy, theta, gamma), covariance)


class FiniteMDPVectorEnv(gymnasium.vector.VectorEnv):
    """`num_envs` copies of a `FiniteMDP` as a Gymnasium vector environment: one-hot observations, NEXT_STEP autoreset.

    The horizon belongs to the task, so an episode's last step is `terminated`, never `truncated`.
    """

    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}

    def __init__(self, mdp, num_envs):
        self.mdp, self.num_envs = mdp, num_envs
        self.single_observation_space = gymnasium.spaces.Box(0, 1, (mdp.n_states,), np.float32)
        self.single_action_space = gymnasium.spaces.Discrete(mdp.n_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed=None, options=None):
        """Begins an episode in every environment; returns observations [num_envs, S] and an empty dict."""
        super().reset(seed=seed)
        self.state = self.time = np.zeros(self.num_envs, np.int64)
        self.ended = np.ones(self.num_envs, bool)
        return self.step(self.state)[0], {}  # where an episode has ended, a step begins the next

    def step(self, actions):
        """Returns observations [num_envs, S]; rewards, terminated, truncated [num_envs]; an empty dict."""
        mdp, begins = self.mdp, self.ended
        rew = np.where(begins, 0, mdp.R[self.state, actions])
        self.state = draw_index(np.where(begins[:, None], mdp.rho0, mdp.P[self.state, actions]), self.np_random)
        self.time = np.where(begins, 0, self.time + 1)
        self.ended = ~begins & ((self.time == mdp.horizon) | mdp.terminal[self.state])
        obs = mdp.observations[self.state].astype(np.float32)
        return obs, rew, self.ended, np.zeros(self.num_envs, bool), {}
