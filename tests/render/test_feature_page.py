"""The page of features as a document: its data are the records, and nothing in them breaks it."""

import json
import re
from html.parser import HTMLParser

from actcli.render.feature_files import open_folder
from actcli.render.feature_page import feature_page
from actcli.render.lens_tokens import escaped
from actcli.reports.feature_pieces import pieces_of
from tests.render.feature_made import EVIL, GOLDEN, RECORDS, record, summary

TITLE = "Features of <ours> & theirs"


class Scripts(HTMLParser):
    """The text of every script, by id; the last one has none."""

    def __init__(self, page):
        super().__init__()
        self.found, self._open = {}, None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self._open = dict(attrs).get("id", "") if tag == "script" else None

    def handle_data(self, data):
        if self._open is not None:
            self.found[self._open] = self.found.get(self._open, "") + data


def data_of(page):
    scripts = Scripts(page).found
    assert [*scripts] == ["data", "features", ""]
    return json.loads(scripts["data"]), json.loads(scripts["features"])


def made(records=RECORDS, told=None, **options):
    return feature_page(records, told or summary(), title=TITLE, **options)


def test_the_data_are_the_records():
    data, features = data_of(made().html)
    assert "200,000 tokens" in data["about"]
    assert "54,321 activations above 0.1 of 3 features" in data["about"]
    assert data["leftOut"] == 0
    for shown, given in zip(features, RECORDS, strict=True):
        assert shown["feature"] == given.feature
        assert shown["density"] == given.statistics.density
        assert shown["similar"] == [[e.feature_idx, e.cosine] for e in given.similar]
        for each, sample in zip(shown["samples"], given.top_samples, strict=True):
            pieces = pieces_of(sample)
            assert each["texts"] == [escaped(piece.text) for piece in pieces]
            assert each["acts"] == [piece.activation for piece in pieces]
            assert pieces[each["peak"]].is_peak
            assert each["value"] == sample.activation_value
            assert each["cut"] is (sample.context_start > 0)
    histograms = [each["histogram"] for each in features]
    assert histograms[0] == {"edges": [0.5, 0.75, 1, 9.5], "counts": [1000, 0, 20]}
    assert histograms[2] is None


def test_nothing_in_them_breaks_the_page():
    page = made().html
    assert EVIL not in page
    assert page.count("</script>") == 3
    assert "<title>Features of &lt;ours&gt; &amp; theirs</title>" in page
    assert "{{" not in page


def test_it_needs_nothing_from_elsewhere():
    page = made().html
    assert "default-src 'none'" in page
    links = re.findall(r"(?:src|href)=\"([^\"]+)\"", page)
    assert links == ["data:,"]
    assert set(re.findall(r"https?://[^\s\"')]+", page)) == {"http://www.w3.org/2000/svg"}


def test_it_says_how_many_have_no_room():
    page = made(max_bytes=1)
    assert page.n_shown == 1
    data, features = data_of(page.html)
    assert data["leftOut"] == 2
    assert [each["feature"] for each in features] == [42]


def test_files_that_the_other_program_wrote():
    samples = open_folder(GOLDEN)
    page = feature_page(samples.every(), samples.summary, title="theirs")
    data, features = data_of(page.html)
    assert data["about"] == ["989 activations of 12 features"]
    assert [each["feature"] for each in features] == [1, 9, 2, 11]
    for each in features:
        assert each["density"] is each["histogram"] is None
        assert all(sample["peak"] is not None for sample in each["samples"])


def test_no_summary_and_no_features():
    data, features = data_of(feature_page([], None, title="none").html)
    assert (data["about"], features) == ([], [])
    _data, (feature,) = data_of(made([record(3)]).html)
    assert feature["samples"] == []
