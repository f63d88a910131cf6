#!/usr/bin/env python
"""Checks that the tests find bugs: plants one bug at a time in a copy of the package and runs the module's tests.

    python tests/mutations.py [words that a bug's description contains]

Every bug must make a test fail. The script exits with 1 if a bug survives, or if the text that a bug replaces does not
occur exactly once in the module.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).parents[1]

# module, by its path in npg/: [(what is wrong, the right text, the wrong text), …]
BUGS = {
    "gradcheck": [
        ("central differences divided by h", "/ (2 * h)", "/ h"),
        ("a check that accepts everything", "if not error[worst] <= tolerance:", "if error[worst] > 1e9:"),
        ("NaN passes the check", "np.where(np.isfinite(error), error, np.inf)", "np.nan_to_num(error, nan=0.0)"),
    ],
    "network": [
        ("dW transposed", "hs[l].T.dot(dz, out=dW)", "dW.reshape(-1)[...] = hs[l].T.dot(dz).ravel(order='F')"),
        ("db averaged over the batch", "ones.dot(dz, out=db)", "(ones / len(dz)).dot(dz, out=db)"),
        ("the derivative of the activation left out", "                activation_backward(dz, hs[l])\n", ""),
        ("tanh' = 1 − h for 1 − h²", "dh -= dh * h * h", "dh -= dh * h"),
    ],
    "distributions": [
        ("softmax: +π for −π in the score",
         "return one_hot - np.exp(log_softmax(", "return one_hot + np.exp(log_softmax("),
        ("softmax: sign of the entropy's gradient", "return -p * (logp - (p * logp)", "return p * (logp - (p * logp)"),
        ("Bernoulli: a + σ(z) for a − σ(z)", "[..., None] - sigmoid(params)", "[..., None] + sigmoid(params)"),
        ("Gaussian: σ for σ² in the score of μ", "[z * inv_std, z * z - 1]", "[z, z * z - 1]"),
        ("Gaussian: the −1 of ∂/∂ log σ missing", "[z * inv_std, z * z - 1]", "[z * inv_std, z * z]"),
        ("Gaussian: no sum over the dimensions",
         "return -(0.5 * z * z + log_std + 0.5 * LOG_2PI).sum(axis=-1)",
         "return -(0.5 * z * z + log_std + 0.5 * LOG_2PI).mean(axis=-1)"),
        ("Gaussian: samples of variance σ⁴", "return mean + np.exp(log_std) *", "return mean + np.exp(2 * log_std) *"),
        ("multivariate: L for Lᵀ in Σ⁻¹(a − μ)",
         "np.linalg.solve(np.swapaxes(L, -1, -2), e[..., None])", "np.linalg.solve(L, e[..., None])"),
        ("mixture: responsibilities left out", "r[..., None] * z * inv_std", "z * inv_std"),
    ],
    "score_function": [
        ("x for x − μ in ∂x/∂ log σ", "dx * (x - distribution.mode(params))", "dx * x"),
        ("standard deviation for standard error", ".std(axis=0, ddof=1) / np.sqrt(len(terms))", ".std(axis=0, ddof=1)"),
    ],
    "policy": [
        ("the entropy bonus subtracted", "dparams += entropy_coef", "dparams -= entropy_coef"),
        ("a learned σ's gradient averaged", "self.tail.size).sum(axis=0)", "self.tail.size).mean(axis=0)"),
        ("the critic's error with the wrong sign", "return value - target", "return target - value"),
        ("shared network: no gradient from the critic", "dvalue[..., None]], axis", "0 * dvalue[..., None]], axis"),
    ],
    "exploration": [
        ("an exploring agent scored as π", "return share[..., None] * self.distribution", "return self.distribution"),
        ("a random action is never π's", "+ self.epsilon / self.n)", "+ self.epsilon / (self.n - 1))"),
        ("the score at h / T without 1 / T", "act) / self.temperature", "act)"),
    ],
    "rollout": [
        ("rows between episodes taken for steps", "valid = ~self.ended", "valid = np.ones_like(self.ended)"),
        ("truncated merged into terminated", "= terminated & valid, truncated & valid",
         "= (terminated | truncated) & valid, truncated & valid"),
        ("the row of a reset alone", "n_rows = max(n_steps, 2) if self.ended.all() else n_steps", "n_rows = n_steps"),
        ("observations not copied", "obs = np.array(self.obs)  #", "obs = self.obs  #"),
        ("rewards of a second episode counted", "rew=np.where(over, 0, rollout.rew)", "rew=rollout.rew"),
        ("a NaN of a second episode counted", "np.where(over, 0, own)", "(own * ~over)"),
        ("drawn ahead: the learner's own θ", "theta = theta.copy()", "theta = theta[:]"),
        ("play: the row of a reset taken for a step", "(episode < episodes) & ~ended", "(episode < episodes)"),
        ("play: over when enough have begun", "while (episode < episodes).any()", "while begun <= episodes"),
    ],
    "returns": [
        ("bootstrapping through a terminal", "gamma * np.logical_not(terminated) * val[1:] - val[:-1]",
         "gamma * val[1:] - val[:-1]"),
        ("GAE: a truncated step taken for a terminal one",
         "discounted_sum(td_error(rew, terminated, val, gamma)",
         "discounted_sum(td_error(rew, terminated | truncated, val, gamma)"),
        ("GAE: runs on into the next episode", "gamma * lam * ~np.logical_or(terminated, truncated)",
         "gamma * lam * np.logical_not(terminated)"),
        ("GAE: λ left out", "gamma * lam * ~", "gamma * ~"),
        ("reward to go without ~done", "discounted_sum(rew, gamma * np.logical_not(done))",
         "discounted_sum(rew, gamma)"),
        ("discount of the step before", "discount[t] * following", "discount[t - 1] * following"),
        ("γᵗ⁺¹ for γᵗ", "return gamma ** time_in", "return gamma * gamma ** time_in"),
        ("γᵗ dropped", "return gamma ** time_in_episode(done, valid) *", "return 1 *"),
        ("γᵗ counted on over the episode's end", "np.where(begins, 0, time[t - 1] + 1)", "time[t - 1] + 1"),
        ("n steps: one too many", "range(min(n, len(rew)) - 1)", "range(min(n, len(rew)))"),
        ("n steps: summed over the episode's end",
         "np.where(go_on[:-1], gamma * ret[1:], bootstrap[:-1])", "gamma * ret[1:]"),
        ("division by a standard deviation of 0",
         "all_equal = std <= ROUNDING * np.max(np.abs(x)", "all_equal = std < 0 * np.max(np.abs(x)"),
    ],
    "optimizers": [
        ("SGD descends", "theta += self.learning_rate * dtheta\n", "theta -= self.learning_rate * dtheta\n"),
        ("Adam: no correction of the start from 0",
         "1 / (1 - self.beta1**t), (1 - self.beta2**t) ** -0.5", "1.0, 1.0"),
        ("Adam: t begins at 2", "t = int(self.t)", "t = int(self.t) + 1"),
        ("RMSProp: |g| for g²", "(1 - self.rho) * g**2", "(1 - self.rho) * abs(g)"),
        ("entries clipped, and not the norm", "dtheta *= limit / norm", "np.clip(dtheta, -limit, limit, out=dtheta)"),
    ],
    "baselines": [
        ("leave-one-out divided by N", "/ (n - 1)", "/ n"),
        ("leave-one-out leaves nothing out", "(psi[0].sum() - psi[0])", "psi[0].sum()"),
        ("bₜ without 1/N, as on the slide", ".mean(axis=1, keepdims=True)", ".sum(axis=1, keepdims=True)"),
        ("the state baseline knows its own trajectories",
         "self.batch_size)\n        return b",
         "self.batch_size)\n        return self.critic.value(self.phi, rollout.obs[:-1])"),
        ("fitted V iteration: the target not held fixed",
         "            dphi = critic.grad_loss(phi, obs, target)",
         "            target = rollout.rew + gamma * ~rollout.terminated * critic.value(phi, rollout.obs[1:])\n"
         "            dphi = critic.grad_loss(phi, obs, target[rollout.valid])"),
        ("fitted V iteration: through a terminal", "gamma * ~rollout.terminated *", "gamma *"),
        ("the proximal term pushes away", "+ proximal * (phi - phi_old)", "- proximal * (phi - phi_old)"),
        ("V climbs up its error", "(phi, -critic.grad_loss(phi, obs[batch]", "(phi, critic.grad_loss(phi, obs[batch]"),
    ],
    "reinforce": [
        ("1/N missing", "entropy_coef) / n_trajectories", "entropy_coef)"),
        ("1/steps for 1/N", "n_trajectories = rollout.rew.shape[1]", "n_trajectories = len(obs)"),
        ("the baseline added", "adv = psi - baseline(", "adv = psi + baseline("),
    ],
    "actor_critic": [
        ("the five steps: V from one step, not the return", "val, gamma, n_steps)", "val, gamma, 1)"),
        ("the five steps: advantages by the old V",
         "        # 3. advantages A = r + γ V(s') − V(s)\n        val = model.value(theta, rollout.obs)\n",
         "        val = val if estimation == \"mc\" else model.value(theta, rollout.obs)\n"),
        ("A2C: the critic regressed on advantages", "adv + val[:-1], val[:-1], entropy)", "adv, val[:-1], entropy)"),
        ("A2C: the critic runs away from its target", "value_coef * (ret - val)", "value_coef * (val - ret)"),
        ("Q: bootstrapping through a terminal", "~terminated * critic.state_value", "critic.state_value"),
        ("Q: V(s') by the mean over actions", "(np.exp(log_softmax(logits)) * q).sum(axis=-1)", "q.mean(axis=-1)"),
    ],
    "a3c": [
        ("S3: the gradient at the shared θ", "rollout, model, copied, gamma", "rollout, model, theta, gamma"),
        ("S3: actions by the shared θ", "sampler.segment(model, copied,", "sampler.segment(model, theta,"),
        ("the slide: a time limit taken for a terminal state", "R = 0 if terminal else", "R = 0 if over else"),
        ("the slide: V climbs up its error", "dtheta -= value_coef", "dtheta += value_coef"),
        ("A2C: the sum of the workers' gradients", "np.mean(dthetas, axis=0)", "np.sum(dthetas, axis=0)"),
        ("a worker's own update makes it stale", "staleness = updates - begun", "staleness = updates - begun + 1"),
    ],
    "replay": [
        ("the importance ratio inverted", "np.exp(log_pi - batch.logp)", "np.exp(batch.logp - log_pi)"),
        ("log b of the policy that learns", "params_and_value(rollout.theta", "params_and_value(theta"),
        ("clipped on the wrong side", "psi > 0, ratio > 1 + epsilon, ratio < 1 - epsilon",
         "psi < 0, ratio > 1 + epsilon, ratio < 1 - epsilon"),
        ("truncated from below", "np.minimum(ratio, limit)", "np.maximum(ratio, limit)"),
        ("another ε of clipping than asked for", '"clipped": (clip,)', '"clipped": ()'),
        ("another limit of ρ than asked for", '"truncated": (truncate,)', '"truncated": ()'),
        ("the buffer keeps the oldest", "experience][-self.capacity :]", "experience][: self.capacity]"),
        ("effective sample size without the square", "np.sum(ratio) ** 2 /", "np.sum(ratio) /"),
    ],
    "pong": [
        ("every second column, not any of two", "rows.view(np.uint16) != 0", "rows[..., ::2]"),
        ("the difference taken backwards", "(1, -1)", "(-1, 1)"),
        ("only one of two backgrounds erased", " & (court != BACKGROUNDS[1])", ""),
        ("a game begins with the ghost of the last", "np.where(self.ended[:, None], frame, x)", "x"),
        ("the trail forgets its third frame", "halve), self.frames[:-1]", "halve), self.frames[:1] * 2"),
        ("credit runs on over points", "rollout.terminated | (rollout.rew != 0)", "rollout.terminated"),
        ("dW of the last chunk alone", "dW[lit] += dsmall", "dW[lit] = dsmall"),
        ("a chunk's dy in the order of the batch", "dy[members], False", "dy[: len(dy[members])], False"),
    ],
    "gradient_free": [
        ("genetic: a restart keeps the old parents", "self.parents[...] = self.theta", "pass"),
        ("hill climbing: a lucky x replaces θ unasked", "if values[1] > values[0]:", "if max(values[1:]) > values[0]:"),
        ("hill climbing: θ ← x without a comparison", "if values[1] > values[0]:", "if True:"),
        ("hill climbing: no restart", "if self.failures >= self.patience:", "if False:"),
        ("hill climbing: a restart forgets σ",
         "self.sigma[...], self.failures[...] = self.sigma_start, 0", "self.failures[...] = 0"),
        ("hill climbing: narrow for widen", "self.widen if best > 1 else self.narrow", "self.narrow"),
        ("genetic: the worst have children", "np.argsort(-values", "np.argsort(values"),
        ("genetic: θ is the luckiest of all", "np.argmax(values[: self.n_elite])", "np.argmax(values)"),
        ("genetic: the elite mutates too",
         "np.concatenate([self.parents[: self.n_elite],", "np.concatenate([1 + self.parents[: self.n_elite],"),
        ("genetic: crossover of one parent", "mother, father) if", "mother, mother) if"),
        ("forward difference against the wrong point", "(values[1:] - values[0])", "(values[1:] - values[-1])"),
        ("central difference divided by ε", "(plus - minus) / (2 * epsilon)", "(plus - minus) / epsilon"),
        ("central points on one side", "np.concatenate([theta + step, theta - step])",
         "np.concatenate([theta + step, theta])"),
        ("Kohl & Stone: never leaves a parameter alone",
         "both & ~((zero > plus) & (zero > minus))", "both"),
        ("Kohl & Stone: 0 where one group alone is worse", "(zero > plus) & (zero > minus)",
         "(zero > plus) | (zero > minus)"),
        ("Kohl & Stone: step not normalised", "self.optimizer.step(self.theta, direction / norm)",
         "self.optimizer.step(self.theta, direction)"),
        ("ranks: ties in order of arrival", "return 0.5 * np.sign(values[:, None] - values).mean(axis=1)",
         "return np.argsort(np.argsort(values)) / len(values) - 0.5 + 0.5 / len(values)"),
        ("evolution: P missing", "grad_log_prob(params, thetas) / len(thetas)", "grad_log_prob(params, thetas)"),
        ("evolution: no mirror images", "np.concatenate([thetas, 2 * self.theta - thetas])",
         "np.concatenate([thetas, thetas])"),
        ("evolution: log σ follows the gradient of μ", "self.sigma_optimizer.step(self.log_std, dlog_std)",
         "self.sigma_optimizer.step(self.log_std, dmean)"),
        ("seeds that are never common", "size=1 if common else len(thetas)", "size=len(thetas)"),
        ("seeds that are always common", "size=1 if common else len(thetas)", "size=1"),
    ],
    "tabular": [
        ("padded steps scored", "np.exp(np.where(self.valid, logp, 0).sum(axis=1))", "np.exp(logp.sum(axis=1))"),
        ("V without discount", "self.R + gamma * self.P @ V[-1]", "self.R + self.P @ V[-1]"),
        ("bias against the gradient of the undiscounted U",
         "mean - self.gradient(policy, theta, gamma)", "mean - self.gradient(policy, theta)"),
        ("covariance of one trajectory for N", "(g - mean) / n", "(g - mean)"),
    ],
    "runner/playing": [
        ("moments of one array, used again", "seen.append(np.array(obs))", "seen.append(obs)"),
        ("observations normalised without the root", "obs = normalised(obs, *moments)",
         "obs = (obs - moments[0]) / (moments[1] + 1e-8)"),
        ("moments of the last candidate alone", "in zip(mean, var, count.tolist()):",
         "in list(zip(mean, var, count.tolist()))[-1:]:"),
        ("moments in another precision", "zip(mean, var, count.tolist())", "zip(mean, var, count)"),
        ("a NaN observation goes unseen", "if not np.isfinite(seen).all():", "if False:"),
        ("the last step of an episode not counted", "lengths[i] += 1", "lengths[i] += not over"),
        ("a part of an evaluation left out", "if len(part)]", "if len(part)][1:]"),
        ("every part plays the same episodes", "[(*seeds, j) for j in", "[seeds for j in"),
    ],
    "runner/environments": [
        ("one-sided Box actions are not clipped", "if act_space.bounded_below.any() or act_space.bounded_above.any():",
         "if act_space.is_bounded():"),
        ("the random numbers that an episode began with forgotten",
         "Log(seed if seed is not None else generator and generator.state)", "Log(seed)"),
        ("an episode's random numbers not put back", "self.unwrapped.np_random.bit_generator.state = start", "pass"),
        ("the last action dropped", "return self.env.step(last[0]) if len(last) else (", "return ("),
        ("resets without a seed forgotten", "self.log.resets.append(self.log.n_packed + len(self.log.rows))", "pass"),
        ("actions come back in another type", "return actions.astype(space.dtype) if", "return actions if"),
        ("any observations will do", "if np.array_equal(self.obs, obs) and", "if"),
        ("any rewards will do", " and (rew is None or np.array_equal(self.rew, rew))", ""),
        ("news forget the actions before them", "self.chunks += chunks", "self.chunks = chunks"),
        ("the log of the whole grows for ever", "> LOG_BYTES", "> 10**12"),
        ("an episode without a time limit never ends", "[lambda env: wrappers.TimeLimit(env, LONGEST)] if", "[] if"),
        ("one reward for all environments", "return obs, rew.reshape(batch),", "return obs, rew,"),
        ("a picture of floats is drawn", "x.dtype != np.uint8 or ", ""),
        ("any info will do", "if not isinstance(info, dict):", "if False:"),
    ],
    "runner/replaying": [
        ("the sampler's random numbers do not come back", 'set_random_state(sampler.rng, state["rng"])\n', "pass\n"),
        ("unfinished returns do not come back", "        setattr(sampler, name, state[name])",
         '        setattr(sampler, name, state[name] * (name != "unfinished_return"))'),
        ("ends of episodes do not come back", "        setattr(sampler, name, state[name])",
         '        setattr(sampler, name, state[name] & (name != "ended") if name == "ended" else state[name])'),
        ("what was drawn ahead is drawn again", 'range(len(same)) if "ahead" in state else ()', "()"),
        ("the θ that drew ahead forgotten", '"theta": state["theta"]}', '"theta": 0 * state["theta"]}'),
        ("new episodes are the first ones again",
         "sampler.seed, sampler.obs = int(sampler.rng.integers(2**31)), None", "sampler.obs = None"),
        ("all that draw ahead begin alike", "begin_anew(part, *seeds, k)", "begin_anew(part, *seeds)"),
    ],
    "runner/runs": [
        ("saved in the middle of an update", "if not self.under_way and self.update", "if self.update"),
        ("saving may take all the time", "100 * self.save_cost", "0"),
        ("an evaluation lost at an interruption", "self._evaluate_if_due()  # where", "pass  # where"),
        ("new episodes told of again and again", "and at not in self.new_episodes", ""),
        ("a budget below the steps that are made", "if steps != earlier and steps < self.env_steps:", "if False:"),
        ("a second signal is like the first", "now, self.stopped = self.stopped or", "now, self.stopped ="),
        ("evaluations take as long as they like",
         "if share * (self.evaluated_steps + self.player.cost(n, self.length)) > self.env_steps:", "if False:"),
        ("a confirmation may cost anything",
         "return 4 * (self.evaluated_steps + cost) <= self.env_steps", "return True"),
        ("the final evaluation confirms with too few episodes", " or len(returns) < self.window:", ":"),
        ("one evaluation of a search is enough at the end",
         "returns, undecided = self.evaluate(CONFIRMING, self.window), True", "undecided = True"),
        ("a confirmation lost at an interruption", "        self._confirm_if_due()\n        self.metrics.write_anew()",
         "        self.metrics.write_anew()"),
        ("a search repeats a confirmation that has just failed",
         "np.mean(self.returns) if self.returns else None, 1", "np.mean(self.returns) if self.returns else None, 0"),
        ("confirmations of another target count", 'if before["target"] != self.config["target"]:', "if False:"),
        ("a confirmation is in no row", 'self.rows[-1]["confirm_return_mean"] = float(self.confirmed.mean())', "pass"),
        ("a run resumed with a spent budget loses its environments", "if self.environments_are_back:", "if True:"),
        ("an evaluation of Pong leaves nothing for its confirmation", "share, n = 4, n + self.window", "share = 4"),
        ("the final evaluation repeats a confirmation that has just failed",
         "undecided = self.episodes > self.failed_at", "undecided = True"),
        ("time is kept back for most likely actions that are not played",
         'later = FEW if self.task.act == "sampled" else 0', "later = FEW"),
        ("a solved run that goes on is confirmed at once", "self.solved_at = self.episodes", "pass"),
        ("a search keeps returns of an earlier θ", "        self.returns.clear()\n", ""),
        ("a confirmation that failed is tried again at once", "self.failed_at = self.episodes", "pass"),
        ("the last returns do not come back",
         'self.returns.extend(saved.get("returns", np.zeros(0)).astype(float).tolist())', "pass"),
        ("solved by fewer episodes", "if len(self.returns) == self.window else None", "if self.returns else None"),
        ("solved without a confirmation", 'bool(returns.mean() >= self.config["target"])', "True"),
    ],
    "runner/folder": [
        ("nobody is kept out", "fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass"),
        ("this process may take a folder twice", "if key in _mine:", "if False:"),
        ("a lock file that was removed meanwhile is a lock", "if os.path.samestat(os.fstat(lock), os.stat(path)):",
         "if True:"),
        ("the lock file stays", "os.unlink(path)", "pass"),
        ("a failed write leaves its temporary file", "temporary.unlink(missing_ok=True)  # it", "pass  # it"),
        ("the temporary files of a killed process stay", "path.unlink(missing_ok=True)\n\n\ndef write_json",
         "pass\n\n\ndef write_json"),
    ],
    "runner/command_line": [
        ("CartPole gets the defaults of other environments", "elsewhere=elsewhere, shared", "elsewhere=True, shared"),
        ("a failing environment writes into somebody's run", "check_unused(folder)  # before", "pass  # before"),
    ],
    "runner/machine": [
        ("the cgroups around ours do not count", ", *(place / path.strip(\"/\")).parents)", ",)"),
    ],
    "runner/memory": [
        ("a network's layers are added, not multiplied", "(n_in + 1) * n_out", "(n_in + 1) + n_out"),
        ("candidates cost nothing", "candidates * (4 * theta + 16 * envs)", "0 * (4 * theta + 16 * envs)"),
    ],
    "runner/figures": [
        ("a GIF of a fast environment shows every frame", "every = math.ceil(fps / 50)", "every = 1"),
    ],
    "runner/interrupts": [
        ("a stream that fails ends the run", "except (OSError, ValueError):\n                _silence",
         "except ZeroDivisionError:\n                _silence"),
        ("Ctrl-C is exit code 1", "code = 130", "code = 1"),
    ],
    "runner/task": [
        ("environments stay open", "self.opened.pop().close()", "self.opened.pop()"),
        ("a second sampler plays the episodes of an evaluation",
         "INIT, TRAIN, FURTHER = 0, 1, 3", "INIT, TRAIN, FURTHER = 0, 1, 2"),
        ("a call of an evaluation costs the same, whatever training has", 'max(5, settings.get("envs", 8) // 2)', "5"),
        ("the buffer comes back empty", "self.buffer.add(Experience(**batch))", "pass"),
        ("how rewards are scaled does not come back", 'vars(self.reward_rms).update(below("reward_rms", saved))',
         "pass"),
        ("a search's random numbers do not come back", "set_random_state(rng, rngs[str(k)] if rngs else",
         "set_random_state(rng, random_state(rng) if rngs else"),
        ("two samplers of one run alike", "(self.seed, FURTHER, update, k) if k else ", ""),
        ("drawn ahead: all samplers alike", "kind(part, *seeds, k)", "kind(part, *seeds)"),
    ],
    "runner/settings": [
        ("numbers out of range pass the check", "not (setting.low <= x <= setting.high and ", "not ("),
    ],
    "runner/workers": [
        ("one repetition too many", "attempts[k] > self.retries", "attempts[k] > self.retries + 1"),
        ("the interpreter ends, and a process is replaced", "self.retries = 0", "pass"),
        ("the alarm of an answered call kills the next one", "if self.alarm is alarm:", "if True:"),
        ("no kernel ends the orphans", 'if by_main_thread and sys.platform == "linux":', "if False:"),
        ("a Ctrl-C that another thread receives", "lambda *_: noted.append(True)", "handler"),
        ("a worker forgets nothing", "len(memory) > KEPT", "False"),
    ],
    "runner/actors": [
        ("a gradient that is not finite is applied", "if np.isfinite(np.dot(dtheta, dtheta)):", "if True:"),
        ("a lost worker's successor plays its episodes again", "more = (self.k, age) if age else ", "more = "),
        ("all workers play the same episodes", "(self.k,) if self.k else ()", "()"),
        ("a worker goes on from its state at any age", "age != self.age or restore(", "restore("),
        ("a worker's stale environments are used", 'elif getattr(memory, "update", None) != update:',
         'elif not hasattr(memory, "sampler"):'),
        ("what a failed call has left is used", "memory.update = None  # a call", "pass  # a call"),
        ("what a worker sent before is forgotten", "before.get(name) or [Log()] * len(news)", "[Log()] * len(news)"),
        ("a replay must be as fast as any call",
         "with any_time(self.executor) if replays", "with any_time(None) if replays"),
        ("nobody hears of new episodes", 'self.replayed = self.replayed and news["replayed"]', "pass"),
        ("a worker goes by its own steps alone", "shared.steps.sum() >= t_stop", "shared.steps[k] >= t_stop"),
        ("the learning rate of the first round for ever", "optimizer.learning_rate = learning_rate", "pass"),
    ],
}  # fmt: skip


def tests_of(module):
    """The tests of a module: tests/test_a3c.py for "a3c", tests/runner/test_playing.py for "runner/playing"."""
    path = pathlib.PurePosixPath("tests", module)
    return path.with_name(f"test_{path.name}.py")


def run_tests(modules, old="", new=""):
    """Tests the modules, on a copy of the package with `new` for `old` in the first module: (exit code, output)."""
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder)
        for name in ("npg", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "oracle"))
        for path in (ROOT / "pyproject.toml", *ROOT.glob("run_*.py")):
            shutil.copy(path, copy)
        (copy / "docs").mkdir()
        shutil.copy(ROOT / "docs" / "lecture.md", copy / "docs")
        path = copy / "npg" / f"{modules[0]}.py"
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider"]
        files = [str(tests_of(name)) for name in modules]
        env = {**os.environ, "PYTHONPATH": folder, "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command + files, cwd=copy, env=env, capture_output=True, text=True, timeout=1800)
        return done.returncode, done.stdout


def verdict(module, what, old, new):
    """(whether a test caught the bug, the test's name or why none caught it)."""
    if (ROOT / "npg" / f"{module}.py").read_text(encoding="utf-8").count(old) != 1:
        return False, f"NOT FOUND, or more than once: {old!r}"
    code, output = run_tests([module], old, new)
    failed = re.search(r"^FAILED \S+?::(\w+)", output, re.MULTILINE)
    if code == 1 and failed:
        return True, failed[1]
    return False, "SURVIVED" if code == 0 else f"BROKEN: {output[-500:]}"


def main(words):
    bugs = [(module, *bug) for module, planted in BUGS.items() for bug in planted]
    bugs = [bug for bug in bugs if all(word in bug[1] for word in words)]
    if not bugs:
        sys.exit(f"no planted bug's name contains {' and '.join(words)}")
    caught = 0
    with ThreadPoolExecutor(2) as pool:
        sound = pool.submit(run_tests, sorted({module for module, *_ in bugs}))
        for (module, what, *_), (is_caught, text) in zip(bugs, pool.map(lambda bug: verdict(*bug), bugs)):
            caught += is_caught
            print(f"{module:15}{what:50} {text}", flush=True)
        code, output = sound.result()
    if code != 0:
        print(f"without a planted bug the tests fail too:\n{output[-1000:]}")
    print(f"{caught} of {len(bugs)} planted bugs caught")
    return 0 if caught == len(bugs) and code == 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
