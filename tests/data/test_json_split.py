"""The splitter against `json`, whatever the length of the chunks."""

import io
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from instructjax.data import json_split
from instructjax.data.json_split import BrokenJson, JsonSplitter

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.text(alphabet='"\\[]{},: \n'),
)
values = st.recursive(
    leaves, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(), v, max_size=4)
)


@pytest.fixture(scope="module", params=[1, 2, 7, 1 << 18])
def chunk(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_split, "_CHUNK", request.param)
        yield request.param


@given(rows=st.lists(values, max_size=6), indent=st.sampled_from([None, 1]), ascii=st.booleans())
@example(rows=[{"": None, "0\x1f": None}], indent=None, ascii=True)  # cut short after a backslash
@example(rows=[{"a": ["b"] * 9000}], indent=None, ascii=True)
@settings(max_examples=60, deadline=None)
def test_elements_are_those_of_the_list(chunk, rows, indent, ascii):
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    splitter = JsonSplitter(io.BytesIO(text + b" tail"))
    parts = list(splitter.split_array())
    # Compared as text: NaN is not equal to itself.
    expected = [json.dumps(row) for row in rows]
    assert [json.dumps(json.loads(p.decode("utf-8", "surrogatepass"))) for p in parts] == expected
    assert splitter.peek() == "t"


@given(rows=st.lists(values, min_size=1, max_size=4), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_list_cut_anywhere_gives_its_first_elements_and_an_error(chunk, rows, data):
    text = json.dumps(rows).encode()
    cut = data.draw(st.integers(1, len(text) - 1))
    parts = []
    with pytest.raises(BrokenJson):
        parts.extend(part for part in JsonSplitter(io.BytesIO(text[:cut])).split_array())
    whole = [json.dumps(row).encode() for row in rows]
    for part in collect(JsonSplitter(io.BytesIO(text[:cut]))):
        expected = whole.pop(0)
        # A number at the very end may be cut without a sign of it; the list is still broken.
        assert part == expected or (expected.startswith(part) and text[:cut].endswith(part))


def collect(splitter):
    try:
        yield from splitter.split_array()
    except BrokenJson:
        return


def test_a_member_longer_than_the_limit_is_refused():
    with pytest.raises(BrokenJson, match="more than 1,000 bytes"):
        JsonSplitter(io.BytesIO(b'"' + b"x" * 2_000_000 + b'"')).read_value(1000)


def test_text_without_any_separator_is_refused_early():
    stream = io.BytesIO(b"[" + b"x" * 50_000_000)
    with pytest.raises(BrokenJson, match="no JSON value at byte 2"):
        list(JsonSplitter(stream).split_array())
    assert stream.tell() < 5_000_000
