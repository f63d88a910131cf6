"""Describes a run script to the command line: its algorithms and their settings. Makes the `Learner` of a config."""

import inspect
from collections.abc import Callable, Collection
from typing import NamedTuple

from gymnasium import spaces

from npg.runner import environments
from npg.runner.folder import RunError
from npg.runner.memory import check_memory
from npg.runner.settings import check, check_declared, keyword_only
from npg.runner.task import Task, stochastic_policy


class Script(NamedTuple):
    """A run script: its algorithms, its training loop, and the defaults of the command line.

    algorithms   {--algo: (the script's function, the functions or classes that receive its **settings)}
    train        train(run, learner): the loop
    searches     names of the algorithms that are searches, not policy gradients
    elsewhere    {--algo: {setting: default}}: defaults that are different in other environments than the script's own
    box          {--algo: {setting: default}}: defaults that are different for Box actions
    shared       {--algo: {setting: default}}: defaults that are different with --shared
    defaults     {setting: default}: defaults that are different in this script, for every algorithm
    """

    algorithms: dict
    train: Callable
    searches: Collection = ()
    description: str = ""
    elsewhere: dict = {}
    box: dict = {}
    shared: dict = {}
    defaults: dict = {}
    steps: dict = {}  # {--algo: default budget of environment steps}
    window: int = 100  # the mean return of this many last training episodes is reported
    solved_by_evaluations: bool = False  # whether evaluations, not this mean return, show that the task is solved
    evaluate_within: float | None = None  # evaluations begin when this mean is at most so far below the target
    side_by_side: int | None = None  # episodes that an evaluation plays at the same time; None: the fastest number
    step_cost: float = 1.0  # time of a step of an evaluation, in steps of training, where episodes are few at a time
    make_envs: Callable = environments.make_envs  # (env, n, *, settings of the environment) → vector environment
    make_env: Callable = environments.make_env  # (env, render_mode, *, the same) → one environment, for rendering
    one_logit: bool = False  # one logit gives the two actions (Bernoulli), not two logits (Categorical)
    worker_options: dict = {}  # further arguments of `make_envs` in a worker process
    playing: tuple = ()  # settings of the environment that --evaluate may override: the policy does not see them
    pretrained: object = None  # path of the weights that come with the package

    def settings_of(self, algo, is_box, *, elsewhere=False, shared=False):
        """{name: inspect.Parameter} of all settings of an algorithm, with the defaults of this kind of run.

        is_box      whether the actions are Box
        elsewhere   whether the environment is another one than the script's own
        shared      whether actor and critic share one network
        """
        functions = [*self.algorithms[algo], self.make_envs, _run]
        if algo not in self.searches:
            functions += [_playing, _rewards]
        if algo not in self.searches and is_box and not self.one_logit:
            functions.append(stochastic_policy)
        if "workers" in keyword_only(functions[0]):
            functions.append(_cluster)
        often = {"evaluate_every": 1} if algo in self.searches else {}  # an update of a search takes many episodes
        budget = {"steps": self.steps[algo]} if algo in self.steps else {}
        otherwise = {**self.defaults, **often, **budget}
        otherwise |= self.elsewhere.get(algo, {}) if elsewhere else {}
        otherwise |= self.box.get(algo, {}) if is_box else {}
        otherwise |= self.shared.get(algo, {}) if shared else {}
        found = {}
        for function in functions:
            found = {**keyword_only(function), **found}  # the first function that has a setting gives the default
        found = {name: p.replace(default=otherwise.get(name, p.default)) for name, p in found.items()}
        for parameter in found.values():
            check_declared(parameter)
        order = [*RUN, *(name for function in functions for name in keyword_only(function))]
        return {name: found[name] for name in order if name in found}

    def probe(self, env):
        """A closed vector environment. It still tells its spaces and its `spec`."""
        envs = self.make_envs(env, 1)
        envs.close()
        return envs


# Nobody calls the next four functions. Their signatures hold the settings that no algorithm's function takes.


def _run(
    *, env="CartPole-v1", seed=0, steps=200_000, target: float | None = None, episodes: int | None = None,
    evaluate_every=25, checkpoint_every="30s", start_from: str | None = None,
):
    """Settings of every run."""


def _cluster(*, cluster: str | None = None):
    """A setting of every algorithm that accepts workers."""


def _playing(*, act="sampled"):
    """A setting of every policy gradient, for its evaluations and films."""


def _rewards(*, scale_rewards=False):
    """A setting of every policy gradient."""


EVALUATE_FROM = inspect.Parameter("evaluate_from", inspect.Parameter.KEYWORD_ONLY, annotation=float | None)
RUN = [name for function in (_run, _cluster) for name in keyword_only(function)]  # all others: "settings"


def prepare(script, config, source=None, executor=None):
    """Makes (Task, Learner) from a config, but does not start training. RunError if the config cannot be used.

    source   where the config was read, for the error messages; None: a new run
    """
    where = "" if source is None else f"{source}: "
    algo, given = config["algo"], config["settings"]
    try:
        if algo not in list(script.algorithms):
            raise ValueError(f"algo: expected one of {', '.join(script.algorithms)}, got {algo!r}")
        probe = script.probe(config["env"])
        parameters = script.settings_of(algo, isinstance(probe.single_action_space, spaces.Box))
        if config.get("from_earlier_format"):  # the earlier format had fewer settings
            given = {**{name: p.default for name, p in parameters.items() if name not in RUN}, **given}
        for name in given:
            if name not in parameters or name in RUN:
                raise ValueError(f"{name}: not a setting of {algo}")
        given = {**given, **{name: config.get(name) for name in RUN if name in parameters}}
        settings = {name: check(parameter, given[name]) for name, parameter in parameters.items()}
        check(EVALUATE_FROM, config.get("evaluate_from"))
        for name in RUN:
            if name not in parameters and config.get(name) is not None:
                raise ValueError(f"{name}: not a setting of {algo}")
        if settings.get("cluster") and not settings["workers"]:
            raise ValueError("cluster: needs workers, the number of calls that the cluster computes at the same time")
        task = Task(script, settings["env"], settings["seed"], settings, probe, executor)
        check_memory(settings, probe.single_observation_space, probe.single_action_space, task.at_a_time)
        functions = script.algorithms[algo]
        its_own = {name: settings[name] for function in functions for name in keyword_only(function)}
    except environments.UnsupportedEnvironment:
        raise
    except KeyError as error:
        raise RunError(f"{where}config lacks {error}; is it a run of another script?") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{where}{error}") from None
    try:
        learner = functions[0](task, **its_own)
    except ValueError as error:  # settings that do not fit together; another exception is a mistake in the function
        raise RunError(f"{where}{error}") from None
    task.is_complete = True
    return task, learner
