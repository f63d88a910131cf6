"""The weights Ψ_t, from rewards and from values V that are given. Each function is one equation.

    ĝ = 1/N Σ_i Σ_t Ψ_t ∇_θ log π_θ(a_t|s_t)

Arrays are time-major: rew, terminated, truncated [T, N] for N environments side by side; val [T+1, N], where val[t+1]
is V of the true successor of step t. An episode ends at step t if `terminated` (the task is over: no step follows) or
`truncated` (a time limit: more steps would have followed). V of the state reached may stand for the rewards after it
(to bootstrap). So `terminated` stops bootstrapping from val[t+1], and `truncated` does not. Sums over time stop at both
(`done = terminated | truncated`), and after the last row.
In rows between episodes (`Rollout.valid` is False) the reward is 0. Ignore the results in these rows.
"""

import numpy as np

ROUNDING = 1e-6  # relative to the largest number; a smaller spread may be only rounding error


def _check_val(val, rew):
    shape = (len(rew) + 1, *np.shape(rew)[1:])
    if np.shape(val) != shape:
        raise ValueError(f"val: expected one row more than rew, shape {shape}, got {np.shape(val)}")


def _check_shapes(rew, **others):
    for name, array in others.items():
        if np.shape(array) != np.shape(rew):
            raise ValueError(f"{name}: expected the shape of rew, {np.shape(rew)}, got {np.shape(array)}")


def discounted_sum(x, discount):
    """y_t = x_t + discount_t · y_{t+1}, y_T = 0, backwards in time. A discount of 0 separates two episodes.

    x [T, N]; discount [T, N], or a shape that broadcasts to it. Returns y [T, N].
    """
    x = np.asarray(x)
    discount = np.broadcast_to(discount, x.shape)
    y = np.empty(x.shape, np.result_type(x, discount, np.float32))
    following = np.zeros(x.shape[1:], y.dtype)
    for t in reversed(range(len(x))):
        following = y[t] = x[t] + discount[t] * following
    return y


def reward_to_go(rew, done, gamma=1.0):
    """G_t = Σ_{k≥t} γ^{k−t} r_k, to the end of the episode (slide "Temporal structure", where γ = 1)."""
    _check_shapes(rew, done=done)
    return discounted_sum(rew, gamma * np.logical_not(done))


def time_in_episode(done, valid):
    """t, counted from 0 in each episode. Row 0 of the arrays begins an episode. Integers [T, N]."""
    time = np.zeros(done.shape, np.int64)
    for t in range(1, len(done)):
        begins = np.logical_or(done[t - 1], np.logical_not(valid[t - 1]))
        time[t] = np.where(begins, 0, time[t - 1] + 1)
    return time


def trajectory_return(rew, done, valid, gamma=1.0):
    """R(τ) = Σ_k γᵏ r_k, the same for every step of the trajectory (slide "From trajectories to actions").

    Row 0 must begin an episode in every environment.
    """
    _check_shapes(rew, valid=valid)
    ret = reward_to_go(rew, done, gamma)
    time = time_in_episode(done, valid)
    for t in range(1, len(ret)):
        ret[t] = np.where(time[t] == 0, ret[t], ret[t - 1])
    return ret


def discounted_reward_to_go(rew, done, valid, gamma):
    """γᵗ G_t, with G_t = Σ_{k≥t} γ^{k−t} r_k (slide "Likelihood ratio gradient estimator").

    The gradient of E[Σ γᵗ r_t] has the factor γᵗ. Most code drops it, which gives `reward_to_go` with γ < 1.
    """
    _check_shapes(rew, done=done, valid=valid)
    return gamma ** time_in_episode(done, valid) * reward_to_go(rew, done, gamma)


def td_error(rew, terminated, val, gamma):
    """δ_t = r_t + γ V(s_{t+1}) − V(s_t), with V(s_{t+1}) = 0 after a terminal step (slide "Actor-Critic", step 3).

    rew and terminated [T, N], val [T+1, N]; returns [T, N]. Raises ValueError for a val of another shape.
    """
    _check_val(val, rew)
    _check_shapes(rew, terminated=terminated)
    return rew + gamma * np.logical_not(terminated) * val[1:] - val[:-1]


def gae(rew, terminated, truncated, val, gamma, lam):
    """Â_t = Σ_l (γλ)^l δ_{t+l}, to the end of the episode or to the last row (Schulman et al. 2016, eq. 16).

    Generalised advantage estimation. λ = 0 gives the TD error (temporal difference). λ = 1 gives the Monte-Carlo
    advantage G_t + γᵏ V(s_{t+k}) − V(s_t), where the sum stops k steps later.
    """
    _check_shapes(rew, truncated=truncated)
    return discounted_sum(td_error(rew, terminated, val, gamma), gamma * lam * ~np.logical_or(terminated, truncated))


def n_step_return(rew, terminated, truncated, val, gamma, n):
    """R_t = r_t + γ r_{t+1} + … + γ^{n−1} r_{t+n−1} + γⁿ V(s_{t+n}) (slide "Advantage Actor-Critic").

    If the episode or the rows end before n steps, the sum stops there and bootstraps from V of the state reached (0
    after a terminal step). n = 1 gives r_t + γ V(s_{t+1}). n ≥ T gives Algorithm S3's R. Subtract V(s_t) to get an
    advantage. Raises ValueError for n < 1, or for a val that has not one row more than rew.
    """
    if n < 1:
        raise ValueError(f"n: expected at least 1 step, got {n}")
    _check_val(val, rew)
    _check_shapes(rew, terminated=terminated, truncated=truncated)
    go_on = ~np.logical_or(terminated, truncated)
    bootstrap = gamma * np.logical_not(terminated) * val[1:]  # what follows step t if the sum stops after step t
    ret = rew + bootstrap
    for _ in range(min(n, len(rew)) - 1):  # the k-step return from the (k−1)-step return of the next row, if any
        ret[:-1] = rew[:-1] + np.where(go_on[:-1], gamma * ret[1:], bootstrap[:-1])
    return ret


def standardise(x):
    """(x − mean) / std. If all numbers are equal, the result is 0.

    This is not one of the lecture's estimators. Dividing by the batch's own standard deviation rescales the step. The
    batch's own mean is a baseline that depends on the batch's own actions.
    """
    d = x - np.mean(x)
    std = np.sqrt(np.mean(d * d))
    all_equal = std <= ROUNDING * np.max(np.abs(x), initial=0)
    return np.zeros_like(x) if all_equal else d / std  # a NaN in x stays NaN, so nobody overlooks it


def explained_variance(target, val):
    """1 − Var(target − V) / Var(target): 1 for a perfect critic, 0 for a constant one, NaN for a constant target.

    Raises ValueError if the two shapes differ.
    """
    if np.shape(val) != np.shape(target):
        raise ValueError(f"val: expected the shape of target, {np.shape(target)}, got {np.shape(val)}")
    std, error = np.std(target), np.std(target - val)
    all_equal = std <= ROUNDING * np.max(np.abs(target), initial=0)
    return float("nan") if all_equal else float(1 - (error / std) ** 2)
