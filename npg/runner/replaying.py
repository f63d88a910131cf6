"""Brings a sampler's environments back to their state after an interruption.

The random numbers at the start of an episode and the actions since then determine the state of an environment. A
checkpoint holds both, and `restore` replays the actions. An environment needs only `reset` and `step` for this.

    SyncVectorEnv              each environment replays its own episode: first a reset with the state that `np_random`
                               had before the episode's reset, then the actions
    a vector environment of    is replayed as a whole, from its seed. Examples: CartPole's own, ale-py's
    one piece

`restore` compares the observations and the last rewards after the replay with the saved ones. If they differ, earlier
episodes have left traces in an environment; then all environments are replayed from their seed. If they still differ,
the environment is not deterministic, and new episodes begin. (A trace that neither shows yet stays unnoticed.)
"""

import json
from concurrent.futures import Future

import numpy as np
from gymnasium.wrappers.vector import NormalizeReward

from npg.rollout import AheadSampler, Rollout
from npg.runner.environments import Log

CARRIED = "obs", "ended", "unfinished_return", "unfinished_length"  # a sampler needs these for its next rollout


def state_of(sampler, logs=None):
    """The state of a sampler: a dict of arrays, texts and dicts. `restore` makes a new sampler continue from it.

    logs   a function that converts a list of environments' logs; None: `packed`

    Waits for rollouts that an `AheadSampler` is collecting.
    """
    state = {"rng": random_state(sampler.rng)}
    if isinstance(sampler, AheadSampler):
        drawn = [future.result() for future in sampler.ahead]
        state["parts"] = {str(k): state_of(part) for k, part in enumerate(sampler.samplers)}
        if drawn:
            state["theta"] = drawn[0].theta  # the same in all rollouts
            state["ahead"] = {str(k): rollout._replace(theta=0)._asdict() for k, rollout in enumerate(drawn)}
    elif sampler.obs is not None:  # otherwise the sampler has not begun
        envs = sampler.envs.unwrapped
        carried = {name: np.array(getattr(sampler, name)) for name in CARRIED}
        state.update(carried, reached=envs.obs, last_reward=envs.rew)
        if isinstance(sampler.envs, NormalizeReward):  # always the outermost wrapper
            arrays = {name: x for name, x in vars(sampler.envs).items() if isinstance(x, np.ndarray)}
            state["scaling"] = {name: np.array(x) for name, x in arrays.items()}
        state["logs"] = {name: (logs or packed)(some) for name, some in envs.logs.items()}
    return state


def restore(sampler, state, progress=iter):
    """Makes a new sampler continue from the `state_of` another sampler. Returns False if new episodes begin instead.

    progress   as in `ReplayableVectorEnv.replay`
    """
    set_random_state(sampler.rng, state["rng"])
    if isinstance(sampler, AheadSampler):
        same = [restore(part, state["parts"][str(k)], progress) for k, part in enumerate(sampler.samplers)]
        for k in range(len(same)) if "ahead" in state else ():
            drawn = {name: np.array(value) for name, value in state["ahead"][str(k)].items()}
            lists = {name: drawn[name].tolist() for name in ("episode_returns", "episode_lengths", "env_steps")}
            sampler.ahead.append(Future())
            sampler.ahead[k].set_result(Rollout(**{**drawn, **lists, "theta": state["theta"]}))
        return all(same)
    if "logs" not in state:
        return True
    logs = {name: unpacked(arrays) for name, arrays in state["logs"].items()}
    if not sampler.envs.unwrapped.replay(logs, state["reached"], state.get("last_reward"), progress):
        begin_anew(sampler)
        return False
    for name in CARRIED:
        setattr(sampler, name, state[name])
    if isinstance(sampler.envs, NormalizeReward):
        vars(sampler.envs).update({name: np.array(x) for name, x in state["scaling"].items()})
    return True


def begin_anew(sampler, *seeds):
    """Makes a new sampler begin with other episodes than its own seeds give: from `seeds`, or else from its `rng`."""
    is_ahead = isinstance(sampler, AheadSampler)
    if seeds:
        own = (*seeds, len(sampler.samplers)) if is_ahead else seeds  # as in AheadSampler: NumPy ignores a last 0
        set_random_state(sampler.rng, random_state(np.random.default_rng(own)))
    if is_ahead:
        for k, part in enumerate(sampler.samplers):
            begin_anew(part, *seeds, k)
    else:
        sampler.seed, sampler.obs = int(sampler.rng.integers(2**31)), None
        sampler.ended = np.zeros_like(sampler.ended)


def packed(logs):
    """A list of `Log`s as {name: array}."""
    actions = [log.actions for log in logs]
    return {
        "starts": np.array([json.dumps(log.start, default=np.ndarray.tolist) for log in logs]),
        "lengths": np.array([len(x) for x in actions]),
        "actions": np.concatenate([x for x in actions if len(x)] or actions),
        "resets": np.array(logs[0].resets, np.int64),  # only a whole log has any
    }


def unpacked(arrays):
    """The inverse of `packed`."""
    starts = [json.loads(str(start)) for start in arrays["starts"]]
    actions = np.split(arrays["actions"], np.cumsum(arrays["lengths"])[:-1])
    return [Log(start, [x] if len(x) else [], arrays["resets"]) for start, x in zip(starts, actions, strict=True)]


def random_state(rng):
    """The state of a `Generator`, as text."""
    return json.dumps(rng.bit_generator.state, default=np.ndarray.tolist)


def set_random_state(rng, text):
    """Sets the state of a `Generator` from a text by `random_state`."""
    rng.bit_generator.state = json.loads(str(text))


def flat(tree, prefix=""):
    """{"a": {"b": x}} → {"a.b": array of x}, because a file of arrays has no nested names."""
    arrays = {}
    for name, value in tree.items():
        is_branch = isinstance(value, dict)
        arrays.update(flat(value, f"{prefix}{name}.") if is_branch else {prefix + name: np.asarray(value)})
    return arrays


def below(name, arrays):
    """The inverse of `flat` for one name: below("a", {"a.b": x}) → {"b": x}."""
    branch = {}
    for path, array in arrays.items():
        if path.startswith(f"{name}."):
            _, *keys, leaf = path.split(".")
            place = branch
            for key in keys:
                place = place.setdefault(key, {})
            place[leaf] = array
    return branch
