"""Search with values f(θ) only: the lecture's alternatives to the policy gradient.

    HillClimbing        moves to the best of several candidates nearby (slide "Policy Optimization")
    Genetic             mutates the best members of a population (same slide)
    FiniteDifference    ∂f/∂θ_k ≈ (f(θ + εu_k) − f(θ)) / ε (slide "Computing Gradients By Finite Differences")
    KohlStone           estimates all ∂f/∂θ_k at once from random ±ε (slide "Learning an AIBO running policy")
    EvolutionStrategy   ∇_μ E_{θ∼N(μ,σ²)}[f(θ)], from the score of `Gaussian`, which Gaussian policies use, too

Each class has two methods, which `search` calls in turn:

    thetas = method.ask(rng)       [P, n], the candidates of this iteration
    method.tell(thetas, values)    values [P] of the candidates, higher is better; improves method.theta [n] in place

`method.theta` is the current best guess. The rest of a method's state is in arrays too (`npg.optimizers.state`). f may
be noisy. So a method that chooses the best of several candidates evaluates the winner again, with new noise, before it
becomes `theta`.
"""

import numpy as np

from npg.distributions import Gaussian
from npg.returns import standardise


def search(method, evaluate, rng):
    """Improves method.theta in place. Never ends; the caller stops.

    Yields the measures of each iteration: the candidates' "values" [P], their number "candidates", and further ones.
    Raises ValueError if `evaluate` does not return one value per candidate.

    evaluate(thetas)   returns values [P] and a dict of further measures; see `evaluator` and `npg.runner.playing`
    """
    while True:
        thetas = method.ask(rng)
        values, measures = evaluate(thetas)
        if np.shape(values) != (len(thetas),):
            raise ValueError(f"values: expected one per candidate, shape ({len(thetas)},), got {np.shape(values)}")
        progress = method.tell(thetas, values)
        yield {"values": values, "candidates": len(thetas), **progress, **measures}


def evaluator(f, rng, common=True, executor=None):
    """Returns evaluate(thetas) for `search`. It calls f(θ, seed) → number once per candidate.

    common     all candidates of an iteration get the same seed (common random numbers), so they differ only in θ
    executor   any `concurrent.futures.Executor`, whose workers call f; f must then be picklable
    """

    def evaluate(thetas):
        values = evaluate_each(f, thetas, rng, common, executor)
        if any(value is None for value in values):
            raise ValueError("f: expected a number for each candidate, got None")
        return np.array(values, np.float64), {}

    return evaluate


def evaluate_each(f, thetas, rng, common, executor=None):
    """[f(θ_1, seed_1), …, f(θ_P, seed_P)]. The seeds are drawn from `rng`; with `common` they are all the same."""
    seeds = np.broadcast_to(rng.integers(2**63, size=1 if common else len(thetas)), len(thetas))
    return list((executor.map if executor else map)(f, thetas.copy(), seeds.tolist()))


class HillClimbing:
    """x ← the best of P − 2 candidates x + σε, ε ~ N(0, I), if it beats x; σ widens on success and narrows on failure.

    After `patience` failures in a row, x restarts at x_0 + σ_0 ε. θ is the best x of all climbs. Every iteration
    evaluates both θ and x again, and x replaces θ if x is better.
    """

    def __init__(self, theta, sigma, *, n_candidates=10, widen=1.5, narrow=0.8, patience=20):
        if n_candidates < 3:
            raise ValueError(f"n_candidates: expected at least 3 (θ, x and one more), got {n_candidates}")
        self.theta, self.x, self.x_start = theta, theta.copy(), theta.copy()
        self.sigma, self.sigma_start, self.failures = np.array(sigma, np.float64), sigma, np.zeros((), np.int64)
        self.n_candidates, self.widen, self.narrow, self.patience = n_candidates, widen, narrow, patience

    def restart(self):
        """Begins at the present θ."""
        self.x[...] = self.x_start[...] = self.theta

    def ask(self, rng):
        """θ, x, then x + σε: [P, n]."""
        if self.failures >= self.patience:
            self.x[...] = self.x_start + self.sigma_start * rng.standard_normal(self.x.shape)
            self.sigma[...], self.failures[...] = self.sigma_start, 0
        steps = self.sigma * rng.standard_normal((self.n_candidates - 2, self.x.size), self.x.dtype)
        return np.stack([self.theta, self.x, *(self.x + steps).astype(self.x.dtype)])

    def tell(self, thetas, values):
        """θ ← x if x is better than θ; x ← the best candidate if this candidate is better than x."""
        values = np.where(np.isnan(values), -np.inf, values)  # NaN loses
        if values[1] > values[0]:
            self.theta[...] = self.x
        best = 1 + np.argmax(values[1:])  # candidate 1 is x, and argmax takes the first of equals: a tie is a failure
        self.x[...] = thetas[best]
        self.failures[...] = 0 if best > 1 else self.failures + 1
        self.sigma *= self.widen if best > 1 else self.narrow
        return {"sigma": float(self.sigma.mean())}


