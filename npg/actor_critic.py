"""Actor-critic: a learned value replaces the return of a single rollout.

`actor_critic`    the five steps of the slide "Actor-Critic", with one-step advantages
`a2c`             one gradient for actor and critic, advantages by GAE(λ) (`returns.gae`), entropy bonus
`q_actor_critic`  Q_w(s, a) replaces the return

All of them drop the γᵗ of `returns.discounted_reward_to_go`, as most code does. They divide by the number of steps. The
lecture divides by N trajectories, but the rows of a rollout are usually not a whole number of trajectories.
"""

import numpy as np

from npg import returns
from npg.baselines import fit_value, fitted_v_iteration, minibatches
from npg.distributions import Categorical, log_softmax
from npg.optimizers import clip_norm


def actor_critic(
    sampler,
    model,
    theta,
    optimizer,
    critic_optimizer,
    *,
    n_steps=32,
    gamma=0.99,
    estimation="mc",
    epochs=5,
    batch_size=128,
    proximal=0.0,
    gradient_steps=4,
    standardise=True,
    entropy_coef=0.0,
    max_grad_norm: float | None = None,
):
    """The lecture's five steps, repeated. θ is improved in place. Never ends; the caller stops.

    `standardise` shifts and scales the advantages of step 3 to mean 0 and standard deviation 1, unlike the slide.

    Yields the measures of each update: "rollout", "grad_norm" and, after the step, "entropy". Raises ValueError for an
    unknown `estimation`.

    V is fitted to the same steps that step 4 uses, so subtracting V(s) has a bias. `StateBaseline` and `a2c` avoid it.

    model       `ActorCritic` or `SharedActorCritic`. In the shared design, step 2 also changes the policy, through the
                shared parameters. The gradient of step 4 is then slightly off-policy
    estimation  how V is fitted. "mc": regression on the return (bootstrapped where the rows end), with `epochs` passes
                in minibatches of `batch_size`. "td": `epochs` fitted V iterations, each with `gradient_steps` steps on
                all the data; the term with λ = `proximal` keeps θ near its last value
    """
    if estimation not in ("mc", "td"):
        raise ValueError(f"estimation: expected 'mc' or 'td', got {estimation!r}")
    while True:
        # 1. sample trajectories by running the current policy
        rollout = sampler.steps(model, theta, n_steps)
        # 2. fit V by MC or TD estimation
        if estimation == "mc":
            val = model.value(theta, rollout.obs)
            ret = returns.n_step_return(rollout.rew, rollout.terminated, rollout.truncated, val, gamma, n_steps)
            obs, _, target = rollout.flatten(ret)
            fit_value(model, theta, critic_optimizer, obs, target, sampler.rng, epochs, batch_size)
        else:
            fitted_v_iteration(model, theta, critic_optimizer, rollout, gamma, proximal, epochs, gradient_steps)
        # 3. advantages A = r + γ V(s') − V(s)
        val = model.value(theta, rollout.obs)
        obs, act, adv = rollout.flatten(returns.td_error(rollout.rew, rollout.terminated, val, gamma))
        if standardise:
            adv = returns.standardise(adv)
        # 4. the policy gradient
        dtheta = model.grad_log_prob(theta, obs, act, adv / len(adv), entropy_coef / len(adv))
        norm = clip_norm(dtheta, max_grad_norm)
        # 5. θ' = θ + α ∇U
        optimizer.step(theta, dtheta)
        yield {"rollout": rollout, "grad_norm": norm, "entropy": model.entropy(theta, obs).mean()}


def advantage_gradient(rollout, model, theta, gamma, lam, value_coef, entropy_coef, standardise):
    """∇_θ of 1/B Σ [ log π(a|s) Â + β H − c ½ (R − V(s))² ] over a rollout's B steps [size], and measures at θ.

    Â is the GAE(λ) advantage, and R = Â + V. Both are held fixed. `standardise` changes only the factor of log π. With
    λ = 1, Â is Algorithm S3's R − V: the longest n-step advantage that the rollout allows. β is `entropy_coef`, and c
    is `value_coef`.
    """
    params, val = model.params_and_value(theta, rollout.obs)
    adv = returns.gae(rollout.rew, rollout.terminated, rollout.truncated, val, gamma, lam)
    entropy = model.distribution.entropy(params[:-1])
    obs, act, adv, ret, val, entropy = rollout.flatten(adv, adv + val[:-1], val[:-1], entropy)
    psi = returns.standardise(adv) if standardise else adv
    n = len(obs)
    dtheta = model.gradient(theta, obs, act, psi / n, value_coef * (ret - val) / n, entropy_coef / n)
    return dtheta, {"entropy": float(entropy.mean()), "explained_variance": returns.explained_variance(ret, val)}


def a2c(
    sampler,
    model,
    theta,
    optimizer,
    *,
    n_steps=16,
    gamma=0.99,
    lam=0.95,
    value_coef=0.5,
    entropy_coef=0.0,
    standardise=False,
    max_grad_norm: float | None = 0.5,
):
    """Synchronous advantage actor-critic (Mnih et al. 2016, without asynchronous updates): one gradient per rollout.

    `npg.a3c` has the version with several workers and the asynchronous version.
    """
    while True:
        rollout = sampler.steps(model, theta, n_steps)
        dtheta, measures = advantage_gradient(
            rollout, model, theta, gamma, lam, value_coef, entropy_coef, standardise
        )
        norm = clip_norm(dtheta, max_grad_norm)
        optimizer.step(theta, dtheta)
        yield {"rollout": rollout, "grad_norm": norm, **measures}


