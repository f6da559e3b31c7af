"""What holds for every test: repeatable examples, no window system, nothing written to the user's results."""

import os
from importlib.util import find_spec

import pytest
from hypothesis import settings

os.environ["MPLBACKEND"] = "agg"
collect_ignore = [] if find_spec("ray") else ["test_ray.py"]
"""Ray is an extra."""
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def results(tmp_path_factory):
    """Send results to a folder of the test run's own."""
    os.environ["SELFSERVE_RESULTS"] = str(tmp_path_factory.mktemp("results"))
