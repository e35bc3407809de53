"""Traffic: decisions of a traffic log, or any table of scores, as a stream of rows.

Example:
    >>> from vigil_monitoring.traffic import open_traffic
    >>> traffic = open_traffic("traffic", start=date(2026, 11, 1), end=date(2026, 11, 30))
    >>> traffic.rows, traffic.labels
    (1204331, ('scam', 'hate'))
    >>> for batch in traffic.batches(["id", "probability.scam", "action"]):
    ...     ...
"""

from vigil_monitoring.traffic.reader import Traffic as Traffic
from vigil_monitoring.traffic.reader import decisive as decisive
from vigil_monitoring.traffic.reader import open_traffic as open_traffic