class DiscreteQ:
    """Q_w(s, a) for |A| actions: a network with one output per action."""

    def __init__(self, network):
        self.network, self.size = network, network.size

    def init(self, rng, dtype=np.float32):
        """A new w [size], for which Q_w(s, a) is near 0."""
        return self.network.init(rng, output_gain=0.01, dtype=dtype)

    def value(self, w, obs, act):
        """Q_w(s, a) [...]."""
        return np.take_along_axis(self.network.forward(w, obs)[0], act[..., None], axis=-1)[..., 0]

    def state_value(self, w, obs, policy, theta, rng):
        """V(s) = Σ_a π_θ(a|s) Q_w(s, a) [...], exactly. ValueError if π is not a softmax over the same actions."""
        (logits, _), (q, _) = policy.params(theta, obs), self.network.forward(w, obs)
        if logits.shape != q.shape or not isinstance(policy.distribution, Categorical):
            found = f"{type(policy.distribution).__name__}, {logits.shape}"
            raise ValueError(f"policy: expected a Categorical, one preference per action, {q.shape}, got {found}")
        return (np.exp(log_softmax(logits)) * q).sum(axis=-1)

    def grad_loss(self, w, obs, act, target):
        """Σ (Q_w(s, a) − target) ∇_w Q_w(s, a) [size], the gradient of ½ Σ (Q_w(s, a) − target)²."""
        q, cache = self.network.forward(w, obs)
        dq = np.zeros_like(q)
        taken = act[..., None]
        np.put_along_axis(dq, taken, np.take_along_axis(q, taken, axis=-1) - target[..., None], axis=-1)
        return self.network.backward(w, cache, dq, want_dx=False)[0]


class ContinuousQ:
    """Q_w(s, a) for actions in Rⁿ: a network with the pair (s, a) as input and one output."""

    def __init__(self, network, n_samples=8):
        self.network, self.size, self.n_samples = network, network.size, n_samples

    init = DiscreteQ.init

    def value(self, w, obs, act):
        """Q_w(s, a) [...]."""
        return self.network.forward(w, np.concatenate([obs, act], axis=-1))[0][..., 0]

    def state_value(self, w, obs, policy, theta, rng):
        """V(s) = E_{a∼π_θ(·|s)} Q_w(s, a) [...], estimated by the mean over `n_samples` new actions per state."""
        return np.mean([self.value(w, obs, policy.act(theta, obs, rng)) for _ in range(self.n_samples)], axis=0)

    def grad_loss(self, w, obs, act, target):
        """Σ (Q_w(s, a) − target) ∇_w Q_w(s, a) [size], the gradient of ½ Σ (Q_w(s, a) − target)²."""
        q, cache = self.network.forward(w, np.concatenate([obs, act], axis=-1))
        return self.network.backward(w, cache, q - target[..., None], want_dx=False)[0]


def q_actor_critic(
    sampler,
    policy,
    theta,
    optimizer,
    critic,
    w,
    critic_optimizer,
    *,
    n_steps=64,
    gamma=0.99,
    iterations=4,
    epochs=2,
    batch_size=128,
    subtract_value=True,
    standardise=True,
    entropy_coef=0.0,
    max_grad_norm: float | None = None,
):
    """Q actor-critic: Δθ = α ∇log π(a|s) Q_w(s, a). TD learns Q_w on-policy. θ and w are improved in place.

    The TD target is r + γ V(s'), with V(s') = Σ_b π(b|s') Q_w(s', b) (expected Sarsa). Each of `iterations` regressions
    recomputes the target and holds it fixed. With `subtract_value` the weight is Q_w(s, a) − V(s). If w did not
    depend on these actions, V would be a baseline of the state and the mean of the gradient would not change. But w
    was just fitted to the same steps, so the mean changes a little. `standardise` then shifts and scales the weights to
    mean 0 and standard deviation 1.
    """
    while True:
        rollout = sampler.steps(policy, theta, n_steps)
        obs, act, rew, terminated, following = rollout.flatten(rollout.rew, rollout.terminated, rollout.obs[1:])
        for _ in range(iterations):
            target = rew + gamma * ~terminated * critic.state_value(w, following, policy, theta, sampler.rng)
            for batch in minibatches(len(obs), batch_size, epochs, sampler.rng):
                dw = critic.grad_loss(w, obs[batch], act[batch], target[batch]) / len(batch)
                critic_optimizer.step(w, -dw)
        psi = critic.value(w, obs, act)
        if subtract_value:
            psi = psi - critic.state_value(w, obs, policy, theta, sampler.rng)
        if standardise:
            psi = returns.standardise(psi)
        dtheta = policy.grad_log_prob(theta, obs, act, psi / len(psi), entropy_coef / len(psi))
        norm = clip_norm(dtheta, max_grad_norm)
        optimizer.step(theta, dtheta)
        yield {"rollout": rollout, "grad_norm": norm, "entropy": policy.entropy(theta, obs).mean()}
