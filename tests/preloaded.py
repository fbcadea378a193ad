"""What the server of `processes` imports, so that none of its processes has to: torch, Lightning, Hydra, most of ours.

Entries are left out: each process runs its own as ``__main__``.
"""

import logging

handler = logging.NullHandler()  # as Hydra's is there in a command: else Lightning would keep its messages from the log
logging.getLogger().addHandler(handler)

import linear_lab.cli  # noqa: E402
import linear_lab.fitting.run  # noqa: E402
import linear_lab.sweep.job  # noqa: E402
import linear_lab.sweep.page  # noqa: E402, F401

logging.getLogger().removeHandler(handler)
