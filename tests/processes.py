"""Run the program as its users do: in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_python(*words, **env):
    """Run Python on the words; return what it answered, said and ended with."""
    return _run([sys.executable, *map(str, words)], env)


def press_tab(module, name, *words, shell="bash", **env):
    """Press TAB after the last of the words; return what is offered."""
    asked = {
        "bash": {"COMP_WORDS": " ".join([name, *words]), "COMP_CWORD": str(len(words))},
        "zsh": {"_TYPER_COMPLETE_ARGS": " ".join([name, *words])},
        "fish": {
            "_TYPER_COMPLETE_ARGS": " ".join([name, *words]),
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        },
    }
    code = f"from {module} import app; app(prog_name={name!r})"
    variable = {f"_{name.upper()}_COMPLETE": f"complete_{shell}"}
    done = _run([sys.executable, "-c", code], variable | asked[shell] | env)
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout.removesuffix("\n").splitlines()


def _run(words, env):
    return subprocess.run(
        words,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
