"""What the engine captures is what the modules compute, read independently of it.

Tensor legend: as in `actcli.sites`.
"""

import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from actcli.capture.engine import CaptureEngine
from actcli.capture.plan import make_plan
from actcli.capture.ring import Slot
from actcli.errors import CaptureError
from actcli.samples.batching import plan_batches
from actcli.sites import SITES
from tests.capture.helpers import board_samples, make_adapter

NOT_OF_BOARDS = ("mlp_input_normed", "resid_mid", "logits", "logits_top", "logits_top_ids")
ACTIVATIONS = tuple(
    site.name for site in SITES if not site.is_parameter and site.name not in NOT_OF_BOARDS
)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def make_engine(adapter, plan, samples, batch_size):
    batches = plan_batches(samples, batch_size=batch_size, batch_tokens=0)
    return CaptureEngine(adapter, plan, samples, batches=batches)


def capture(adapter, samples, outputs, *, batch_size=4, dtype=torch.float32, **choice):
    layers = choice.get("layers", range(adapter.n_layers))
    plan = make_plan(
        adapter, samples, outputs, layers=layers, positions=choice.get("positions"), dtype=dtype
    )
    kept = {key: [] for key in outputs}
    for batch in make_engine(adapter, plan, samples, batch_size).run():
        batch.wait()
        for key in outputs:
            kept[key].append(batch.rows(key).clone())
        batch.release()
    return {key: torch.cat(each) for key, each in kept.items()}


