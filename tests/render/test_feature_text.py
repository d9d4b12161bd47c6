"""Activation samples in the terminal, in Markdown, and as rich examples."""

import io
import json

import pytest
from rich.console import Console

from actcli.errors import SamplesError
from actcli.render.feature_files import open_folder
from actcli.render.feature_markdown import features_markdown
from actcli.render.feature_rich import rich_example, rich_lines
from actcli.render.feature_text import list_tables, view_tables
from actcli.reports.feature_samples import FeatureLine, FeatureList, FeatureSample, FeatureView
from tests.render.feature_made import EVIL, RECORDS, record, sample, write_ours, write_seed


def printed(tables, *, colours=False):
    system = "standard" if colours else None
    console = Console(
        file=io.StringIO(), width=400, color_system=system, force_terminal=colours, markup=False
    )
    for each in tables:
        console.print(each)
    return console.file.getvalue()


def viewed(*records, n_samples=10, **options):
    view = FeatureView(folder="samples", features=records)
    return printed(view_tables(view, n_samples=n_samples), **options)


def test_a_feature_with_its_numbers_and_contexts():
    lines = viewed(RECORDS[0]).splitlines()
    assert lines[0] == "Feature 42"
    assert "active on 1.000% of 200,000 tokens" in lines[1]
    assert lines[2] == "Similar decoder rows (cosine): 7 (+0.88), 500 (-0.50)"
    assert lines[3].startswith(r"  1.      9.5   of France is« Paris»\n `a|b`</script>")
    assert lines[3].endswith("  (sample 3, position 6)")
    assert lines[4] == "  2.     2.25  «<bos>» the capital of  (sample 1200, position 0)"


def test_tokens_are_set_off_by_their_activation():
    line = viewed(RECORDS[0], colours=True).splitlines()[3]
    assert "\x1b[1;7m« Paris»\x1b[0m" in line
    assert "\x1b[1;4m France\x1b[0m" in line  # half of the largest
    assert "\x1b[4m is\x1b[0m" in line
    assert "[0m of" not in line.split("«")[0]


def test_so_many_contexts_as_were_asked_for():
    assert "sample 1200" not in viewed(RECORDS[0], n_samples=1)


def test_a_feature_without_samples_and_a_place_without_text():
    assert "No activation of it was above the threshold" in viewed(record(5))
    bare = FeatureSample(feature_idx=5, activation_value=0.0, position=3)
    assert viewed(record(5, bare)).splitlines()[2] == "  1.        0  (position 3)"


def test_the_other_program_s_files(tmp_path):
    write_seed(tmp_path / "run")
    shown = viewed(open_folder(tmp_path / "run").record(8))
    assert "<bos> the capital« of France» is Paris" in shown
    assert "active on" not in shown


def listed(n, *, find=None, density=0.5):
    lines = [
        FeatureLine(
            feature_idx=each,
            max_activation=9.25,
            mean_activation=1.5,
            activation_count=1234,
            density=density,
            text=" the\ncity",
            n_found=None if find is None else 3,
        )
        for each in range(n)
    ]
    return FeatureList(folder="samples", find=find, n_features=99, features=tuple(lines))


def test_a_list():
    shown = printed(list_tables(listed(53)))
    assert "1,234" in shown
    assert "50.000%" in shown
    assert r"the\ncity" in shown
    assert shown.rstrip().endswith("...and 3 more features")
    assert "Density" not in printed(list_tables(listed(2, density=None)))


def test_what_was_found():
    shown = printed(list_tables(listed(1, find="city")))
    assert "Features with 'city' in a context" in shown
    assert "Contexts found" in shown
    nothing = printed(list_tables(listed(0, find="x")))
    assert nothing == "No context has 'x' (99 features searched)\n"


def test_markdown(tmp_path):
    text = features_markdown(open_folder(write_ours(tmp_path / "samples")))
    assert "- Tokens: 200,000" in text
    assert "| 42 | 9.5000 | 5.8750 | 12,345 | 1.000% | `is Paris` |" in text
    assert "| 7 | 3.0000 | 3.0000 | 12,345 | 25.000% | `` \\n `a\\|b` `` |" in text
    assert "### Feature 42" in text
    assert "1. 9.5000 `of France is` **`Paris`** ``\\n `a|b`</script>" in text
    assert "(sample 3, position 6)" in text
    assert text.index("### Feature 42") < text.index("### Feature 7\n")
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_markdown_of_the_first_features(tmp_path):
    samples = open_folder(write_ours(tmp_path / "samples"))
    text = features_markdown(samples, n_features=1, n_examples=1)
    assert "The 1 features" not in text
    assert "## The feature with the largest activation" in text
    assert "Feature 7\n" not in text
    assert "\n2. " not in text
    assert "- Features in this folder: 3" in text


def test_markdown_of_the_other_program_s_files(tmp_path):
    write_seed(tmp_path / "run")
    text = features_markdown(open_folder(tmp_path / "run"))
    assert text.startswith("# Features of run\n")
    assert "- Activations above the threshold: 154" in text
    assert "1. 5.5000 `<bos> the capital` **`of France`** ``is Paris\\n `a|b`" in text


def test_every_active_token_is_marked():
    found = rich_example(sample(42, 9.5, 6, acts={4: 4.756, 3: None, 7: 1.0}))
    assert found == {
        "raw": f" of France is Paris\n `a|b`{EVIL}",
        "marked": f" of <<<France (act: 4.76)>>> is <<<Paris (act: 9.50)>>><<<\n (act: 1.00)>>>"
        f" `a|b`{EVIL}",
        "max_activation": 9.5,
    }


def test_without_marks_it_is_the_raw_text():
    import re

    for each in RECORDS:
        for made in each.top_samples:
            found = rich_example(made)
            assert re.sub(r"<<<(.+?) \(act: [\d.]+\)>>>", r"\1", found["marked"]) == found["raw"]


def test_lines_of_json():
    lines = [json.loads(line) for line in rich_lines(RECORDS, n_samples=1)]
    assert [each["feature"] for each in lines] == [42, 7, 123456]
    assert [len(each["examples"]) for each in lines] == [1, 1, 1]


def test_no_texts_no_examples():
    bare = FeatureSample(feature_idx=5, activation_value=1.0, position=3)
    with pytest.raises(SamplesError, match=r"feature 5 have no texts, .*--init MODEL"):
        list(rich_lines([record(5, bare)]))
