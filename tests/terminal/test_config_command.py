import json
import re

import pytest
from typer.testing import CliRunner

from actcli.errors import DumpError
from tests.processes import ROOT, run_python
from tests.terminal.toy import WorkConfig, app, work


def run(*words, **env):
    return CliRunner().invoke(app, ["work", *map(str, words)], env=env)


def config_of(*words, **env):
    result = run(*words, "--json", **env)
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)["config"]


@pytest.fixture
def toml(tmp_path):
    def write(text):
        path = tmp_path / "run[red].toml"
        path.write_text(text)
        return path

    return write


def test_defaults_are_those_of_the_model():
    assert config_of() == WorkConfig(json_output=True).model_dump(mode="json")


def test_words_become_values():
    words = ["src", "-i", "x", "--keys", "a, b", "-t", "1e2", "--layers", "-1", "--no-write", "-q"]
    expected = WorkConfig(
        source="src",
        input="x",
        keys=("a", "b"),
        threshold=100.0,
        layers="-1",
        write=False,
        quiet=True,
        json_output=True,
    )
    assert config_of(*words) == expected.model_dump(mode="json")


def test_default_gives_way_to_file_to_environment_to_command_line(toml):
    path = toml("threshold = 7.0")
    assert config_of()["threshold"] == 6.0
    assert config_of("-c", path)["threshold"] == 7.0
    assert config_of("-c", path, TOY_THRESHOLD="8")["threshold"] == 8.0
    assert config_of("-c", path, "-t", 9, TOY_THRESHOLD="8")["threshold"] == 9.0
    assert config_of("-t", 6, "-c", path)["threshold"] == 6.0  # the default's value, but typed


def test_a_file_holds_values_of_every_kind(toml):
    path = toml('n-samples = 5\nkeys = ["p", "q"]\nlayers = [0, "2-3"]\nwrite = false\njson = true')
    config = json.loads(run("--config", path).stdout)["config"]
    assert (config["n_samples"], config["keys"], config["layers"]) == (5, ["p", "q"], "0,2-3")
    assert (config["write"], config["json_output"]) == (False, True)


def test_an_option_may_be_repeated_with_commas_in_its_values(toml):
    assert config_of()["words"] == []
    assert config_of("--word", "a, b")["words"] == ["a, b"]
    assert config_of("--word", "a, b", "--word", "", "--word", "c")["words"] == ["a, b", "", "c"]
    path = toml('word = "x, y"\nsizes = [5]')
    assert config_of("-c", path)["words"] == ["x, y"]
    assert config_of("-c", path)["sizes"] == [5]
    assert config_of("-c", path, "--word", "z", "--size", 6)["words"] == ["z"]
    assert config_of("-c", path, "--word", "z", "--size", 6)["sizes"] == [6]
    assert config_of("-c", toml('words = ["p", "q, r"]'))["words"] == ["p", "q, r"]
    assert config_of("--size", 1, "--size", 2)["sizes"] == [1, 2]
    assert "--size: should be greater than 0, but is '0'" in run("--size", 1, "--size", 0).stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "thresholt = 7",
            r"run\[red\]\.toml has an unknown key 'thresholt'; did you mean 'thr",
        ),
        ("[work]\nkey = 'a'", r"unknown key 'work'"),
        ("n-samples = 1\nn_samples = 2", r"gives 'n_samples' twice"),
        ("threshold = ", r"run\[red\]\.toml is not a TOML file: Invalid value \(at"),
        ("threshold = -2", r"--threshold \(threshold in the --config file\): .*but is -2"),
    ],
)
def test_a_wrong_file_is_refused(toml, text, message):
    result = run("-c", toml(text))
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.search(message, result.stderr)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    for path, reason in [(tmp_path / "no.toml", "No such file"), (tmp_path, "Is a directory")]:
        result = run("-c", path)
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"--config: cannot read {path}: {reason}" in result.stderr
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    assert "is not a TOML file" in run("-c", tmp_path / "bytes.toml").stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-t", "0"], "--threshold: should be greater than 0, but is '0'"),
        (["--threshold", "abc"], "--threshold: should be a valid number, but is 'abc'"),
        (["-n", "1.5"], "--n-samples: should be a valid integer, but is '1.5'"),
        (["--dtype", "fp64"], "--dtype: should be 'fp32' or 'bf16', but is 'fp64'"),
        (["--colours", "red,blue"], "--colours: should be 'red' or 'green', but is 'blue'"),
        (["--layers", "x"], "--layers: found 'x'; expected indices and ranges such as"),
        (["--key", "a b"], "--key: 'a b' has a blank; expected a name without"),
        (["a.npz", "--dtype", "bf16"], "error: .npz cannot hold bf16"),
    ],
)
def test_a_wrong_value_names_its_option(words, message):
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    as_json = run(*words, "--json")
    assert (as_json.exit_code, as_json.stdout) == (2, "")
    error = json.loads(as_json.stderr)["error"]
    assert message.removeprefix("error: ") in error["message"]
    assert (error["type"], error["exit_code"]) == ("UsageError", 2)


