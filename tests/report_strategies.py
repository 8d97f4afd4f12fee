"""Any report: what Hypothesis draws for the renderers."""

from __future__ import annotations

from hypothesis import strategies as st

from qconvert.reports import (
    Bar,
    Bars,
    Cell,
    Citation,
    Column,
    Data,
    Distribution,
    Front,
    Gate,
    Mark,
    Measure,
    Model,
    Point,
    Report,
    Section,
    Series,
    Table,
    Trend,
    Value,
)

UNITS = ("dB", "points", "%", "ms", "B", "x", "")
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30),
    st.sampled_from(["/model/layer.0/Conv_output_0", "<script>alert(1)</script>", "a|b", "`x` *y* _z_", "'\"&", ""]),
)
NUMBERS = st.floats(-1e12, 1e12)


@st.composite
def values(draw: st.DrawFn) -> Value:
    low, value, high = sorted(draw(st.tuples(NUMBERS, NUMBERS, NUMBERS)))
    samples = draw(st.none() | st.integers(1, 10**6))
    return Value(value, low, high, samples) if draw(st.booleans()) else Value(value, samples=samples)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    columns = draw(
        st.lists(
            st.builds(Column, TEXTS, st.sampled_from(UNITS), st.integers(0, 6), st.booleans()), min_size=1, max_size=5
        )
    )
    numbers: st.SearchStrategy[Cell] = st.none() | NUMBERS | st.integers(-(10**9), 10**9) | values()
    row = st.tuples(*(TEXTS if column.text else numbers for column in columns))
    return Table(tuple(columns), tuple(draw(st.lists(row, max_size=30))), draw(TEXTS))


@st.composite
def trends(draw: st.DrawFn) -> Trend:
    count = draw(st.integers(1, 12))
    line = st.lists(st.none() | NUMBERS, min_size=count, max_size=count).map(tuple)
    series = draw(st.lists(st.builds(Series, TEXTS, line), min_size=1, max_size=3).map(tuple))
    marked = draw(st.lists(st.integers(0, count - 1), unique=True, max_size=4).map(tuple))
    names = draw(st.lists(TEXTS, min_size=count, max_size=count).map(tuple))
    return Trend(draw(TEXTS), draw(st.sampled_from(UNITS)), names, series, marked)


@st.composite
def distributions(draw: st.DrawFn) -> Distribution:
    count = draw(st.integers(1, 12))
    low, width = draw(st.floats(-1e6, 1e6)), draw(st.floats(1e-3, 1e3))
    edges = tuple(low + width * index for index in range(count + 1))
    counts = draw(st.lists(st.integers(0, 10**9), min_size=count, max_size=count).filter(any).map(tuple))
    return Distribution(
        draw(TEXTS), edges, counts, draw(st.lists(st.builds(Mark, TEXTS, NUMBERS), max_size=5).map(tuple))
    )


BARS = st.builds(
    Bars,
    TEXTS,
    st.sampled_from(UNITS),
    st.lists(st.builds(Bar, TEXTS, values(), TEXTS, st.booleans()), max_size=6).map(tuple),
)
FRONTS = st.builds(
    Front,
    TEXTS,
    st.builds(Column, TEXTS, st.sampled_from(UNITS)),
    st.builds(Column, TEXTS, st.sampled_from(UNITS)),
    st.lists(st.builds(Point, TEXTS, NUMBERS, NUMBERS, st.booleans(), st.booleans()), min_size=1, max_size=8).map(
        tuple
    ),
)
SECTIONS = st.builds(
    Section,
    TEXTS,
    st.lists(TEXTS, max_size=2).map(tuple),
    st.lists(tables(), max_size=2).map(tuple),
    st.lists(BARS | trends() | distributions() | FRONTS, max_size=3).map(tuple),
    st.booleans(),
)
GATES = st.builds(
    Gate,
    TEXTS,
    TEXTS,
    st.sampled_from(("at most", "at least")),
    NUMBERS,
    NUMBERS,
    st.sampled_from(UNITS),
    st.booleans(),
    st.none() | st.integers(1, 1000),
    st.lists(TEXTS, max_size=2).map(tuple),
)
MEASURES = st.builds(Measure, TEXTS, TEXTS, values(), st.sampled_from(UNITS), st.sampled_from(("up", "down", "none")))
REPORTS = st.builds(
    Report,
    TEXTS,
    st.sampled_from(("evaluate", "compare")),
    st.lists(st.builds(Model, TEXTS, TEXTS, TEXTS, st.integers(0, 10**12)), max_size=2).map(tuple),
    st.none() | st.builds(Data, TEXTS, TEXTS, st.integers(0, 10**6), st.integers(0, 9), TEXTS, TEXTS),
    st.lists(MEASURES, max_size=4).map(tuple),
    st.lists(SECTIONS, max_size=3).map(tuple),
    st.lists(GATES, max_size=3).map(tuple),
    TEXTS,
    st.lists(
        st.builds(Citation, TEXTS, TEXTS, st.sampled_from(("", "https://arxiv.org/abs/2206.06501"))), max_size=2
    ).map(tuple),
    st.lists(TEXTS, max_size=2).map(tuple),
    st.lists(st.tuples(TEXTS, TEXTS), max_size=2).map(tuple),
)
