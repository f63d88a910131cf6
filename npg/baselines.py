"""Baselines b, which are subtracted from the weight Ψ to lower the variance of ĝ.

A baseline that is independent of the actions whose weight it corrects leaves the mean of ĝ unchanged:

    ĝ = 1/N Σ_i Σ_t ∇_θ log π_θ(a_t|s_t) (Ψ_t − b),     since E[∇ log P(τ) b] = b ∇ Σ_τ P(τ) = 0

Slides "Reducing variance by subtracting a baseline" and "Baseline choices". Each baseline is a function
`baseline(policy, theta, rollout, psi)`. It takes N complete episodes (`Sampler.episodes`) and their weights psi [T, N].
It returns b, which broadcasts to [T, N].

A baseline computed from the same N trajectories that it corrects is correlated with them. If b is the mean of all N,
the expected estimate is only (N−1)/N of the gradient, because every trajectory subtracts 1/N of itself.
`leave_one_out` and `StateBaseline` avoid this bias.
"""

import numpy as np


def none(policy, theta, rollout, psi):
    """b = 0."""
    return 0.0


def constant(policy, theta, rollout, psi):
    """b = 1/N Σ_i Ψ_0⁽ⁱ⁾, an estimate of E[R(τ)]: the weight of the first step is the return of the whole trajectory.

    The slide also subtracts this b from G_t. There b is right only at t = 0. Later it can do more harm than good.
    With a single trajectory and Ψ = R(τ), Ψ − b is 0, and nothing is learned.
    """
    return psi[0].mean()


def leave_one_out(policy, theta, rollout, psi):
    """b⁽ⁱ⁾ = 1/(N−1) Σ_{j≠i} Ψ_0⁽ʲ⁾ (Kool et al. 2019): the mean of the other trajectories, independent of the i-th.

    Raises ValueError for a single trajectory.
    """
    n = psi.shape[1]
    if n < 2:
        raise ValueError(f"psi: leave-one-out needs at least 2 trajectories, got {n}")
    return (psi[0].sum() - psi[0]) / (n - 1)


def optimal_constant(policy, theta, rollout, psi):
    """b = E[‖g‖² Ψ_0] / E[‖g‖²],  g = ∇_θ log P(τ) = Σ_t ∇_θ log π_θ(a_t|s_t): the constant of least variance.

    For Ψ = R(τ), this b minimises tr Cov of ∇ log P(τ) (R(τ) − b) (Greensmith et al. 2004; Peters & Schaal 2008). Here
    b is estimated from the same trajectories, so ĝ has a bias of order 1/N. With a single trajectory and Ψ = R(τ),
    Ψ − b is 0, and nothing is learned. The cost is N small backward passes, one score per trajectory.
    """
    squares = np.array([
        np.sum(policy.grad_log_prob(theta, rollout.obs[:-1, i][on], rollout.act[:, i][on], np.ones(on.sum())) ** 2)
        for i, on in enumerate(rollout.valid.T)
    ])
    return np.sum(squares * psi[0]) / max(np.sum(squares), np.finfo(squares.dtype).tiny)


def time_dependent(policy, theta, rollout, psi):
    """b_t = 1/N Σ_i Ψ_t⁽ⁱ⁾. A trajectory that has already ended counts as 0. (The slide's sum lacks the factor 1/N.)

    With a single trajectory, Ψ − b is 0, and nothing is learned.
    """
    return np.where(rollout.valid, psi, 0).mean(axis=1, keepdims=True)


class StateBaseline:
    """b(s) = V_φ(s), fitted to the weights Ψ that followed each state (slide "Estimate state dependent baseline").

    Each call first computes b with the φ fitted to earlier trajectories. Then it fits φ to the present trajectories.
    So b never depends on the actions whose weight it corrects, and ĝ stays unbiased.
    """

    def __init__(self, critic, phi, optimizer, rng, epochs=5, batch_size=512):
        self.critic, self.phi, self.optimizer, self.rng = critic, phi, optimizer, rng
        self.epochs, self.batch_size = epochs, batch_size

    def __call__(self, policy, theta, rollout, psi):
        b = self.critic.value(self.phi, rollout.obs[:-1])
        obs, _, target = rollout.flatten(psi)
        fit_value(self.critic, self.phi, self.optimizer, obs, target, self.rng, self.epochs, self.batch_size)
        return b


def fit_value(critic, phi, optimizer, obs, target, rng, epochs, batch_size):
    """φ ← argmin_φ 1/B Σ (V_φ(s) − target)², by minibatch gradient steps that change φ in place.

    obs [B, n_obs]; target [B], Monte-Carlo returns or bootstrapped returns, held fixed.
    """
    for batch in minibatches(len(obs), batch_size, epochs, rng):
        optimizer.step(phi, -critic.grad_loss(phi, obs[batch], target[batch]) / len(batch))


def fitted_v_iteration(critic, phi, optimizer, rollout, gamma, proximal, iterations, steps):
    """TD estimation of V (slide "Estimate state dependent baseline"): `iterations` fitted V iterations change φ.

        φ_{l+1} = argmin_φ 1/B Σ_{(s,r,s')} (r + γ V_{φ_l}(s') − V_φ(s))² + λ ‖φ − φ_l‖²,     λ = `proximal`

    The slide has no 1/B, so its λ is B times our λ. The slide has γ = 1.

    Each iteration computes the target from φ_l and holds it fixed. Then `steps` gradient steps approach the argmin.
    """
    for _ in range(iterations):
        target = rollout.rew + gamma * ~rollout.terminated * critic.value(phi, rollout.obs[1:])
        obs, _, target = rollout.flatten(target)
        phi_old = phi.copy()
        for _ in range(steps):
            dphi = critic.grad_loss(phi, obs, target) / len(obs)
            optimizer.step(phi, -(dphi + proximal * (phi - phi_old)))


def minibatches(n, size, epochs, rng):
    """Yields batches of shuffled indices. Each epoch uses every index of range(n) once.

    An epoch has `round(n / size)` batches, at least 1, of nearly equal length. If n is 0, there is no batch. Raises
    ValueError for a size below 1.
    """
    if size < 1:
        raise ValueError(f"size: expected at least 1, got {size}")
    if n == 0:
        return
    for _ in range(epochs):
        yield from np.array_split(rng.permutation(n), max(1, round(n / size)))
