"""Review queues: the decisions that people are asked about, with the probability with which each was chosen."""

from vigil_monitoring.queues.queue import KINDS as KINDS
from vigil_monitoring.queues.queue import PURPOSES as PURPOSES
from vigil_monitoring.queues.queue import Queue as Queue
from vigil_monitoring.queues.queue import QueueRecord as QueueRecord
from vigil_monitoring.queues.queue import StratumTotals as StratumTotals
from vigil_monitoring.queues.queue import queue_table as queue_table
from vigil_monitoring.queues.queue import read_queue as read_queue
from vigil_monitoring.queues.queue import record_file as record_file
from vigil_monitoring.queues.queue import write_queue as write_queue
