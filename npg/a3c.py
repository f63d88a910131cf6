"""Algorithm S3, A3C (Mnih et al. 2016): actor-learners in parallel; and A2C, its synchronous twin.

`algorithm_s3` is the slide, line by line. The functions below it compute their gradient with
`npg.actor_critic.advantage_gradient`. They differ in one thing only: who applies the gradient, and when.

    actor_critic.a2c         the gradient of one rollout
    parallel_a2c             the mean of N workers' gradients, all at the same θ
    actor_learner            Algorithm S3: each worker's own, at once, to a θ in shared memory
    asynchronous_gradients   each worker's as it arrives, at the θ that was current when the worker began

Where a gradient is computed, here, in a process or on a cluster, is the runner's: see `npg.runner.actors`.
"""

from concurrent.futures import FIRST_COMPLETED, wait

import numpy as np

from npg.actor_critic import advantage_gradient
from npg.optimizers import clip_norm
from npg.rollout import joined


def algorithm_s3(env, model, theta, rng, *, t_max, learning_rate, gamma=0.99, value_coef=0.5, entropy_coef=0.0):
    """Algorithm S3 as it stands on the slide: one worker, one environment, one step at a time; yields T.

    env     a `gymnasium.Env`
    model   an `ActorCritic` or `SharedActorCritic`
    theta   the shared vector of θ and θ_v, changed in place

    Differences from the slide:

    - The critic's error has to fall, so its gradient is subtracted, not added. Its factor is `value_coef` / 2.
    - The step is the mean over the segment, not the sum.
    - The entropy term of the slide's note, and of the paper's §4, is there: `entropy_coef`.
    - At a time limit, which is not a terminal state, R = V(s_t).
    - t − t_start is `len(segment)`. The caller stops when T > T_max.
    """
    T = 0  # global shared counter T = 0
    s, _ = env.reset()
    while True:  # repeat
        dtheta = np.zeros_like(theta)  # Reset gradients: dθ ← 0 and dθ_v ← 0
        copied = theta.copy()  # Synchronize θ' = θ and θ'_v = θ_v
        segment, over = [], False  # t_start = t; get state s_t
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
            dtheta -= value_coef * model.grad_loss(copied, s_i, R)  # dθ_v ← dθ_v + ∂(R − V(s_i; θ'_v))²/∂θ'_v
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
    """Algorithm S3: what one worker does, for ever, on a θ that all share; yields after each asynchronous update.

    theta   θ and θ_v, in shared memory: other workers read and change it meanwhile, without a lock (Recht et al. 2011)
    model   an `ActorCritic` or `SharedActorCritic`

    Differences from the slide, besides those of `algorithm_s3`:

    - `sampler` may have several environments. A segment ends after t_max = `n_steps` steps, or when each environment
      has met a terminal state.
    - R − V is the advantage of `advantage_gradient`: the slide's for λ = 1, not standardised.
    - dθ and dθ_v are one vector, and `max_grad_norm` limits its norm.
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
    """One worker's part of `parallel_a2c`: its gradient at θ [size], the rollout that it is of, and measures."""
    rollout = sampler.steps(model, theta, n_steps)
    dtheta, measures = advantage_gradient(rollout, model, theta, gamma, lam, value_coef, entropy_coef, standardise)
    return dtheta, rollout, measures


def parallel_a2c(gradients, theta, optimizer, *, max_grad_norm: float | None = 0.5):
    """A2C with N workers: θ ← θ + α 1/N Σ_k g_k, the gradients g_k all at the same θ.

    gradients   gradients(theta) → [(g_k, rollout, measures)], what `rollout_gradient` gives for each worker k

    With one worker it is `a2c` of the same seeds, bit for bit. θ is improved in place; yields the measures of each
    update.
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
    """A3C where no memory is shared: the learner applies each worker's gradient as it arrives, and sends it the new θ.

    submit   submit(k, theta, number of the update) → the future of worker k's (g_k, rollout, measures)
    n        number of workers

    `staleness` is the number of updates by others since the θ at which a gradient was computed. θ is improved in place;
    yields the measures of each update.
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
    """[{name: number}] → {name: mean}; a segment whose targets are all the same has no explained variance to count."""
    numbers = {name: [m[name] for m in measures] for name in measures[0]}
    explained = numbers["explained_variance"]
    numbers["explained_variance"] = [x for x in explained if not np.isnan(x)] or explained
    return {name: float(np.mean(x)) for name, x in numbers.items()}
