"""What every test needs: one thread, so that sums are always taken in one order."""

import os

import torch
from hypothesis import settings

torch.set_num_threads(1)

# The time of an example says nothing on a shared machine. CI draws the same examples every time.
settings.register_profile("developer", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "developer")
