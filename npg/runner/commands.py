"""The commands for a saved policy: --evaluate, --gif, --watch, --export. Each returns the exit code."""

import contextlib

from npg.runner import figures
from npg.runner.folder import RunError, write_atomically
from npg.runner.machine import draw_without_screen, has_screen
from npg.runner.metrics import rounded
from npg.runner.playing import COMMAND
from npg.runner.runs import Run
from npg.runner.saved import is_pretrained, read_checkpoint, read_config, read_weights, write_weights
from npg.runner.script import prepare

FILM_BYTES = 1e9  # a film's pictures are in memory


def read_policy(script, folder):
    """(config, {name: array}) of the last checkpoint in a folder, or of the script's own policy."""
    if is_pretrained(script, folder):
        config, theta = read_weights(script.pretrained)
        return config, {"theta": theta}
    return read_config(folder), read_checkpoint(folder)


def load(script, folder, **overrides):
    """A `Run` that plays the policy saved in a folder, or the script's own policy.

    overrides  new values for "seed", "episodes", "act", and the settings named in `Script.playing`

    Raises RunError if the run has no such setting.
    """
    config, saved = read_policy(script, folder)
    for name, value in overrides.items():
        changed = config if name in config else config["settings"]
        if name not in changed:
            raise RunError(f"{name}: has no meaning for a policy trained by {config['algo']}")
        changed[name] = value
    run = Run("." if is_pretrained(script, folder) else folder, config, *prepare(script, config, folder))
    run.take_policy(saved, folder)
    return run


def _load(script, command, given):
    names = ("seed", "episodes", "act", *script.playing)
    return load(script, given[command], **{name: given[name] for name in names if name in given})


def evaluate(script, given):
    """Plays episodes and prints their returns."""
    run = _load(script, "evaluate", given)
    with contextlib.closing(run.task):
        returns = run.evaluate(COMMAND, run.config["episodes"] or run.window)
    mean = returns.mean()
    print(
        f"return {rounded(mean)} ± {rounded(returns.std(), mean)} (lowest {rounded(returns.min(), mean)}, "
        f"highest {rounded(returns.max(), mean)}) over {len(returns)} episodes"
    )
    return 0


def gif(script, given):
    """Writes one episode as policy.gif into the folder, or its beginning if the pictures need too much memory."""
    draw_without_screen()
    run, pictures = _load(script, "gif", given), []
    with contextlib.closing(run.task):
        for frame in run.player.frames("rgb_array"):
            picture, fps = frame
            pictures.append(picture)
            if is_cut := len(pictures) * picture.nbytes > FILM_BYTES:
                break
    path = run.folder / "policy.gif"
    write_atomically(path, lambda file: figures.gif(file, pictures, fps))
    end = f"; the film ends before the episode, at {FILM_BYTES / 1e9:g} GB of pictures" if is_cut else ""
    print(f"wrote {path}: {len(pictures)} frames{end}")
    return 0


def watch(script, given):
    """Shows one episode on the screen."""
    if not has_screen():
        raise RunError("--watch: found no screen; use --gif to write the episode to a file")
    run = _load(script, "watch", given)
    with contextlib.closing(run.task):
        for _ in run.player.frames("human"):
            pass
    return 0


def export(script, given):
    """Writes the policy as the pretrained policy of the package."""
    run = _load(script, "export", given)
    write_weights(script.pretrained, run.config, run.learner.theta)
    print(f"wrote {script.pretrained}: {script.pretrained.stat().st_size / 1e6:.1f} MB")
    return 0


COMMANDS = {"evaluate": evaluate, "gif": gif, "watch": watch, "export": export}
