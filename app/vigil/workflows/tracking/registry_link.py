"""Link of a promoted bundle in W&B's registry, after the local promotion, which is the gate."""

import tempfile
from pathlib import Path

from vigil.workflows.monitor.promotion import Promotion, record_promotion
from vigil_data.errors import Failure
from vigil_data.filesystem import StrPath
from vigil_data.lineage import Node
from vigil_serving.bundle.load import load_bundle
from vigil_training.runs.run import Run
from vigil_training.tracking.artifacts import files_of_wandb_in, link_to_registry, open_target, registry_path
from vigil_training.tracking.sync.replay import REGISTRY, promotion_step
from vigil_training.tracking.sync.sending import last_target, record_sent

__all__ = ["link_promoted", "registry_path"]


def link_promoted(made: Promotion, models: StrPath, to: str) -> str:
    """Let the alias of a promotion point to its bundle in W&B's registry, and return its name there.

    Args:
        made: the promotion.
        models: folder of the aliases.
        to: ``[ENTITY/]REGISTRY/NAME``.

    Raises:
        Failure: if the link cannot be made; the promotion stands, and the message names the command that repeats the link;
            the next `vigil track sync` of the bundle's run makes it, too.
    """
    bundle = Path(made.bundle.path)
    promotion = record_promotion(made, models, **{REGISTRY: to})
    try:
        return _link(bundle, made, promotion, to)
    except Failure as failure:
        raise Failure(
            f"{failure}\nthe promotion stands, only the link in W&B is missing; make it with `vigil promote {bundle} --to "
            f"{made.alias} --wandb {to}`, and --models and --public-key as before"
        ) from failure


def _link(bundle: Path, made: Promotion, promotion: Node, to: str) -> str:
    lineage = load_bundle(bundle, check_hashes=False).metadata.lineage
    run_id, known = lineage.get("run_id"), lineage.get("wandb")
    if not run_id or not known:
        raise Failure(f"{bundle}: its run was not tracked (tracking.mode was disabled), so W&B has no artifact of it")
    folder = Path(lineage.get("run", ""))
    run = Run(folder) if (folder / "resolved.yaml").is_file() else None
    if run is not None and run.run_id != run_id:
        run = None
    # A run that was sent to another project than its recipe names was sent there with --project.
    entity, project = (None if run is None else last_target(run)) or (known["entity"], known["project"])
    step = promotion_step(promotion, Node("bundle", made.bundle.digest), run_id)
    with files_of_wandb_in(Path(tempfile.gettempdir())):
        target = open_target(entity, project)
        linked = link_to_registry(target, step.collection, made.bundle.digest, to, made.alias)
    if linked is None:
        raise Failure(
            f"{target}: has no artifact {step.collection} of this bundle ({made.bundle.digest[:12]}); send it, and with it the "
            f"link, with `vigil track sync {folder}`"
        )
    if run is not None:
        record_sent(run, target, step, linked)
    return linked
