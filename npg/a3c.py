"""A3C, asynchronous advantage actor-critic: Algorithm S3 (Mnih et al. 2016). Also A2C, the synchronous version.

`algorithm_s3` is the slide, line by line. The functions below it compute their gradient with
`npg.actor_critic.advantage_gradient`. They differ in who applies which gradient, and when.

    actor_critic.a2c         applies the gradient of one rollout
    parallel_a2c             applies the mean of N workers' gradients, all computed at the same θ
    actor_learner            Algorithm S3: each worker applies its own gradient immediately, to a θ in shared memory
    asynchronous_gradients   applies each worker's gradient on arrival; the worker computed it at an earlier θ

They also differ in where a rollout ends. `actor_learner` stops as the slide does (`Sampler.segment`). The others stop
after `n_steps` (`Sampler.steps`).

`npg.runner.actors` decides where a gradient is computed: in this process, in another process, or on a cluster.
"""

from concurrent.futures import FIRST_COMPLETED, wait

import numpy as np

from npg.actor_critic import advantage_gradient
from npg.optimizers import clip_norm
from npg.rollout import joined


def algorithm_s3(env, model, theta, rng, *, t_max, learning_rate, gamma=0.99, value_coef=0.5, entropy_coef=0.0):
    """Algorithm S3 as on the slide: one worker, one environment, one step at a time. Yields T after each update.

    env     a `gymnasium.Env`
    model   an `ActorCritic` or `SharedActorCritic`
    theta   the shared vector that contains θ and θ_v; changed in place

    Differences from the slide:

    - The critic's error must fall, so its gradient is subtracted, not added. Its factor is `value_coef` / 2.
    - The update is the mean over the segment, not the sum.
    - `entropy_coef` adds the entropy term of the slide's note and of the paper's §4.
    - A time limit is not a terminal state, so R = V(s_t) there.
    - There is no t: `len(segment)` is t − t_start. The caller adds up T over the workers, and stops when T > T_max.
    """
    if t_max < 1:
        raise ValueError(f"t_max: expected at least 1, got {t_max}")
    T = 0  # this worker's part of the global shared counter T
    s, _ = env.reset()
    while True:  # repeat
        dtheta = np.zeros_like(theta)  # Reset gradients: dθ ← 0 and dθ_v ← 0
        copied = theta.copy()  # Synchronize θ' = θ and θ'_v = θ_v
        segment, over = [], False  # t_start = t; s is the state s_t
        while not over and len(segment) < t_max:  # repeat … until terminal s_t or t − t_start == t_max
            a = model.act(copied, s, rng)  # Perform a_t according to policy π(a_t|s_t; θ')
            s_next, r, terminal, truncated, _ = env.step(a)  # Receive reward r_t and new state s_{t+1}
            segment.append((s, a, r))
            s, over = s_next, terminal or truncated
            T += 1  # t ← t + 1, T ← T + 1
        R = 0 if terminal else model.value(copied, s)  # R = 0 for terminal s_t, V(s_t, θ'_v) for non-terminal s_t
        for s_i, a_i, r_i in reversed(segment):  # for i ∈ {t − 1, …, t_start} do
            R = r_i + gamma * R  # R ← r_i + γR
            adv = R - model.value(copied, s_i)
            dtheta += model.grad_log_prob(copied, s_i, a_i, adv, entropy_coef)  # dθ ← dθ + ∇log π(a_i|s_i; θ') (R − V)
            dtheta -= value_coef * model.grad_loss(copied, s_i, R)  # dθ_v ← dθ_v + ∂(R − V(s_i; θ'_v))²/∂θ'_v (here −)
        theta += learning_rate * dtheta / len(segment)  # asynchronous update of θ using dθ and of θ_v using dθ_v
        if over:
            s, _ = env.reset()
        yield T


