import pytest

from tests.processes import press_tab


def toy_offers(*words, **options):
    return press_tab("tests.terminal.toy", "toy", *words, **options)


@pytest.mark.parametrize(
    ("words", "offers"),
    [
        (["w"], ["work"]),
        (["work", "--th"], ["--threshold"]),
        (["work", "--no"], ["--no-write"]),
        (["work", "--dtype", ""], ["fp32", "bf16"]),
        (["work", "--dtype", "b"], ["bf16"]),
        (["work", "--colours", "red,"], ["red,green"]),
        (["work", "--key", ""], ["acts_a", "acts_b"]),
        (["work", "-i", "z", "--key", ""], ["z_a", "z_b"]),
        (["work", "-k", "acts_b"], ["acts_b"]),
        (["work", "--keys", "x,acts_a,a"], ["x,acts_a,acts_b"]),
        (["work", "--word", "acts_a", "--word", "acts"], ["acts_a", "acts_b"]),
        (["work", "--word", "x,a"], []),
        (["work", "--threshold", ""], []),
        (["work", "--input", "broken", "--key", ""], []),
        (["work", "src", "--key", ""], ["src_a", "src_b"]),
    ],
)
def test_offers(words, offers):
    assert toy_offers(*words) == offers


def test_offers_know_the_config_file(tmp_path):
    (tmp_path / "c.toml").write_text('input = "filed"')
    words = ["work", "-c", str(tmp_path / "c.toml"), "--key", ""]
    assert toy_offers(*words) == ["filed_a", "filed_b"]
    assert toy_offers(*words[:3], "-i", "z", *words[3:]) == ["z_a", "z_b"]
    (tmp_path / "c.toml").write_text("no toml")
    assert toy_offers(*words) == []


def test_zsh_and_fish_show_what_an_offer_means():
    assert toy_offers("work", "--key", "", shell="fish") == ["acts_a\ta [key]", "acts_b\ta [key]"]
    assert '"acts_a":"a [key]"' in "".join(toy_offers("work", "--key", "", shell="zsh"))
