"""Scoring networks and pictures: the core of ``dasr eval``."""

from .journal import JOURNAL_SUFFIX, Journal, file_digest, source_digest
from .methods import DASR_METHODS, METHODS, PEERS, Networks, folder_method, network_methods
from .report import Report, plain_name
from .run import Evaluation, Record, evaluate
from .vector import VectorErrors, mix_constants

__all__ = [
    "DASR_METHODS",
    "JOURNAL_SUFFIX",
    "METHODS",
    "PEERS",
    "Evaluation",
    "Journal",
    "Networks",
    "Record",
    "Report",
    "VectorErrors",
    "evaluate",
    "file_digest",
    "folder_method",
    "mix_constants",
    "network_methods",
    "plain_name",
    "source_digest",
]
