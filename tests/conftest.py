"""What holds for all tests."""

import os

from hypothesis import settings

# Continuous integration judges a change, so it runs the same examples each time; developers' machines look for new ones.
settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
