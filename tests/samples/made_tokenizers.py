"""Small real tokenizers, made with the `tokenizers` package, in folders as models have them."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "the capital of Germany is called simply Berlin .",
    "the capital of France is called simply Paris . é ü 日",
] * 20


def words(folder, vocabulary, *, bos=False, eos=None, sep=False, unk=True):
    """One token a word: ids in the order of the vocabulary, behind those of `<unk>` and so on."""
    special = [*(["<unk>"] if unk else []), *(["<s>"] if bos else []), *([eos] if eos else [])]
    special += ["[SEP]"] if sep else []
    ids = {word: number for number, word in enumerate([*special, *vocabulary])}
    made = Tokenizer(models.WordLevel(ids, unk_token="<unk>" if unk else None))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = " ".join([*(["<s>"] if bos else []), "$A", *(["[SEP]"] if sep else [])])
    added = [(each, ids[each]) for each in ("<s>", "[SEP]") if each in ids]
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=added)
    return save(
        made,
        folder,
        unk_token="<unk>" if unk else None,
        bos_token="<s>" if bos else None,
        eos_token=eos,
        sep_token="[SEP]" if sep else None,
    )


def bytes_bpe(folder, corpus=CORPUS, *, eos=None, vocab_size=330, model_max_length=None):
    """Byte-level BPE trained on a text, as GPT-2's is."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[eos] if eos else [],
        show_progress=False,
    )
    made.train_from_iterator(corpus, trainer)
    return save(made, folder, eos_token=eos, model_max_length=model_max_length)


def unsplit_bpe(folder, merges):
    """BPE over whole texts, where merges cross the blanks between words."""
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz ").union(*map("".join, merges)) - {""})
    letters = [each for each in letters if len(each) == 1]
    joined = ["".join(each) for each in merges]
    ids = {piece: number for number, piece in enumerate([*letters, *joined])}
    return save(Tokenizer(models.BPE(ids, [tuple(each) for each in merges])), folder)


def save(made, folder, **tokens):
    given = {name: value for name, value in tokens.items() if value is not None}
    PreTrainedTokenizerFast(tokenizer_object=made, **given).save_pretrained(folder)
    return folder
