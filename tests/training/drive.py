"""Trains a recipe as its user would, and kills itself on the way if told to; run as a process of its own by test_resume.py.

usage: drive.py RECIPE RUN [KILL_AFTER_STEP]
"""

import os
import signal
import sys
from pathlib import Path


def main() -> None:
    recipe, run = Path(sys.argv[1]), Path(sys.argv[2])

    from vigil_training.fit import fit
    from vigil_training.resolve import dump, resolve
    from vigil_training.tracking import Recorder

    if len(sys.argv) > 3:
        last_step, record = int(sys.argv[3]), Recorder.on_train_batch_end

        def on_train_batch_end(self, trainer, *rest):
            record(self, trainer, *rest)
            if trainer.global_step == last_step:
                os.kill(os.getpid(), signal.SIGKILL)

        Recorder.on_train_batch_end = on_train_batch_end
    resolved = resolve(recipe)
    fit(resolved.recipe, dump(resolved), run)


if __name__ == "__main__":
    main()
