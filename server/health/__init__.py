"""How the server is: what `/health`, `/ready`, `/live` and the `system:health` stream tell.

`watch.py` probes and reports; `standings.py` knows since when a dependency is as it is;
`loop_lag.py`, `disk.py` measure; `activity.py`, `overview.py` gather what admins see besides.
"""

from server.health.watch import SLOW_STORE_S, Health

__all__ = ["SLOW_STORE_S", "Health"]
