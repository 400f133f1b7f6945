"""A quick run produces every figure; only a full run produces meaningful values."""

import msgspec
import pytest

from bench import MEASUREMENTS, run
from bench.report import Figure, Wanted
from gregor.errors import SetupError


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_quick_run_produces_the_figure(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(quick=True, only=[name], json=True) == 0
    figures = msgspec.json.decode(capsys.readouterr().out)["figures"]
    assert figures
    assert figures[0]["ratio"] > 0


def test_unknown_figure_raises_setup_error_with_its_name() -> None:
    with pytest.raises(SetupError, match="speed"):
        run(only=["speed"])


@pytest.mark.parametrize(
    ("ratio", "wanted", "met"),
    [
        (0.5, Wanted.AT_LEAST, True),
        (0.4, Wanted.AT_LEAST, True),
        (0.3, Wanted.AT_LEAST, False),
        (0.3, Wanted.BELOW, True),
        (0.4, Wanted.BELOW, False),
    ],
)
def test_verdict_follows_from_ratio_and_threshold(ratio: float, wanted: Wanted, met: bool) -> None:
    figure = Figure(name="speed", measured="", ratio=ratio, wanted=wanted, threshold=0.4)
    assert figure.met is met