def actor_learner(
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
    """Algorithm S3 for one worker; all workers share θ. Yields after each asynchronous update. Never ends.

    theta   θ and θ_v in shared memory. Other workers read and change it at the same time, without a lock (Recht et
            al. 2011)
    model   an `ActorCritic` or `SharedActorCritic`

    Differences from the slide, besides those of `algorithm_s3`:

    - `sampler` may have several environments. A segment ends after t_max = `n_steps` steps, or earlier when an episode
      has ended in every environment.
    - `advantage_gradient` computes the advantage. With λ = 1, not standardised, it is the slide's R − V.
    - `max_grad_norm` limits the norm of (dθ, dθ_v), and `optimizer` makes the step.
    - The caller adds up T over the workers. `run_cartpole.py` also lets all workers pause now and then, to write
      metrics and to set the learning rate, and skips a gradient that is not finite.
    """
    copied = np.empty_like(theta)
    while True:
        copied[...] = theta  # θ' ← θ, θ'_v ← θ_v
        rollout = sampler.segment(model, copied, n_steps)  # until terminal s_t or t − t_start = t_max
        # R = 0 or V(s_t; θ'_v); R ← r_i + γR; dθ and dθ_v accumulated
        dtheta, measures = advantage_gradient(
            rollout, model, copied, gamma, lam, value_coef, entropy_coef, standardise
        )
        norm = clip_norm(dtheta, max_grad_norm)
        optimizer.step(theta, dtheta)  # asynchronous update of θ and θ_v
        yield {"rollout": rollout, "grad_norm": norm, **measures}


def rollout_gradient(
    sampler, model, theta, *, n_steps=16, gamma=0.99, lam=0.95, value_coef=0.5, entropy_coef=0.0, standardise=False
):
    """One worker's part of `parallel_a2c`: returns the gradient at θ [size], its rollout, and measures."""
    rollout = sampler.steps(model, theta, n_steps)
    dtheta, measures = advantage_gradient(rollout, model, theta, gamma, lam, value_coef, entropy_coef, standardise)
    return dtheta, rollout, measures


def parallel_a2c(gradients, theta, optimizer, *, max_grad_norm: float | None = 0.5):
    """A2C with N workers: θ ← θ + α 1/N Σ_k g_k. All gradients g_k are computed at the same θ.

    gradients   gradients(theta) → [(g_k, rollout, measures)], the result of `rollout_gradient` for each worker k

    With one worker, the result is that of `a2c` with the same seeds, bit for bit. θ is improved in place; yields the
    measures of each update.
    """
    while True:
        dthetas, rollouts, measures = zip(*gradients(theta))
        dtheta = np.mean(dthetas, axis=0)
        norm = clip_norm(dtheta, max_grad_norm)
        optimizer.step(theta, dtheta)
        yield {
            "rollout": joined(rollouts, axis=0),
            "grad_norm": norm,
            "worker_steps": [rollout.env_steps for rollout in rollouts],
            **mean_of(measures),
        }


def asynchronous_gradients(submit, n, theta, optimizer, *, max_grad_norm: float | None = 0.5):
    """A3C without shared memory: the learner applies each gradient on arrival and sends the new θ to its worker.

    submit   submit(k, theta, number of the update) → a future with worker k's result (g_k, rollout, measures)
    n        number of workers

    `staleness` is the number of updates from other workers between the start of a worker and the arrival of its
    gradient. θ is improved in place; yields the measures of each update.
    """
    updates = 0
    calls = {submit(k, theta.copy(), updates): (k, updates) for k in range(n)}
    while True:
        for call in wait(calls, return_when=FIRST_COMPLETED).done:
            k, begun = calls.pop(call)
            dtheta, rollout, measures = call.result()
            norm = clip_norm(dtheta, max_grad_norm)
            optimizer.step(theta, dtheta)
            staleness = updates - begun
            updates += 1
            calls[submit(k, theta.copy(), updates)] = k, updates
            yield {
                "rollout": rollout,
                "grad_norm": norm,
                "staleness": staleness,
                "worker_steps": [rollout.env_steps if k == j else 0 for j in range(n)],
                **measures,
            }


def mean_of(measures):
    """[{name: number}] → {name: mean}. The mean explained variance skips NaN (a segment with a constant target)."""
    numbers = {name: [m[name] for m in measures] for name in measures[0]}
    explained = numbers["explained_variance"]
    numbers["explained_variance"] = [x for x in explained if not np.isnan(x)] or explained
    return {name: float(np.mean(x)) for name, x in numbers.items()}
