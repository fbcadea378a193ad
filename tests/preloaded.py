"""The imports of the server in `processes`, which its processes need not repeat: torch, Lightning, Hydra, linear_lab.

The modules of commands are not imported, since a process runs one of them as ``__main__``.
"""

import gc
import logging

handler = logging.NullHandler()  # without one, Lightning would add its own and not propagate its messages
logging.getLogger().addHandler(handler)

import linear_lab.cli  # noqa: E402
import linear_lab.fitting.run  # noqa: E402
import linear_lab.sweep.job  # noqa: E402
import linear_lab.sweep.page  # noqa: E402, F401

logging.getLogger().removeHandler(handler)
gc.freeze()  # a collection then skips what has been imported
