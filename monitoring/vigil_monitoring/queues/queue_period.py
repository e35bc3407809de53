"""Days of traffic that a queue is about."""

from datetime import UTC, date, datetime

import pyarrow.compute as pc

from vigil_monitoring.queues.queue import Queue
from vigil_monitoring.results import Period


def queue_period(queue: Queue) -> Period:
    """Return the period that the record states, else that of the times of the rows, else the day on which it was drawn."""
    times = pc.min_max(queue.table["time"]).as_py()
    drawn = queue.record.created
    drawn_on = datetime.fromisoformat(drawn).date() if drawn else datetime.now(UTC).date()
    ends = []
    for stated, found in ((queue.record.start, times["min"]), (queue.record.end, times["max"])):
        ends.append(date.fromisoformat(stated) if stated else found.date() if found else drawn_on)
    return Period(*ends)
