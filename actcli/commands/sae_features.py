"""Activation samples of `sae-eval`: written behind an evaluation, or read by themselves."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actcli.commands.sae_files import file_names
from actcli.errors import UsageError
from actcli.terminal.console import Output

if TYPE_CHECKING:
    from actcli.analysis.feature_samples import TopSamples
    from actcli.commands.sae_eval import SaeEvalConfig
    from actcli.commands.sae_setup import SaeSetup
    from actcli.reports.sae_subject import DictionaryDescription
    from actcli.saes.dictionary import Dictionary


def write_all_samples(
    setup: "SaeSetup",
    tops: "Sequence[TopSamples]",
    described: "Sequence[DictionaryDescription]",
    output: Output,
) -> list[str]:
    """Write the samples of each dictionary; of several into a folder each.

    Args:
        setup: what was evaluated.
        tops: what the pass collected, by dictionary.
        described: which dictionary each is.
        output: where it is told.

    Returns:
        The folders, and the file of rich examples.
    """
    from actcli.commands.feature_reports import export_rich
    from actcli.commands.feature_samples import SamplesOptions, write_samples

    config = setup.config
    options = SamplesOptions(
        features=config.feature or None,
        n_features=config.top_features,
        n_samples=config.top_contexts,
        context=config.context,
    )
    folders = sample_folders(config, setup.names)
    for index, (folder, top) in enumerate(zip(folders, tops, strict=True)):
        dictionary = setup.dictionaries[index]
        write_samples(
            top,
            folder=folder,
            stream=setup.stream,
            x=setup.keys[index].x,
            encode=dictionary.encode,
            tokenizer=setup.source.tokenizer,
            options=options,
            similar=_similar(dictionary),
            description=described[index],
            force=config.force,
        )
    written = [str(each) for each in folders]
    if config.rich is not None:
        n_samples = config.top_contexts
        export_rich(folders[0], config.rich, output=output, n_samples=n_samples, force=config.force)
        written.append(str(config.rich))
    return written


def check_features(setup: "SaeSetup") -> None:
    """Refuse folders that hold samples, and features that there are not, before any work.

    Raises:
        DumpError: a folder holds samples and there is no --force.
        UsageError: a dictionary does not have a feature.
    """
    from actcli.commands.feature_samples import check_samples_target

    for folder in sample_folders(setup.config, setup.names):
        check_samples_target(folder, force=setup.config.force)
    for each in setup.dictionaries:
        absent = [feature for feature in setup.config.feature if feature >= each.n_features]
        if absent:
            raise UsageError(
                f"--feature {absent[0]}: {each.origin.name} has features 0 to {each.n_features - 1}"
            )


def sample_folders(config: "SaeEvalConfig", names: tuple[str, ...]) -> list[Path]:
    """Return where the samples of each dictionary go."""
    assert config.samples is not None
    folder = config.samples.expanduser()
    return [folder] if len(names) == 1 else [folder / name for name in file_names(names)]


def read_samples(config: "SaeEvalConfig", output: Output) -> None:
    """Show or report the samples of a folder, or list folders."""
    from actcli.commands.feature_browse import browse_folders
    from actcli.commands.feature_reports import export_rich, page_samples, report_samples
    from actcli.commands.feature_samples import PAGE
    from actcli.commands.feature_view import terminal_ask, view_samples

    if config.browse is not None:
        browse_folders(config.browse, output=output, layer=config.layer)
        return
    folder = config.view or config.report
    assert folder is not None
    if config.report is not None:
        report = report_samples(folder, output=output, force=config.force)
        if config.force or not (report.parent / PAGE).exists():
            page_samples(folder, output=output, force=config.force)
    if config.rich is not None:
        export_rich(
            folder,
            config.rich,
            output=output,
            features=config.feature,
            n_samples=config.top_contexts if config.is_given("top_contexts") else None,
            force=config.force,
        )
    elif config.view is not None:
        view_samples(
            folder,
            output=output,
            features=config.feature,
            find=config.find,
            n_samples=config.top_contexts,
            ask=terminal_ask(json_output=config.json_output),
        )


def _similar(
    dictionary: "Dictionary",
) -> Callable[[Sequence[int], int], list[list[tuple[int, float]]]]:
    """What finds the features with the nearest decoder rows."""
    from actcli.analysis.sae_cosines import nearest_features

    def nearest(features: Sequence[int], n: int) -> list[list[tuple[int, float]]]:
        return nearest_features(dictionary.W_dec_DO, features, n=n)

    return nearest
