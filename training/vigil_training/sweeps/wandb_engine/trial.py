"""One trial of W&B's agent, which starts this.

    python -m vigil_training.sweeps.wandb_engine.trial SWEEPDIR POINT.json

The variables of the agent (WANDB_SWEEP_ID, WANDB_RUN_ID) reach the training, whose tracked run belongs to W&B's sweep by them.
"""

import json
import sys
from pathlib import Path

from vigil_data.errors import Failure, UserError
from vigil_training.distributed.preemption import Preemption
from vigil_training.sweeps.space import decode_point
from vigil_training.sweeps.sweep_folder import SweepFolder
from vigil_training.sweeps.worker import run_point


def main() -> None:
    """Run the trial; a trial that fails is recorded, and is no failure of this process."""
    folder = SweepFolder(sys.argv[1])
    values = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    try:
        with Preemption(ignore_on_exit=True) as stop:
            run_point(folder, decode_point(folder.plan.spec.space, values), stop)
    except (UserError, Failure) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2 if isinstance(error, UserError) else error.status)


if __name__ == "__main__":
    main()
