"""The cluster of ``cluster.py``, started once for all tests that need it."""

import cluster
import pytest
from submitter import Submitter


@pytest.fixture(scope="session")
def slurm():
    reason = cluster.why_not()
    if reason:
        pytest.skip(f"no Slurm here: {reason}")
    cluster.up()
    yield cluster
    cluster.down()


@pytest.fixture
def submit(slurm, tmp_path) -> Submitter:
    return Submitter(tmp_path)
