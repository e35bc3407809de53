"""The dashboard: what a folder of results says, as one page and as Prometheus metrics.

Example:
    >>> dashboard = read_dashboard(Path("results"), read_history(open_traffic("traffic")))
    >>> write_page(dashboard, "report.html")
"""

from vigil_monitoring.report.dashboard import Dashboard as Dashboard
from vigil_monitoring.report.dashboard import read_dashboard as read_dashboard
from vigil_monitoring.report.history import TrafficHistory as TrafficHistory
from vigil_monitoring.report.history import read_history as read_history
from vigil_monitoring.report.page import write_page as write_page
from vigil_monitoring.report.prometheus import write_prometheus as write_prometheus
from vigil_monitoring.report.truth import TrueValue as TrueValue
from vigil_monitoring.report.truth import TruthResult as TruthResult
