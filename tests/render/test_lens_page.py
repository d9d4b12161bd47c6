"""The page as a document: its data are the records, and nothing in them breaks it."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np

from actcli.render.lens_grid import METRICS, grid_of
from actcli.render.lens_page import lens_page
from actcli.reports.lens_table import place_name
from actcli.reports.logit_lens import (
    AnswerReport,
    ControlReport,
    LayerReport,
    LensModelReport,
    LensReport,
    LogitLensReport,
    MeanReport,
    Milestones,
    SampleReport,
    SelfTestReport,
    TokenReport,
)
from tests.render.test_lens_grid import CONTRAST, golden, two_streams

MILESTONES = {
    "L_copy": None,
    "L_copy_soft_1": 1,
    "L_copy_soft_2": None,
    "L_copy_soft_3": None,
    "L_copy_H": 4,
    "L_semantic": 3,
    "L_semantic_run2": 3,
    "first_rank_le_1": 3,
    "first_rank_le_5": 2,
    "first_rank_le_10": 0,
    "first_kl_below_0.5": 4,
    "first_kl_below_1.0": 4,
}
EVIL = '</script ><script>document.title="broken"</script><!--'


def text_of(token):
    """Some tokens are dangerous, some need marks, the others are words."""
    special = {1: EVIL, 2: "\n", 3: "<b>&amp;", 4: "\u2028", 5: "\udc80", 6: "  "}
    return special.get(token, f" w{token}")


def raw():
    return LensReport(lens="raw", method="head alone", weights_dtype="float32")


def sample_report(sample, text, *, has_answer):
    stored = golden()
    ids, last = stored["input_ids"][text].tolist(), -1
    answer = int(stored["target"][text, last])
    word = AnswerReport(text=text_of(answer), id=answer) if has_answer else None
    contrast = AnswerReport(text=text_of(CONTRAST), id=CONTRAST)
    top = zip(stored["topk_ids"][-1, text, last], stored["topk_p"][-1, text, last], strict=True)
    return SampleReport(
        sample=sample,
        prompt=f"give the city {EVIL}" if has_answer else None,
        token_ids=tuple(ids),
        tokens=tuple(map(text_of, ids)),
        pos=8,
        answer=word,
        final_top=tuple(TokenReport(id=int(i), text=text_of(int(i)), p=float(p)) for i, p in top),
        milestones=Milestones(
            layers=MILESTONES,
            delta_layers=None,
            depth_fractions={
                name: None if layer is None else layer / 4 for name, layer in MILESTONES.items()
            },
        ),
        control=ControlReport(
            contrast=contrast,
            largest_margin=0.125,
            largest_margin_layer=2,
            final_margin=-0.5,
            layers={},
        )
        if has_answer
        else None,
    )


def layer_report(stream, layer):
    """Means with numbers of their own, by layer."""
    names = ("entropy_bits", "kl_to_final_bits", "kl_from_final_bits", "js_bits", "p_target")
    means = {
        name: MeanReport(mean=layer + place / 10, standard_error=None, n=18)
        for place, name in enumerate(names)
    }
    return LayerReport(
        stream=stream,
        layer=layer,
        place=place_name(stream, layer),
        n_records=18,
        nll_target_bits=None,
        rank_1_share=None if layer == 0 else layer / 5,
        top1_agree_share=layer / 4,
        **means,
    )


def lens_report(**changes):
    report = LogitLensReport(
        model=LensModelReport(
            init="models/<llama>",
            family="transformers",
            model_class="LlamaForCausalLM",
            n_layers=4,
            d_model=32,
            vocab_size=101,
            dtype="float32",
            device="cpu",
        ),
        lens=LensReport(lens="norm", method="final norm, then head", weights_dtype="float32"),
        self_test=SelfTestReport(largest_difference=1e-6, tolerance=1e-3),
        source="--prompt",
        n_samples=2,
        n_records=180,
        positions="all",
        streams=("resid", "attn"),
        top_k=5,
        elapsed_s=0.5,
        samples=(sample_report(3, 0, has_answer=True), sample_report(8, 1, has_answer=False)),
        layers=tuple(layer_report("resid", layer) for layer in range(5)),
        files=("out/records.csv",),
    )
    return report.model_copy(update=changes)


def made(report=None, **options):
    return lens_page(
        two_streams(), report or lens_report(), text_of=text_of, title="A <title> & more", **options
    )


class Scripts(HTMLParser):
    """The contents of the scripts of a document, as a browser finds them."""

    def __init__(self):
        super().__init__()
        self.inside, self.contents, self.tags = False, {}, []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.inside = dict(attrs).get("id", "code") if tag == "script" else None

    def handle_data(self, data):
        if self.inside:
            self.contents[self.inside] = self.contents.get(self.inside, "") + data

    def handle_endtag(self, tag):  # noqa: ARG002
        self.inside = None


def scripts(html):
    parser = Scripts()
    parser.feed(html)
    parser.close()
    return parser


def test_no_token_or_title_can_break_out():
    html = made().html
    parser = scripts(html)
    assert parser.tags.count("script") == 3
    assert not set("<>&") & set(parser.contents["data"] + parser.contents["samples"])
    data = json.loads(parser.contents["data"])
    assert data["tokens"]["1"] == EVIL
    assert html.count("<title>A &lt;title&gt; &amp; more</title>") == 1
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)


def test_tokens_are_written_to_be_seen():
    tokens = json.loads(scripts(made().html).contents["data"])["tokens"]
    assert [tokens[each] for each in "2456"] == [r"\n", r"\u2028", r"\udc80", "  "]
    used = set(golden()["topk_ids"].ravel().tolist())
    assert used <= {int(each) for each in tokens}


def unpacked(text, kind):
    return np.frombuffer(base64.b64decode(text), dtype=kind)


def test_numbers_are_those_of_the_records():
    contents = scripts(made().html).contents
    metrics = [each["name"] for each in json.loads(contents["data"])["metrics"]]
    assert metrics == [*METRICS]
    samples = json.loads(contents["samples"])
    assert [each["sample"] for each in samples] == [3, 8]
    for each in samples:
        assert [packed["stream"] for packed in each["streams"]] == ["resid", "attn"]
        for packed in each["streams"]:
            grid = grid_of(two_streams(), sample=each["sample"], stream=packed["stream"])
            numbers = unpacked(packed["numbers"], "<f4").reshape(len(metrics), 5, 9)
            for name, found in zip(metrics, numbers, strict=True):
                np.testing.assert_array_equal(found, grid.metric(name))
            np.testing.assert_array_equal(
                unpacked(packed["topIds"], "<i4").reshape(-1, 5), grid.table.top_ids
            )
            np.testing.assert_array_equal(
                unpacked(packed["topP"], "<f4").reshape(-1, 5), grid.table.top_p
            )
            assert packed["places"] == [*grid.places]
            assert packed["targetIds"] == grid.target_ids


def test_a_metric_without_numbers_is_not_offered():
    table = two_streams()
    table.p_contrast[:] = np.nan
    table.rank_contrast[:] = 0
    page = lens_page(table, lens_report(), text_of=text_of, title="t")
    metrics = json.loads(scripts(page.html).contents["data"])["metrics"]
    assert {"contrast", "contrast-rank"} & {each["name"] for each in metrics} == set()
    assert len(metrics) == len(METRICS) - 2


def test_a_page_has_as_many_samples_as_there_is_room_for():
    whole = made()
    assert (whole.samples, whole.left_out) == ((3, 8), ())
    small = made(max_bytes=1)
    assert (small.samples, small.left_out) == ((3,), (8,))
    assert json.loads(scripts(small.html).contents["data"])["leftOut"] == 1
    assert len(small.html) < len(whole.html)
    assert made(max_bytes=len(whole.html)).left_out == ()


def test_what_is_raw_is_called_raw():
    data = json.loads(scripts(made(lens_report(lens=raw())).html).contents["data"])
    assert data["note"] == "raw lens (no final norm)"
    assert json.loads(scripts(made().html).contents["data"])["note"] == ""


def test_milestones_are_those_that_a_sample_can_have():
    samples = json.loads(scripts(made().html).contents["samples"])
    first, second = ({each["name"]: each for each in said["milestones"]} for said in samples)
    assert {name: each["layer"] for name, each in first.items()} == MILESTONES
    assert (first["L_semantic"]["place"], first["L_semantic"]["depth"]) == ("post:2", 0.75)
    of_answer = {name for name in MILESTONES if "semantic" in name or "rank" in name}
    assert set(second) == set(MILESTONES) - of_answer


def test_samples_without_a_report_are_shown():
    samples = json.loads(scripts(made(lens_report(samples=())).html).contents["samples"])
    assert [each["sample"] for each in samples] == [3, 8]
    assert "milestones" not in samples[0]
