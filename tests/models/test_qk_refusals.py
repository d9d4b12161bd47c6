"""What is not explained is refused, with the reason."""

import copy
from pathlib import Path

import pytest
import torch

from actcli.errors import ModelError
from actcli.models import load_model
from actcli.models.adapter import LoadedFiles
from actcli.models.qk import qk_layer, qk_layers, qk_texts
from actcli.models.source import ModelSource
from actcli.models.transformer import HuggingFaceTransformer
from tests.models import architectures, qk_models

TOKENS = torch.arange(20, 31)


def changed(name, change):
    """The adapter of a model whose blocks were changed before it was looked into."""
    net = copy.deepcopy(architectures.build(name))
    for block in net.model.layers:
        change(block.self_attn)
    return HuggingFaceTransformer(net, LoadedFiles(ModelSource(name, Path()), None))


@pytest.mark.parametrize(
    ("name", "argument"),
    [("bloom", "alibi"), ("mpt", "position_bias"), ("falcon_alibi", "alibi")],
)
def test_biases_of_positions(tmp_path, name, argument):
    adapter = qk_models.load(name, tmp_path)
    with pytest.raises(ModelError, match=f"layer 1 .* adds '{argument}' .*ALiBi"):
        qk_layer(adapter, 1)


@pytest.mark.parametrize("name", ["phi_normed", "cohere_normed"])
def test_norms_that_subtract_the_mean(tmp_path, name):
    with pytest.raises(ModelError, match=r"self_attn\.q_\w*norm .*only an RMSNorm"):
        qk_layer(qk_models.load(name, tmp_path), 0)


def test_a_clip_on_queries_and_keys(tmp_path):
    with pytest.raises(ModelError, match="layer 0 were not found in OlmoForCausalLM"):
        qk_layer(qk_models.load("clipped", tmp_path), 0)


def test_a_bend_behind_the_projection():
    adapter = changed("llama", lambda attn: setattr(attn, "q_proj", Bent(attn.q_proj)))
    with pytest.raises(ModelError, match=r"queries of .*q_proj are not linear .* clip"):
        qk_texts(adapter, TOKENS, [1])


class Bent(torch.nn.Linear):
    """A projection that bends what it gives a little."""

    def __init__(self, inner):
        super().__init__(inner.in_features, inner.out_features, bias=False)
        self.weight = inner.weight

    def forward(self, x):
        out = super().forward(x)
        return out + 0.01 * out.square()


def test_a_turn_of_another_kind():
    """Keys that are turned over before the rotary embedding: no rule that is known."""

    def turn_over(attn):
        attn.register_forward_pre_hook(
            lambda _module, args, kwargs: (
                args,
                kwargs
                | {
                    "position_embeddings": tuple(
                        each.flip(-2) for each in kwargs["position_embeddings"][:1]
                    )
                    + kwargs["position_embeddings"][1:]
                },
            ),
            with_kwargs=True,
        )

    with pytest.raises(
        ModelError, match=r"tried the scales 0\.353553, .*turned by nothing.*closest"
    ):
        qk_layer(changed("llama", turn_over), 1)


def test_an_unknown_scale():
    def scale_oddly(attn):
        del attn.scaling
        attn.__class__ = type("Odd", (type(attn),), {"scaling": 0.7})

    with pytest.raises(ModelError, match=r"tried the scales 0\.353553.*soft cap none; closest"):
        qk_layer(changed("llama", scale_oddly), 2)


def test_a_rule_that_held_elsewhere_and_not_here(tmp_path):
    """Weights that changed since the rule was found."""
    adapter = qk_models.load("gpt2", tmp_path)
    known = qk_layers(adapter, [1])
    adapter.net.transformer.h[1].attn.scaling = 0.1
    with pytest.raises(ModelError, match=r"in this text, attention of layer 1 is not .*differ by"):
        qk_texts(adapter, TOKENS, known)


def test_a_layer_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match="no layer 3: the model has layers 0-2"):
        qk_layer(qk_models.load("llama", tmp_path), 3)


def test_other_families():
    with pytest.raises(ModelError, match="of the package transformers; this one is of the family"):
        qk_layer(load_model("demo://2048"), 0)
