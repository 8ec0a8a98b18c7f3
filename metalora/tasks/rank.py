"""Another process of a Stage-1 run on this machine, started by the first one (`metalora.training.launcher`).

    python -m metalora.tasks.rank '[VALUES, CLASS_NOUN]'

It does what the first one does with the same values, without a word; the files are the first one's.
"""

import json
import os
import sys
import threading
import time

from metalora.core.errors import INTERRUPTED, UserError

_GRACE = 10.0
"""Seconds in which a process whose first one is gone may notice by itself."""


def main(argument: str) -> None:
    """Train along; what a person can mend ends in one line and exit status 2."""
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    from metalora.running.setting import Setting
    from metalora.tasks.meta_train import meta_train

    values, class_noun = json.loads(argument)
    try:
        meta_train(Setting(values), class_noun=class_noun, progress=lambda stage, done, total: None, started=True)
    except UserError as error:
        print(f"metalora: process {os.environ.get('LOCAL_RANK')}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def _leave_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(_GRACE)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
