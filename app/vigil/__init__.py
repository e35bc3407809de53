"""Train, evaluate and serve multimodal content-safety models.

Every public name is imported on first use, so ``import vigil`` takes no time and serving needs nothing of training.

Example:
    >>> import vigil
    >>> run = vigil.train("recipe.yaml", optimizer__lr=3e-3)
    >>> vigil.evaluate(run, split="test").results.overall.items
    40
    >>> bundle = vigil.export(run, "bundles/tiny")
    >>> [decision] = vigil.Scorer(bundle).score([{"id": "1", "text": ["cat sun rain"]}])
    >>> sorted(decision.probabilities)
    ['bright', 'cat']
"""

from typing import TYPE_CHECKING, Any

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil.api import apply_policy as apply_policy
    from vigil.api import compare as compare
    from vigil.api import compile_policy as compile_policy
    from vigil.api import evaluate as evaluate
    from vigil.api import export as export
    from vigil.api import load_recipe as load_recipe
    from vigil.api import train as train
    from vigil.api import verify as verify
    from vigil_data.dataset.dataset import Dataset as Dataset
    from vigil_data.errors import UserError as UserError
    from vigil_data.items import Item as Item
    from vigil_serving.bundle.load import Bundle as Bundle
    from vigil_serving.runtime.scorer import Scorer as Scorer
    from vigil_training.runs.run import Run as Run

    __version__: str

_export, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Bundle": "vigil_serving.bundle.load",
        "Dataset": "vigil_data.dataset.dataset",
        "Item": "vigil_data.items",
        "Run": "vigil_training.runs.run",
        "Scorer": "vigil_serving.runtime.scorer",
        "UserError": "vigil_data.errors",
        "compare": "vigil.api",
        "apply_policy": "vigil.api",
        "compile_policy": "vigil.api",
        "evaluate": "vigil.api",
        "export": "vigil.api",
        "load_recipe": "vigil.api",
        "train": "vigil.api",
        "verify": "vigil.api",
    },
)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("vigil")
    return _export(name)
