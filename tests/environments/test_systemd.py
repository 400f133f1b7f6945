"""systemd accepts deploy/gregor.service as it is, except for the place of the program."""

import subprocess
import sys
from pathlib import Path

UNIT = Path(__file__).parents[2] / "deploy" / "gregor.service"
PROGRAM = "/opt/gregor/bin/gregor serve"


def analyze(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ("systemd-analyze", *arguments), capture_output=True, text=True, check=False
    )


def unit_for(program: str, folder: Path) -> str:
    """A copy of the unit that starts another program: one that exists."""
    text = UNIT.read_text()
    assert PROGRAM in text
    path = folder / UNIT.name
    path.write_text(text.replace(PROGRAM, program))
    return str(path)


def test_unit_is_valid(tmp_path: Path) -> None:
    result = analyze("verify", unit_for(sys.executable, tmp_path))
    assert (result.returncode, result.stderr) == (0, "")


def test_unit_exposes_little_of_the_system(tmp_path: Path) -> None:
    unit = unit_for(sys.executable, tmp_path)
    result = analyze("security", "--offline=true", "--threshold=25", unit)
    assert result.returncode == 0, result.stdout
