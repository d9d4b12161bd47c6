"""What holds for the whole program, whatever is added to it."""

import importlib.metadata
import re

import pytest

import actcli
from actcli.cli import COMMANDS
from actcli.terminal.config import CommandConfig
from tests.processes import ROOT, run_python

HEAVY = {"torch", "numpy", "matplotlib", "safetensors", "huggingface_hub"}
OPTIONS = [
    pytest.param(field, id=f"{command.name} {field.shown_name}")
    for command in COMMANDS
    for field in command.fields
]


def heavy_imports_of(code, **env):
    code += f"\nimport sys; print({HEAVY!r} & set(sys.modules), file=sys.stderr)"
    done = run_python("-c", code, **env)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("module", ["cli", "completion", "store.formats", "render", "reports"])
def test_imports_nothing_heavy(module):
    assert heavy_imports_of(f"import actcli.{module}") == "set()"


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], *([each.name, "--help"] for each in COMMANDS)]
)
def test_help_takes_nothing_heavy(words):
    code = f"from actcli.cli import app; app({words!r}, standalone_mode=False)"
    assert heavy_imports_of(code) == "set()"


@pytest.mark.parametrize(
    "words", ["dump --outputs attn_norm,", "dump --layers 0,", "outliers --key ", "outliers --la"]
)
def test_a_completion_request_takes_nothing_heavy(words):
    code = (
        "from actcli.cli import app\n"
        "try: app(prog_name='actcli')\n"
        "except SystemExit: pass\n"
        "else: raise AssertionError('this was no completion request')"
    )
    env = {"COMP_WORDS": f"actcli {words}", "COMP_CWORD": str(len(words.split(" ")))}
    assert heavy_imports_of(code, _ACTCLI_COMPLETE="complete_bash", **env) == "set()"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each.name)
def test_every_command_says_what_it_does_with_examples(command):
    assert command.help.endswith(".")
    assert command.panel
    assert command.config.examples
    for example in command.config.examples:
        assert example.startswith(f"actcli {command.name}")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each.name)
def test_examples_use_options_that_there_are(command):
    flags = {flag for field in command.fields for flag in field.flags} | {"-c", "--config"}
    for example in command.config.examples:
        assert set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", example)) <= flags


@pytest.mark.parametrize("field", OPTIONS)
def test_every_option_has_help(field):
    assert re.search(r"[.)]$", field.help), "help is a sentence: the docstring under the field"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each.name)
def test_no_option_is_named_twice(command):
    flags = [flag for field in command.fields for flag in field.flags]
    assert len(flags) == len({*flags, "-c", "--config", "-h", "--help"}) - 4


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each.name)
def test_every_command_can_be_interrupted_quiet_and_read_by_programs(command):
    assert issubclass(command.config, CommandConfig)
    assert [field.name for field in command.fields][-2:] == ["json_output", "quiet"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each.name)
def test_every_option_is_in_the_reference(command):
    page = (ROOT / "docs" / "reference" / "cli.md").read_text()
    section = page.partition(f"## `actcli {command.name}`")[2].partition("\n## ")[0]
    for field in command.fields:
        assert f"`{field.shown_name}`" in section


def test_the_installed_version_is_that_of_the_code():
    try:
        installed = importlib.metadata.version("actcli")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("actcli runs from its folder, not installed")
    assert installed == actcli.__version__
