"""The pack's CLIP tokenizer: byte-level BPE over the words that its captions use, about 900
tokens."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from std_cli.tinypack.model import TEXT_LENGTH
from std_cli.tinypack.styles import COLOURS, PHRASES

WORDS = (
    "a an the of in on at with and photo picture image portrait woman man person girl boy face "
    "cat dog bird "
    "animal house tree mountain river sea sky city street car boat cup coffee table flower "
    "garden forest "
    "building window door hat coat moon sun night day winter summer old new small large bright "
    "dark style art "
    "artistic painting drawing sketch print illustration high low quality blurry bad deformed "
    "watermark "
    "reference colorful vivid soft bold line lines texture pattern paper canvas background "
    "landscape still "
    "life astronaut space suit smile eye eyes hair hand standing sitting looking "
)
SUBJECTS = [
    "a woman",
    "a man",
    "a cat",
    "a dog",
    "a cup of coffee",
    "a house",
    "a tree",
    "a city street",
    "a portrait",
    "a mountain",
    "a boat",
    "flowers",
    "an astronaut",
    "a room",
]


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Return the tokenizer in `folder`, or a new one, which is saved there.

    Two new ones can differ in the order of equally frequent pairs: weights work only with theirs.
    """
    if folder.exists():
        kept: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
        return kept
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), split])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1022, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    words = [w for phrases in PHRASES.values() for p in phrases for w in p.split()] + list(COLOURS)
    bpe.train_from_iterator(words * 8 + WORDS.split() * 3, trainer)
    merges = [
        m if isinstance(m, list) else m.split(" ")
        for m in json.loads(bpe.to_str())["model"]["merges"]
    ]
    tokens = alphabet + [a + "</w>" for a in alphabet] + [a + b for a, b in merges]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    part = folder.with_name(folder.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    vocab = part / "vocab.json"
    merge_file = part / "merges.txt"
    vocab.write_text(json.dumps({t: i for i, t in enumerate(tokens)}), encoding="utf-8")
    merge_file.write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8"
    )
    CLIPTokenizer(str(vocab), str(merge_file), model_max_length=TEXT_LENGTH).save_pretrained(part)
    part.rename(folder)
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer
