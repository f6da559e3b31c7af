"""What holds for every test: repeatable examples, no window system, nothing written to the user's results."""

import os

import pytest
from hypothesis import settings

os.environ["MPLBACKEND"] = "agg"
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def results(tmp_path_factory):
    """Send results to a folder of the test run's own."""
    os.environ["SELFSERVE_RESULTS"] = str(tmp_path_factory.mktemp("results"))