class Genetic:
    """Truncation selection: only the `n_parents` best of a generation have children. Children are mutated parents.

    A child is a parent plus σε, ε ~ N(0, I). With `crossover`, each parameter of a child comes from one of two parents,
    plus σε. Elitism: the `n_elite` best (at least 2) survive unchanged and are evaluated again. θ is the elite member
    with the best new value.
    """

    def __init__(self, theta, sigma, *, n_candidates=16, n_parents=4, n_elite=2, crossover=False):
        if not 2 <= n_elite <= n_parents <= n_candidates or n_elite == n_candidates:
            raise ValueError(
                "n_elite, n_parents, n_candidates: expected 2 ≤ elite ≤ parents ≤ candidates and elite < candidates, "
                f"got {n_elite}, {n_parents}, {n_candidates}"
            )
        self.theta, self.parents = theta, np.tile(theta, (n_parents, 1))
        self.sigma, self.n_candidates, self.n_elite, self.crossover = sigma, n_candidates, n_elite, crossover

    def restart(self):
        """Begins at the present θ."""
        self.parents[...] = self.theta

    def ask(self, rng):
        """The elite, then the children of all parents (the elite are parents, too): [P, n]."""
        n_children = self.n_candidates - self.n_elite
        mother, father = self.parents[rng.integers(len(self.parents), size=(2, n_children))]
        children = np.where(rng.random(mother.shape) < 0.5, mother, father) if self.crossover else mother
        children = children + self.sigma * rng.standard_normal(children.shape, children.dtype)
        return np.concatenate([self.parents[: self.n_elite], children.astype(self.theta.dtype)])

    def tell(self, thetas, values):
        """θ ← the best of the elite; parents ← the best of all, best first."""
        values = np.where(np.isnan(values), -np.inf, values)  # NaN loses
        self.theta[...] = thetas[np.argmax(values[: self.n_elite])]
        self.parents[...] = thetas[np.argsort(-values, kind="stable")[: len(self.parents)]]
        return {}


def forward_points(theta, epsilon):
    """θ, then θ + εu_k for every k: [n + 1, n]."""
    return np.concatenate([theta[None], theta + epsilon * np.eye(theta.size, dtype=theta.dtype)])


def forward_difference(values, epsilon):
    """(f(θ + εu_k) − f(θ)) / ε [n] from the values at `forward_points` [n + 1]; error O(ε)."""
    return (values[1:] - values[0]) / epsilon


def central_points(theta, epsilon):
    """θ + εu_k for every k, then θ − εu_k: [2n, n]."""
    step = epsilon * np.eye(theta.size, dtype=theta.dtype)
    return np.concatenate([theta + step, theta - step])


def central_difference(values, epsilon):
    """(f(θ + εu_k) − f(θ − εu_k)) / 2ε [n] from the values at `central_points` [2n]; error O(ε²)."""
    plus, minus = np.split(values, 2)
    return (plus - minus) / (2 * epsilon)


SCHEMES = {"forward": (forward_points, forward_difference), "central": (central_points, central_difference)}


class FiniteDifference:
    """Optimizer steps along ∂f/∂θ_k ≈ (f(θ + εu_k) − f(θ)) / ε, k = 1 … n.

    A step needs n + 1 evaluations; with scheme "central" it needs 2n.
    """

    def __init__(self, theta, optimizer, *, epsilon, scheme="forward"):
        if scheme not in SCHEMES:
            raise ValueError(f"scheme: expected one of {sorted(SCHEMES)}, got {scheme!r}")
        self.theta, self.optimizer, self.epsilon = theta, optimizer, epsilon
        self.points, self.difference = SCHEMES[scheme]

    def ask(self, rng):
        """The points of the scheme; `rng` is not used."""
        return self.points(self.theta, self.epsilon)

    def tell(self, thetas, values):
        """θ ← θ + α ∇f."""
        dtheta = self.difference(values, self.epsilon)
        self.optimizer.step(self.theta, dtheta)
        return {"grad_norm": float(np.linalg.norm(dtheta))}


