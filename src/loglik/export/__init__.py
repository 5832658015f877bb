"""What gives a run to others: its density's graphs for other programs, and its files with a model card for the hub."""

from loglik.export.card import card, disclosures
from loglik.export.export import FORMATS, Exported, export
from loglik.export.graph import PARTS, parts_of
from loglik.export.push import Push, prepare

__all__ = ["FORMATS", "PARTS", "Exported", "Push", "card", "disclosures", "export", "parts_of", "prepare"]
