"""Reads the files that a run has saved: config.json, checkpoint.npz. Reads and writes files with a policy alone."""

import json
import pathlib
import zipfile

import numpy as np

from npg.runner.folder import RunError, write_atomically
from npg.runner.metrics import COUNTERS

PRETRAINED = "pretrained"  # this name can replace the folder of a run
FORMAT, EARLIER_FORMAT = "npg run 2", "npg run 1"
# settings of the earlier format: {earlier name: present name}
RENAMED = {"value_weight": "value_coef", "entropy_weight": "entropy_coef"}
RENAMED_IN_SEARCHES = {"sigma": "search_sigma", "log_std": "search_log_std"}
SEARCHES = ("es", "hill-climbing", "genetic")


def is_pretrained(script, folder):
    """Whether `folder` is the name of the policy that comes with this script."""
    return script.pretrained is not None and str(folder) == PRETRAINED


def read_config(folder):
    """Reads config.json of a run folder. RunError if it is missing, damaged, or not of an npg run."""
    path = pathlib.Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"{folder}: no run here (no config.json)") from None
    except RecursionError:
        raise RunError(f"{path}: cannot be read: nested too deeply") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None
    if not isinstance(config, dict) or config.get("format") not in (FORMAT, EARLIER_FORMAT):
        raise RunError(f"{path}: not the config of an npg run (expected format {FORMAT!r})")
    needed = {"env", "algo", "seed", "steps", "target", "episodes", "evaluate_every", "checkpoint_every", "settings"}
    if needed - config.keys() or not isinstance(config["settings"], dict):
        raise RunError(f"{path}: damaged: no valid {', '.join(sorted(needed - config.keys())) or 'settings'}")
    for name in ("env", "algo", "cluster", "start_from"):  # needed before the settings can be checked
        if not isinstance(config.get(name), str) and (name in ("env", "algo") or config.get(name) is not None):
            raise RunError(f"{path}: {name}: expected a string, got {config[name]!r}")
    return in_this_format(config)


def in_this_format(config):
    """Converts a config of the earlier format to the present format, with the present names of its settings."""
    if config.get("format") == EARLIER_FORMAT:
        renamed = {**RENAMED, **(RENAMED_IN_SEARCHES if config["algo"] in SEARCHES else {})}
        settings = {renamed.get(name, name): value for name, value in config["settings"].items()}
        if config["algo"] == "ppo":
            settings.setdefault("clip", 0.2)  # it could not be changed
        if config.get("workers"):
            settings["workers"] = config["workers"]
        if config["env"] == "Pong" and (settings.get("hidden"), settings.get("activation")) == ([200], "relu"):
            del settings["hidden"], settings["activation"]  # run_pong.py now fixes the network
        config = {**config, "format": FORMAT, "settings": settings, "from_earlier_format": True}
    return config


def read_checkpoint(folder):
    """Reads {name: array} from checkpoint.npz. RunError if it is missing, damaged, or not of an npg run."""
    path = pathlib.Path(folder) / "checkpoint.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            if sum(member.file_size for member in file.zip.infolist()) > path.stat().st_size:
                raise ValueError("its header announces more data than the file holds")  # npg never compresses it
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise RunError(f"{path}: no checkpoint here") from None
    except Exception as error:  # damaged bytes raise errors of zipfile and NumPy that have no common base
        raise RunError(f"{path}: not a readable checkpoint: {error}") from None
    missing = {"format", "theta", *COUNTERS} - set(arrays)
    if missing or str(arrays["format"]) not in (FORMAT, EARLIER_FORMAT):
        raise RunError(f"{path}: not the checkpoint of an npg run (expected format {FORMAT!r})")
    return arrays


def write_weights(path, config, theta):
    """Writes a policy alone, for distribution: its config, and θ in half precision, compressed."""
    arrays = {"config": np.asarray(json.dumps(config)), "theta": theta.astype(np.float16)}
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def read_weights(path):
    """Reads (config, θ) from a file by `write_weights`. RunError if the file cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return in_this_format(json.loads(str(file["config"]))), file["theta"].astype(np.float32)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None
