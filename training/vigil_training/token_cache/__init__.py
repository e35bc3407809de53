"""The token cache: frozen encoders run once over a dataset, and training reads what they made of it.

:mod:`.plan` decides what has to be there, :mod:`.fill` computes what is missing. Where tokens are kept is the concern of
:mod:`vigil_data.dataset.token_cache`, and how they are read of :mod:`vigil_data.loading.token_files`.
"""

from vigil_training.token_cache.fill import fill_token_cache as fill_token_cache
from vigil_training.token_cache.plan import CachePlan as CachePlan
from vigil_training.token_cache.plan import plan_token_cache as plan_token_cache
