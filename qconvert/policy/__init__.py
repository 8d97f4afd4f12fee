"""What the user wants, as a YAML file: ``load`` it, ``resolve`` it for each operator, refuse what is ``unmatched``.

A policy says only what it cares about. For each operator, what the first matching rule leaves open comes from the
defaults, and what they leave open from the target: ``settings = first_match.over(defaults)``.
"""

from qconvert.policy.load import dump, load, loads
from qconvert.policy.model import Defaults, Match, Place, Policy, Rule, Scheme
from qconvert.policy.resolve import Settings, resolve, unmatched
from qconvert.policy.schema import json_schema
from qconvert.policy.template import template

__all__ = [
    "Defaults",
    "Match",
    "Place",
    "Policy",
    "Rule",
    "Scheme",
    "Settings",
    "dump",
    "json_schema",
    "load",
    "loads",
    "resolve",
    "template",
    "unmatched",
]