def kohl_stone_direction(signs, values):
    """A_k = 0 if Avg₀ > Avg₊ and Avg₀ > Avg₋, else Avg₊ − Avg₋.

    Avg₊, Avg₀ and Avg₋ are means of the values [P] of the candidates whose step in coordinate k was +ε, 0 or −ε.
    signs [P, n] are the signs of the steps. A_k is also 0 if no candidate had +ε, or none had −ε.
    """
    with np.errstate(invalid="ignore"):  # the mean of no value is NaN
        plus, zero, minus = (values @ group / group.sum(axis=0) for group in (signs > 0, signs == 0, signs < 0))
    both = (signs > 0).any(axis=0) & (signs < 0).any(axis=0)
    return np.where(both & ~((zero > plus) & (zero > minus)), plus - minus, 0)


class KohlStone:
    """Kohl & Stone 2004, "Policy Gradient Reinforcement Learning for Fast Quadrupedal Locomotion", figure 3.

    Each of `n_candidates` policies changes every parameter by +ε, 0 or −ε at random. The step is η A / ‖A‖, with A
    from `kohl_stone_direction` and η the learning rate of an `SGD`. `epsilon` is a number or an array [n].
    """

    def __init__(self, theta, optimizer, *, epsilon, n_candidates=15):
        self.theta, self.optimizer, self.epsilon, self.n_candidates = theta, optimizer, epsilon, n_candidates

    def ask(self, rng):
        """θ + {+ε, 0, −ε}: [P, n]."""
        signs = rng.integers(-1, 2, (self.n_candidates, self.theta.size))
        return self.theta + (self.epsilon * signs).astype(np.result_type(self.theta, np.float32))

    def tell(self, thetas, values):
        """θ ← θ + η A / ‖A‖."""
        direction = kohl_stone_direction(np.sign(thetas - self.theta), values)
        norm = float(np.linalg.norm(direction))
        if norm > 0:
            self.optimizer.step(self.theta, direction / norm)
        return {"grad_norm": norm}


def centred_ranks(values):
    """½ (share of values [P] below it − share of values above it), for each value.

    The ranks are between −½ and ½, and their mean is 0. Equal values get equal ranks.
    """
    return 0.5 * np.sign(values[:, None] - values).mean(axis=1)


SHAPING = {"none": lambda values: values, "standardise": standardise, "ranks": centred_ranks}


def evolution_gradient(params, thetas, values):
    """∇_params E_{θ∼N(μ, diag σ²)}[f(θ)] ≈ 1/N Σ_i f(θ_i) ∇_params log P(θ_i) [2n], params = [μ, log σ].

    Slide "Evolutionary Methods"; Salimans et al. 2017.
    """
    return values @ Gaussian(thetas.shape[1]).grad_log_prob(params, thetas) / len(thetas)


class EvolutionStrategy:
    """Ascends E_{θ∼N(μ, diag σ²)}[f(θ)] in μ and, with a `sigma_optimizer`, also in log σ. `theta` is μ.

    Candidates come in mirrored (antithetic) pairs μ ± σε, so a constant part of f cancels in ∇_μ. `shaping` transforms
    the values: "none" (unbiased), "standardise", or "ranks" (the size of outliers and the scale of f have no effect).
    """

    def __init__(self, theta, optimizer, sigma, sigma_optimizer=None, *, n_candidates=16, shaping="ranks"):
        if shaping not in SHAPING:
            raise ValueError(f"shaping: expected one of {sorted(SHAPING)}, got {shaping!r}")
        if not np.all(np.asarray(sigma) > 0):
            raise ValueError(f"sigma: expected a positive number, got {sigma}")
        if n_candidates < 2 or n_candidates % 2:
            raise ValueError(f"n_candidates: expected a positive even number (pairs of candidates), got {n_candidates}")
        self.theta, self.log_std = theta, np.full_like(theta, np.log(sigma))
        self.optimizer, self.sigma_optimizer = optimizer, sigma_optimizer
        self.n_candidates, self.shaping = n_candidates, SHAPING[shaping]

    def _params(self):
        return np.concatenate([self.theta, self.log_std])

    def ask(self, rng):
        """θ_i ~ N(μ, diag σ²), then the mirrored 2μ − θ_i: [P, n]."""
        params = np.tile(self._params(), (self.n_candidates // 2, 1))
        thetas = Gaussian(self.theta.size).sample(params, rng)
        return np.concatenate([thetas, 2 * self.theta - thetas])

    def tell(self, thetas, values):
        """μ ← μ + α ∇_μ, log σ ← log σ + α ∇_{log σ}."""
        dmean, dlog_std = np.split(evolution_gradient(self._params(), thetas, self.shaping(values)), 2)
        self.optimizer.step(self.theta, dmean)
        if self.sigma_optimizer:
            self.sigma_optimizer.step(self.log_std, dlog_std)
        return {"grad_norm": float(np.linalg.norm(dmean)), "sigma": float(np.exp(self.log_std).mean())}
