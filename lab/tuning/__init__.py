"""Fine-tuning: pairs in, a better checkpoint out, measured before and after."""

import os

# Threads that spin while they wait would take the cores from another process. Torch reads this when it is loaded.
os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY") or "passive"
