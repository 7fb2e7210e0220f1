"""Scoring networks and pictures: the core of ``dasr eval``."""

from .methods import METHODS, PEERS, Networks, folder_method, network_methods
from .report import Report
from .run import Evaluation, Record, evaluate
from .vector import VectorErrors, mix_constants

__all__ = [
    "METHODS",
    "PEERS",
    "Evaluation",
    "Networks",
    "Record",
    "Report",
    "VectorErrors",
    "evaluate",
    "folder_method",
    "mix_constants",
    "network_methods",
]
