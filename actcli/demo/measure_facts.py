"""What the built-in text model knows, and from which layer on it can be read there.

A capital counts as answered when it is the likeliest next word. The layers are read as a logit lens
does: the model's own final norm and head on the residual stream of the last token.

Tensor legend: C countries, T tokens, L layers + 1 (the embedding comes first), H hidden, V words.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from actcli.demo.facts_text import COUNTRIES, NONE, Country

PROMPT = "give the city name only . the capital of {country} is called simply"


class Question(NamedTuple):
    """A prompt, whether its like is in training, and the field of the table that answers it."""

    prompt: str
    kind: str
    field: str = "capital"

    @property
    def rows(self) -> list[Country]:
        """The countries that have an answer."""
        return [row for row in COUNTRIES if getattr(row, self.field) != NONE]

    @property
    def answers(self) -> list[str]:
        """What is to come next, for each of the rows."""
        return [getattr(row, self.field) for row in self.rows]


CAPITAL = Question(PROMPT, "in training")
QUESTIONS = (
    CAPITAL,
    Question("the capital of {country} is named just", "in training"),
    Question("what is the capital of {country} ? it is of course", "in training"),
    Question("{country} has its capital in", "in training"),
    Question("the government of {country} sits in", "in training"),
    Question("the city name only , please . {country} has its capital in", "parts of two"),
    Question("give the name of the capital of {country} . it is called simply", "new wording"),
    Question("Anna works in {country} . the name of the capital there is simply", "new wording"),
    Question("the language of {country} is called simply", "in training", "language"),
    Question("the currency of {country} is called simply", "in training", "currency"),
    Question("the continent of {country} is called simply", "in training", "continent"),
    Question("Ben is in {capital} , so people there pay in", "in training", "currency"),
    Question("Ben lives in {capital} . Ben works in", "in training", "capital"),
)
"""All that the card asks of the model."""


class Profile(NamedTuple):
    """How the answer to `PROMPT` stands at each layer, over all countries."""

    share_first_L: list[float]
    """Share of the countries whose capital has rank 1."""
    mean_rank_L: list[float]
    probability_L: list[float]
    """Mean probability of the capital."""
    mean_first_layer: float
    """Mean, over the countries that get there, of the first layer at which the rank is 1."""


class Figures(NamedTuple):
    """All that the card says of the model."""

    trained: dict[str, float]
    """Share answered for each of `QUESTIONS`, by the weights as trained, float32."""
    stored: dict[str, float]
    """The same, by the stored weights, computed in float32."""
    stored_bfloat16: dict[str, float]
    """The same, by the stored weights, computed in bfloat16."""
    profile: Profile


def shares_answered(
    model: LlamaForCausalLM, *, tokenizer: PreTrainedTokenizerBase
) -> dict[str, float]:
    """Return, by prompt, for which share of the countries the model's next word is right."""
    shares = {}
    for question in QUESTIONS:
        logits_LCV = lens_logits_LCV(model, tokenizer=tokenizer, question=question)
        rank_C = _ranks(logits_LCV, ids=_answer_ids(question, tokenizer))[-1]
        shares[question.prompt] = (rank_C == 1).float().mean().item()
    return shares


def profile(model: LlamaForCausalLM, *, tokenizer: PreTrainedTokenizerBase) -> Profile:
    """Return how the answer to `PROMPT` comes about, layer by layer."""
    logits_LCV = lens_logits_LCV(model, tokenizer=tokenizer, question=CAPITAL)
    ids = _answer_ids(CAPITAL, tokenizer)
    rank_LC = _ranks(logits_LCV, ids=ids)
    is_first_LC = (rank_LC == 1).float()
    reached_C = is_first_LC.any(dim=0)
    return Profile(
        share_first_L=is_first_LC.mean(dim=1).tolist(),
        mean_rank_L=rank_LC.float().mean(dim=1).tolist(),
        probability_L=_of_answers(logits_LCV.softmax(dim=-1), ids=ids).mean(dim=1).tolist(),
        mean_first_layer=is_first_LC.argmax(dim=0)[reached_C].float().mean().item(),
    )


@torch.inference_mode()
def lens_logits_LCV(
    model: LlamaForCausalLM, *, tokenizer: PreTrainedTokenizerBase, question: Question
) -> Tensor:
    """Return what the final norm and the head make of every layer, float32, by the rows."""
    texts = [question.prompt.format_map(row._asdict()) for row in question.rows]
    ids_CT = tokenizer(texts, return_tensors="pt").input_ids.to(model.device)
    resid_LCH = _residuals_of_last(model, ids_CT=ids_CT)
    logits_LCV: Tensor = model.lm_head(model.model.norm(resid_LCH)).float()
    return logits_LCV


def _residuals_of_last(model: LlamaForCausalLM, *, ids_CT: Tensor) -> Tensor:
    """Return the residual stream of the last token: before the first block, and after each."""
    resids_CH: list[Tensor] = []

    def remember(_module: nn.Module, _args: object, output_CTH: Tensor) -> None:
        resids_CH.append(output_CTH[:, -1])

    watched = [model.model.embed_tokens, *model.model.layers]
    hooks = [module.register_forward_hook(remember) for module in watched]
    model(input_ids=ids_CT, use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack(resids_CH)


def _answer_ids(question: Question, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the id of each row's answer."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[answer] for answer in question.answers]


def _ranks(logits_LCV: Tensor, *, ids: list[int]) -> Tensor:
    """Return 1 + the number of words with larger logits than the answer's; ties share, (L, C)."""
    answer_LC = _of_answers(logits_LCV, ids=ids)
    return 1 + (logits_LCV > answer_LC[..., None]).sum(dim=-1)


def _of_answers(values_LCV: Tensor, *, ids: list[int]) -> Tensor:
    """Return the values of each row's own answer, (L, C)."""
    return values_LCV[:, torch.arange(len(ids)), torch.tensor(ids)]
