"""Words for what a report of the logit lens holds."""

from actcli.reports.logit_lens import LensReport, SampleReport

STREAM_TITLES = {
    "resid": "residual stream",
    "mid": "stream between attention and MLP",
    "attn": "what attention adds",
    "mlp": "what the MLP adds",
}
"""By the name of a stream."""

_MILESTONES = {
    "L_copy": "copies the prompt",
    "L_copy_H": "entropy collapses",
    "L_semantic": "answer is the top-1 token",
    "L_semantic_run2": "answer is top-1, next layer too",
}
_OF_ANSWER = ("L_semantic", "first_rank")


def milestone_words(name: str) -> str:
    """Return what a milestone is, in a few words; thresholds are in its report."""
    if name in _MILESTONES:
        return _MILESTONES[name]
    start, _, end = name.rpartition("_")
    return {
        "L_copy_soft": f"soft copy, {end} in a row",
        "first_rank_le": f"rank of the answer ≤ {end}",
        "first_kl_below": f"KL(P‖Q) ≤ {end} bits",
    }.get(start, name)


def milestones_of(report: SampleReport) -> dict[str, int | None]:
    """Return the milestones that a sample can have: without an answer, none of the answer's."""
    has_answer = report.answer is not None
    return {
        name: layer
        for name, layer in report.milestones.layers.items()
        if has_answer or not name.startswith(_OF_ANSWER)
    }


def lens_note(lens: LensReport) -> str:
    """Return what must be said beside every number that is not of the plain lens; else nothing."""
    if lens.lens == "raw":
        return "raw lens (no final norm)"
    if lens.translator is not None:
        return f"lens through {lens.translator}"
    return ""