def test_every_wrong_value_is_named_at_once():
    stderr = run("-t", "0", "-n", "0", "--dtype", "x").stderr
    assert [line.split(": ")[-2] for line in stderr.splitlines()] == [
        "--threshold",
        "--dtype",
        "--n-samples",
    ]


def test_an_unknown_option_is_refused():
    result = run("--tresh", "1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--threshold" in result.stderr


@pytest.mark.parametrize(("end", "exit_code"), [("well", 0), ("fail", 1), ("check", 3)])
def test_exit_codes_of_expected_ends(end, exit_code):
    result = run("--end", end, "-q")
    assert result.exit_code == exit_code
    assert (result.stdout == "") is (end == "fail")
    assert (result.stderr == "") is (end == "well")


def test_an_expected_failure_is_one_message():
    result = run("--end", "fail", "-q")
    assert result.stderr == "error: no [bold]tensor[/bold] 'x' in a[/]b; did you mean 'y'?\n"
    error = json.loads(run("--end", "fail", "--json").stderr)["error"]
    assert (error["type"], error["exit_code"]) == ("DumpError", 1)


def test_a_check_that_fails_still_gives_the_answer():
    result = run("--end", "check", "--json")
    assert json.loads(result.stdout)["config"]["end"] == "check"
    assert json.loads(result.stderr)["error"]["type"] == "CheckFailed"


def test_an_interruption_ends_with_130():
    done = run_python("-m", "tests.terminal.toy", "work", "-q", "--end", "interrupt")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_bug_keeps_its_traceback_and_shows_no_values():
    done = run_python("-m", "tests.terminal.toy", "work", "--key", "secret", "--end", "crash")
    assert done.returncode == 1
    assert "ZeroDivisionError: a bug" in done.stderr
    assert "tests/terminal/toy.py" in done.stderr
    assert "secret" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("words", ["work --json", "work", "work --help", "--help"])
def test_a_closed_pipe_is_silent(words):
    code = (
        "import subprocess, sys;"
        f"toy = [sys.executable, '-m', 'tests.terminal.toy', *{words.split()!r}];"
        "done = subprocess.Popen(toy, stdout=subprocess.PIPE, stderr=subprocess.PIPE);"
        "done.stdout.close();"
        "print(done.stderr.read().decode().replace('reading acts', '').strip())"
    )
    done = run_python("-c", code, PYTHONUNBUFFERED="")
    assert (done.stdout, done.stderr) == ("\n", "")


def test_the_function_is_an_ordinary_one(capsys):
    work(WorkConfig(quiet=True, json_output=True))
    assert json.loads(capsys.readouterr().out)["config"]["quiet"] is True
    with pytest.raises(DumpError):
        work(WorkConfig(end="fail"))


def shown_help():
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", run("--help", COLUMNS="200").stdout).split())


def test_help_shows_each_option_as_it_is_typed():
    shown = shown_help()
    for words in (
        "--key -k <text> Which [tensor] to take.",
        "--keys <a,b,...> Several of them. [default: x,y]",
        "--word <text> Texts; several are several options. --",
        "--size <int> Numbers, likewise. [default: 3, 4]",
        "--threshold -t <float> What counts as far from zero. [env var: TOY_THRESHOLD]",
        "--layers <0,3-5,-1> Which layers.",
        "--dtype <fp32|bf16> How to store. [default: fp32]",
        "--colours <a,b,...> Which colours. (red, green) [default: red]",
        "--no-write Write nothing. --end",
        "--config -c <path> TOML file",
        "Do a little [work]. In two paragraphs.",
        "Examples: toy work a.npz --key 'x[red]' toy work b --json",
    ):
        assert words in shown
    assert "--write" not in shown
    assert "Raises" not in shown
    assert not re.search(r"--json[^.]*<", shown)


def test_help_ends_with_what_all_commands_share():
    shown = shown_help()
    places = [shown.index(each) for each in ("--key", "--help", "Samples", "--json", "--quiet")]
    assert places == sorted(places)
    assert shown.index(" Output ") > shown.index("--n-samples")


def test_the_package_root_is_where_the_tests_think():
    assert (ROOT / "actcli" / "terminal").is_dir()
