"""What holds for all tests."""

import os

from hypothesis import settings

# A machine that is busy is no failure. Continuous integration judges a change, so it runs the same examples each time;
# developers' machines look for new ones.
settings.register_profile("skerry", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("skerry")
