"""Dataset cards: what a dataset contains and what to be careful about, as facts, Markdown and Croissant metadata.

The HTML page is drawn by :mod:`vigil_evaluation.report.dataset_card_page`, in the style of the other pages.

Example:
    >>> from vigil_data import Dataset
    >>> from vigil_data.card import dataset_facts
    >>> facts = dataset_facts(Dataset("datasets/posts"))
    >>> facts.items, facts.labels["promotion"].all.prevalence
    (1200, 0.14)
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_data.card.collect import dataset_facts as dataset_facts
    from vigil_data.card.facts import DatasetFacts as DatasetFacts
    from vigil_data.card.facts import facts_to_json as facts_to_json
    from vigil_data.card.statements import Statements as Statements

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "DatasetFacts": "vigil_data.card.facts",
        "Statements": "vigil_data.card.statements",
        "dataset_facts": "vigil_data.card.collect",
        "facts_to_json": "vigil_data.card.facts",
    },
)
