"""Functional suites: YAML templates and perturbations to items with minimal pairs."""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_data.suites.build import make as make
    from vigil_data.suites.planned_items import PlannedItem as PlannedItem
    from vigil_data.suites.planned_items import plan_items as plan_items
    from vigil_data.suites.specs import Suite as Suite
    from vigil_data.suites.validation import ValidatedSuite as ValidatedSuite

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "PlannedItem": "vigil_data.suites.planned_items",
        "Suite": "vigil_data.suites.specs",
        "ValidatedSuite": "vigil_data.suites.validation",
        "make": "vigil_data.suites.build",
        "plan_items": "vigil_data.suites.planned_items",
    },
)