def slow_sites(net, tokens_BT):
    """Every site of the encoder, computed by hand from the modules' parameters."""
    config, found = net.config, {name: [] for name in ACTIVATIONS}
    k_heads, a_heads, d = config.n_kv_heads, config.num_attention_heads, config.d_head
    x = net.tok_emb.weight[tokens_BT] + net.pos_emb.pos_emb.weight
    found["embeddings"] = x
    for block in net.blocks:
        attn, mlp = block.attn, block.mlp
        normed = F.rms_norm(x, (config.hidden_size,), block.attn_norm.weight, config.layer_norm_eps)
        q = attn.q_norm((normed @ attn.wq.weight.T).view(*x.shape[:2], a_heads, d))
        k = attn.k_norm((normed @ attn.wk.weight.T).view(*x.shape[:2], k_heads, d))
        v = (normed @ attn.wv.weight.T).view(*x.shape[:2], k_heads, d)
        heads, scores, weights = [], [], []
        for head in range(a_heads):
            kv = head % k_heads
            score = torch.einsum("btd,bsd->bts", q[:, :, head], k[:, :, kv]) / math.sqrt(d)
            sink = attn.sinks[kv * (a_heads // k_heads) + head // k_heads]
            weight = score.exp() / (score.exp().sum(-1, keepdim=True) + sink.exp())
            heads.append(weight @ v[:, :, kv])
            scores.append(score)
            weights.append(weight)
        attn_out = torch.cat(heads, dim=-1) @ attn.wo.weight.T
        middle = x + attn_out
        read = F.rms_norm(
            middle, (config.hidden_size,), block.mlp_norm.weight, config.layer_norm_eps
        )
        act = F.silu(read @ mlp.w_gate.weight.T) * (read @ mlp.w_up.weight.T)
        mlp_out = act @ mlp.w_down.weight.T
        x = middle + mlp_out
        each = {
            "attn_norm": normed, "q": q, "k": k, "v": v, "attn_out": attn_out, "mlp_input": read,
            "attn_scores": torch.stack(scores, 1), "attn_weights": torch.stack(weights, 1),
            "mlp_act": act, "mlp_out": mlp_out, "layer_outputs": x,
        }  # fmt: skip
        for name, value in each.items():
            found[name].append(value)
    final = F.rms_norm(x, (config.hidden_size,), net.final_ln.weight, config.layer_norm_eps)
    logits = torch.stack([head(final.mean(1)) for head in net.ev_heads], 1)
    found |= {
        "final_hidden": final, "pooled": final.mean(1), "head_logits": logits,
        "head_probs": logits.softmax(-1),
    }  # fmt: skip
    return {
        name: torch.stack(each, 1) if isinstance(each, list) else each
        for name, each in found.items()
    }


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return make_adapter(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def slow(adapter):
    tokens = torch.from_numpy(board_samples(10).batch(range(10)).inputs["tokens"])
    with torch.no_grad():
        return slow_sites(adapter.net, tokens)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_site_equals_the_slow_computation(name, device, slow, tmp_path):
    adapter = make_adapter(tmp_path, device=device)
    found = capture(adapter, board_samples(10), (name,))[name]
    assert found.shape == slow[name].shape
    close(found, slow[name])


@pytest.mark.parametrize("name", NOT_OF_BOARDS)
def test_a_site_that_the_model_lacks_is_refused_by_name(name, adapter):
    with pytest.raises(CaptureError, match=f"2048 encoder.* has no site '{name}'"):
        capture(adapter, board_samples(2), (name,))


def test_the_site_table_tells_the_axes(adapter, slow):
    """The documented axes have the sizes that the tensors have."""
    sizes = {"N": 10, "L": 3, "T": 16, "S": 16, "H": 24, "A": 4, "K": 2, "D": 6, "I": 20, "O": 4}
    for site in SITES:
        if site.name in slow and "..." not in site.axes:
            assert slow[site.name].shape == tuple(sizes[axis] for axis in site.axes), site.name


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_the_batch_size_does_not_matter(batch_size, adapter, slow):
    outputs = ("attn_norm", "mlp_input", "final_hidden")
    found = capture(adapter, board_samples(10), outputs, batch_size=batch_size)
    for name in outputs:
        close(found[name], slow[name])


def test_layers_and_positions_are_slices_of_the_whole(adapter, slow):
    outputs = ("layer_outputs", "attn_weights", "q", "final_hidden", "pooled")
    found = capture(adapter, board_samples(10), outputs, layers=(0, 2), positions=(3, 15, 1))
    close(found["layer_outputs"], slow["layer_outputs"][:, [0, 2]][:, :, [3, 15, 1]])
    close(found["attn_weights"], slow["attn_weights"][:, [0, 2]][:, :, :, [3, 15, 1]])
    close(found["q"], slow["q"][:, [0, 2]][:, :, [3, 15, 1]])
    close(found["final_hidden"], slow["final_hidden"][:, [3, 15, 1]])
    close(found["pooled"], slow["pooled"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_storage_dtypes_are_the_float32_values_cast(dtype, adapter):
    wide = capture(adapter, board_samples(6), ("mlp_act",))
    narrow = capture(adapter, board_samples(6), ("mlp_act",), dtype=dtype)
    assert torch.equal(narrow["mlp_act"], wide["mlp_act"].to(dtype))


def test_any_module_can_be_captured(adapter, slow):
    found = capture(adapter, board_samples(10), ("module:blocks.1.mlp.w_up", "module:final_ln"))
    close(found["module:final_ln"], slow["final_hidden"])
    up = slow["mlp_input"][:, 1] @ adapter.net.blocks[1].mlp.w_up.weight.T
    close(found["module:blocks.1.mlp.w_up"], up)


def count_calls(module):
    calls = Counter()
    handle = module.register_forward_hook(lambda *_: calls.update(["call"]))
    return calls, handle


def test_nothing_runs_after_the_deepest_site(adapter):
    calls, handle = count_calls(adapter.net.blocks[1].mlp)
    with handle:
        capture(adapter, board_samples(4), ("attn_norm",), layers=(0, 1))
        traced = calls["call"]  # the plan's own forward goes to the end
        assert traced == 1
        capture(adapter, board_samples(4), ("mlp_out",), layers=(0, 1))
        assert calls["call"] == traced + 2


def test_no_hook_is_left_behind(adapter):
    capture(adapter, board_samples(4), ACTIVATIONS)
    assert not any(module._forward_hooks for module in adapter.net.modules())


class Fickle(nn.Module):
    """Passes its input on, and later does not run, or changes its shape."""

    mood = "good"

    def forward(self, x):
        return x[:, :5] if self.mood == "short" else x


@pytest.fixture
def fickle(tmp_path):
    adapter = make_adapter(tmp_path)
    adapter.net.final_ln = Fickle()
    return adapter


def run_later(adapter, mood, outputs=("final_hidden",)):
    samples = board_samples(4)
    plan = make_plan(adapter, samples, outputs, layers=(0,), positions=None, dtype=torch.float32)
    engine = make_engine(adapter, plan, samples, 2)
    adapter.net.final_ln.mood = mood
    if mood == "absent":
        adapter.net.final_ln = nn.Identity()
    return list(engine.run())


def test_a_changed_shape_is_an_error(fickle):
    with pytest.raises(CaptureError, match=r"final_hidden changed its shape: \[2, 5, 24\]"):
        run_later(fickle, "short")


def test_a_site_that_does_not_run_is_an_error(fickle, monkeypatch):
    monkeypatch.setattr(fickle, "forward", lambda inputs: None)
    with pytest.raises(CaptureError, match="did not run"):
        run_later(fickle, "good")


def test_modules_without_a_tensor_or_batch_axis_are_refused(adapter):
    samples, choice = board_samples(4), {"layers": (0,), "positions": None, "dtype": torch.float32}
    with pytest.raises(CaptureError, match=r"no batch axis: its output is \[16, 24\]"):
        make_plan(adapter, samples, ("module:pos_emb",), **choice)
    with pytest.raises(CaptureError, match="did not run in a forward pass"):
        make_plan(adapter, samples, ("module:pos_emb.pos_emb",), **choice)


def test_values_that_are_not_finite_are_counted(tmp_path):
    adapter = make_adapter(tmp_path)
    with torch.no_grad():
        adapter.net.blocks[1].attn_norm.weight[5] = math.inf
    samples = board_samples(6)
    plan = make_plan(
        adapter,
        samples,
        ("attn_norm", "embeddings"),
        layers=(0, 1),
        positions=None,
        dtype=torch.float32,
    )
    counts = Counter()
    for batch in make_engine(adapter, plan, samples, 4).run():
        counts.update(batch.non_finite())
        batch.release()
    assert counts == {"attn_norm": 6 * 16}


def test_large_finite_values_are_not_taken_for_infinite(tmp_path):
    adapter = make_adapter(tmp_path)
    with torch.no_grad():
        adapter.net.tok_emb.weight.fill_(3e38)
        adapter.net.pos_emb.pos_emb.weight.fill_(0.0)
    plan = make_plan(
        adapter,
        board_samples(4),
        ("embeddings",),
        layers=(0,),
        positions=None,
        dtype=torch.float32,
    )
    (batch,) = make_engine(adapter, plan, board_samples(4), 4).run()
    assert not math.isfinite(batch.rows("embeddings").sum())
    assert batch.non_finite() == {}


def test_buffers_are_poisoned_before_each_batch(adapter, monkeypatch):
    """A value that nothing wrote is NaN, never that of the batch before."""
    samples = board_samples(8)
    plan = make_plan(
        adapter, samples, ("attn_norm",), layers=(0, 1), positions=None, dtype=torch.float32
    )
    real = CaptureEngine._read

    def skip_the_first_layer(self, plan, place, acts):
        if self.skips and place == 0:
            self._unread -= 1
        else:
            real(self, plan, place, acts)

    monkeypatch.setattr(CaptureEngine, "_read", skip_the_first_layer)
    engine = make_engine(adapter, plan, samples, 4)
    for engine.skips, missing in ((False, 0), (False, 0), (True, 4 * 16 * 24)):
        for batch in engine.run():
            assert sum(batch.non_finite().values()) == missing
            assert batch.rows("attn_norm")[:, 1].isfinite().all()
            batch.release()


def test_the_ring_holds_the_model_back(adapter):
    """Batches that nobody gives back stop the engine: memory cannot grow."""
    samples = board_samples(12)
    plan = make_plan(adapter, samples, ("pooled",), layers=(), positions=None, dtype=torch.float32)
    engine = make_engine(adapter, plan, samples, 2)
    held = [batch for _, batch in zip(range(2), engine.run(), strict=False)]
    assert engine._ring._free.qsize() == 0
    held[0].release()
    assert engine._ring._free.qsize() == 1


def test_buffers_of_their_own_on_a_device_arrive_on_the_host():
    """The way of a GPU without pinned memory, with CPU tensors in the GPU's part."""
    host = {"x": torch.zeros(12), "y": torch.zeros(4)}
    device = {key: torch.ones_like(each) for key, each in host.items()}
    slot = Slot(device, host, totals=torch.zeros(2))
    slot.begin({"x": (2, 3), "y": (2,)})
    assert all(each.isnan().all() for each in slot.device.values())
    slot.device["x"].fill_(7.0)
    slot.send_to_host(None)
    assert slot.host["x"].tolist() == [[7.0] * 3] * 2
    assert host["x"].tolist() == [7.0] * 6 + [0.0] * 6
    assert slot.totals[0] == 42
    assert slot.totals[1].isnan()


def test_a_device_that_is_out_of_memory_says_what_to_do(adapter, monkeypatch):
    samples = board_samples(4)
    plan = make_plan(adapter, samples, ("pooled",), layers=(), positions=None, dtype=torch.float32)
    engine = make_engine(adapter, plan, samples, 2)

    def forward(_inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(adapter, "forward", forward)
    with pytest.raises(CaptureError, match=r"out of memory with 2 samples.*lower --batch-size"):
        next(engine.run())
