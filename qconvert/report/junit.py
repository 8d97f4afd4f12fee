"""A report as JUnit XML, which every CI server reads: a test case for each gate, headline numbers as properties."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from qconvert.report import words
from qconvert.reports import Gate, Report


def render(report: Report) -> str:
    """The XML; without gates there is one test case, that the measurement was done."""
    missed = str(len(report.missed))
    name = f"qconvert.{report.command}"
    tests = str(len(report.gates) or 1)
    root = ET.Element("testsuites", name="qconvert", tests=tests, failures=missed, errors="0")
    suite = ET.SubElement(root, "testsuite", name=name, tests=tests, failures=missed, errors="0", skipped="0")
    facts = ET.SubElement(suite, "properties")
    for key, value in _facts(report):
        ET.SubElement(facts, "property", name=_clean(key), value=_clean(value))
    for gate in report.gates:
        _case(suite, gate, name)
    if not report.gates:
        ET.SubElement(suite, "testcase", name="measured", classname=name)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _facts(report: Report) -> list[tuple[str, str]]:
    facts = [("title", report.title)]
    facts += [(model.role, f"{model.path} SHA-256 {model.sha256}") for model in report.models]
    if report.data is not None:
        facts.append(("samples", f"{report.data.samples} of {report.data.path}, seed {report.data.seed}"))
    for one in report.measures:
        basis = words.basis(one)
        text = words.amount(one.value.value, one.unit, digits=words.digits(one))
        facts.append((one.key, f"{text} ({basis})" if basis else text))
    return [*facts, *report.versions]


def _case(suite: ET.Element, gate: Gate, classname: str) -> None:
    case = ET.SubElement(suite, "testcase", name=_clean(f"{gate.name}: {gate.title}"), classname=classname)
    if gate.passed:
        return
    line = _clean(words.gate(gate))
    failure = ET.SubElement(case, "failure", message=line, type="gate")
    failure.text = "\n".join((line, *map(_clean, gate.lines)))


def _clean(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return "".join(
        mark
        for mark in text
        if mark in "\t\n" or " " <= mark <= "\ud7ff" or "\ue000" <= mark <= "\ufffd" or mark > "\uffff"
    )
