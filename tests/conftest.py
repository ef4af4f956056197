"""What holds for all tests."""

import os

import pytest
from hypothesis import settings

# A machine that is busy is no failure. Continuous integration judges a change, so it runs the same examples each time;
# developers' machines look for new ones.
settings.register_profile("skerry", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("skerry")


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Programs under test find and leave nothing in the caches of whoever runs the tests."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
