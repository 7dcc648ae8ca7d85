"""Several nodes: raylets on this machine, and nodes in network namespaces whose network can be cut."""

import os

# Ray reads these when it is imported. A busy machine needs more than its half minute to start a raylet.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "600")
os.environ.setdefault("RAY_agent_register_timeout_ms", "600000")
os.environ.setdefault("RAY_worker_register_timeout_seconds", "600")
os.environ.setdefault("RAY_DASHBOARD_STARTUP_TIMEOUT_S", "600")
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
