"""Points that nothing can be written at are found before anything is reported."""

import numpy as np
import pytest
import torch

from actcli.capture import hooks
from actcli.capture.hooks import put_back
from actcli.capture.splice import Spliced, run_spliced
from actcli.capture.splice_check import check_target
from actcli.capture.splice_forward import Forward, Target
from actcli.capture.token_rules import TokenRules
from actcli.errors import CaptureError
from actcli.models import load_model
from actcli.models.adapter import HookPoint
from actcli.samples.token_file import open_token_file
from tests.models import architectures


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return load_model(architectures.save("llama", tmp_path_factory.mktemp("llama") / "llama"))


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    path = tmp_path_factory.mktemp("ids") / "ids.npy"
    np.save(path, np.random.default_rng(0).integers(3, architectures.VOCAB, (3, 8)))
    return open_token_file(path)


def check(adapter, samples, point, site="mlp_out"):
    check_target(Forward(adapter), Target(f"{site}.1", site, 1, point), samples)


MLP = "model.layers.1.mlp"
NORM = "model.layers.1.post_attention_layernorm"


def test_right_points(adapter, samples):
    check(adapter, samples, HookPoint(MLP))
    check(adapter, samples, HookPoint(MLP, view=lambda acts: acts * 0.3))
    check(adapter, samples, HookPoint(MLP, view=lambda acts: acts[..., :20]))
    check(adapter, samples, HookPoint(NORM, "input"), site="resid_mid")


def test_a_part_of_the_stream_is_not_the_stream(adapter, samples):
    for point in (HookPoint(MLP, "input"), HookPoint(NORM, "input", view=lambda a: a[..., :20])):
        with pytest.raises((CaptureError, RuntimeError)):
            check(adapter, samples, point, site="resid_mid")
    with pytest.raises(CaptureError, match="is not seen by all that read it"):
        check(adapter, samples, HookPoint(MLP, "input"), site="resid_mid")


def test_a_norm_input_that_is_not_written_in_place_is_found(adapter, samples, monkeypatch):
    monkeypatch.setattr(Target, "is_stream_input", property(lambda self: False))
    check(adapter, samples, HookPoint(NORM, "input"), site="resid_mid")  # the other tests miss it
    right = hooks.rewritten

    def beside(*args, in_place, **options):
        return right(*args, in_place=False, **options)

    monkeypatch.setattr(Target, "is_stream_input", property(lambda self: True))
    monkeypatch.setattr("actcli.capture.splice_check.rewritten", beside)
    with pytest.raises(CaptureError, match="is not seen by all that read it"):
        check(adapter, samples, HookPoint(NORM, "input"), site="resid_mid")


@pytest.mark.parametrize("view", [torch.tanh, lambda acts: acts.flip(-1), lambda acts: acts + 1])
def test_views_that_cannot_be_undone(adapter, samples, view):
    with pytest.raises(CaptureError, match="is computed from its output"):
        check(adapter, samples, HookPoint(MLP, view=view))


def test_writing_wrong_values_is_found(adapter, samples, monkeypatch):
    def off(_point, _tensor, _acts, new):
        return new * 1.05

    monkeypatch.setattr(hooks, "put_back", off)
    with pytest.raises(CaptureError, match="written back, changes the logits"):
        check(adapter, samples, HookPoint(MLP))


def test_writing_nothing_is_found(adapter, samples, monkeypatch):
    monkeypatch.setattr(hooks, "put_back", lambda _point, tensor, _acts, _new: tensor)
    with pytest.raises(CaptureError, match="is not what is read there"):
        check(adapter, samples, HookPoint(MLP))


def test_a_module_that_nobody_reads_is_found(adapter, samples):
    class Watcher(torch.nn.Module):
        def forward(self, acts):
            return acts

    watcher, mlp = Watcher(), adapter.net.get_submodule(MLP)
    mlp.watcher = watcher
    handle = mlp.register_forward_hook(lambda _m, _a, output: (watcher(output), output)[1])
    try:
        with pytest.raises(CaptureError, match="is not seen by all that read it"):
            check(adapter, samples, HookPoint(f"{MLP}.watcher"))
    finally:
        handle.remove()
        del mlp.watcher


def test_the_check_runs_before_anything_is_yielded(adapter, samples, monkeypatch):
    monkeypatch.setattr(hooks, "put_back", lambda _point, tensor, _acts, _new: tensor)
    run = run_spliced(
        adapter,
        samples,
        [Spliced("mlp_out.1", "mlp_out.1", lambda x: x)],
        rules=TokenRules(),
        batch_tokens=9,
    )
    with pytest.raises(CaptureError, match="is not what is read there"):
        next(run)


def test_put_back():
    tensor = torch.randn(6, 4)
    by_row = HookPoint("m", view=lambda acts: acts.view(2, 3, 4))
    new = torch.randn(2, 3, 4)
    assert torch.equal(put_back(by_row, tensor, tensor.view(2, 3, 4), new), new.view(6, 4))
    scaled = HookPoint("m", view=lambda acts: acts.view(2, 3, 4) * 0.22)
    acts = scaled.view(tensor)
    changed = acts.clone()
    changed[1, 2] = 5.0
    found = put_back(scaled, tensor, acts, changed)
    assert torch.equal(found[:5], tensor[:5])
    torch.testing.assert_close(found[5], torch.full((4,), 5.0 / 0.22))
    part = HookPoint("m", view=lambda acts: acts[:, 1:3])
    found = put_back(part, tensor, part.view(tensor), torch.zeros(6, 2))
    assert torch.equal(found[:, [0, 3]], tensor[:, [0, 3]])
    assert not found[:, 1:3].any()
    doubled = put_back(HookPoint("m"), tensor.half(), tensor.half(), tensor.half().float() * 2)
    assert doubled.dtype == torch.float16
