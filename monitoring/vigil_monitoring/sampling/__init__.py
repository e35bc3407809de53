"""Probability samples of traffic for review: designs, the draw, and the precision that a budget buys."""

from vigil_monitoring.sampling.design import Design as Design
from vigil_monitoring.sampling.design import read_design as read_design
from vigil_monitoring.sampling.draw import Drawn as Drawn
from vigil_monitoring.sampling.draw import draw as draw
from vigil_monitoring.sampling.draw import expected_precision as expected_precision
from vigil_monitoring.sampling.power import Precision as Precision
