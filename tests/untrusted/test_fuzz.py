"""Two hundred damaged files of every format: each is refused by name or read with its own shapes."""

import importlib.util
import logging
import resource
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "fuzz_readers.py"
SPEC = importlib.util.spec_from_file_location("fuzz_readers", PATH)
fuzz = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_no_damaged_file_is_read_with_other_shapes(tmp_path, name, caplog):
    caplog.set_level(logging.ERROR)
    before = resource.getrusage(resource.RUSAGE_SELF)
    outcomes = {outcome: len(cases) for outcome, cases in fuzz.run(name, 200, tmp_path).items()}
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert set(outcomes) <= {"refused", "equal", "other values"}, outcomes
    assert outcomes["refused"] > 60
    assert sum(outcomes.values()) == 200
    assert after.ru_maxrss - before.ru_maxrss < 200_000
    if name in ("pth", "index.npz", "tar"):  # checksums: damage that is not refused lies outside the values
        assert "other values" not in outcomes
