"""How byte-level vocabularies cut a text into words, by the name that GGUF files give the way.

The expressions are those of the models' own tokenizer.json; names that llama.cpp's converter gives
to models with the same expressions share them. Knows nothing of vocabularies.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _words(letters: str, digits: str, others: str = r" ?[^\s\p{L}\p{N}]+[\r\n]*") -> str:
    """The shape that most vocabularies since cl100k have."""
    return f"{_CONTRACTION}|{letters}|{digits}|{others}|{_SPACES}"


_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = _words(_LETTERS, r"\p{N}{1,3}")
_QWEN2 = _words(_LETTERS, r"\p{N}")
_QWEN35 = _words(r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r"\p{N}", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*")

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(ending: str, digits: str) -> str:
    """Words that also end where lower case turns into upper case."""
    start = r"[^\r\n\p{L}\p{N}]?"
    lower = f"{start}{_UPPER}*{_LOWER}+{ending}"
    upper = f"{start}{_UPPER}+{_LOWER}*{ending}"
    return rf"{lower}|{upper}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


_TEKKEN = _cased("", r"\p{N}")
_GPT4O = _cased(f"{_CONTRACTION}?", r"\p{N}{1,3}")

_ASCII_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    _ASCII_PUNCTUATION + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)
_DEEPSEEK_CODER = (
    r"[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
    r"\p{N}",
)
# The letters of the scripts that have cases, as the model's tokenizer.json lists them.
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"
    "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c"
    "\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59"
    "\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
    "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
    "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_CASED_LETTERS}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
    r"\p{N}+",
)
_FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One way. splits: expressions, each of which cuts what the one before has left.

    ignore_merges: a word that is a token is not built from its parts.
    add_bos: unless the file says otherwise.  nfc: normalize first.
    """

    splits: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    nfc: bool = False

    def normalizer(self) -> normalizers.Normalizer | None:
        """What happens to the text before it is cut."""
        return normalizers.NFC() if self.nfc else None

    def steps(self) -> pre_tokenizers.PreTokenizer:
        """The same for `tokenizers`, spelling bytes last."""
        splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in self.splits]
        spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*splits, spell])


def _named(way: PreTokenizer, names: str) -> dict[str, PreTokenizer]:
    return dict.fromkeys(names.split(), way)


PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    **_named(PreTokenizer(_DEFAULT), "default"),
    **_named(
        PreTokenizer((_GPT2,)),
        "gpt-2 phi-2 olmo jais trillion granite-docling gigachat a.x-4.0 mellum modern-bert "
        "exaone4 jina-es jina-de jina-v2-es jina-v2-de",
    ),
    **_named(PreTokenizer((_GPT2,), nfc=True), "mpt"),
    **_named(
        PreTokenizer((r"\p{N}", _GPT2)),
        "smollm starcoder refact codeshell exaone minerva-7b mellum2",
    ),
    **_named(PreTokenizer((r"\p{N}", _GPT2), nfc=True), "command-r"),
    **_named(PreTokenizer((_LLAMA3,)), "dbrx smaug-bpe chatglm-bpe"),
    **_named(PreTokenizer((_LLAMA3,), ignore_merges=True), "glm4 glm5"),
    **_named(
        PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    ),
    **_named(PreTokenizer((_QWEN2,), nfc=True), "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez"),
    **_named(PreTokenizer((_QWEN2,)), "hunyuan grok-2 solar-open stablelm2"),
    **_named(PreTokenizer((_QWEN35,), nfc=True), "qwen35"),
    **_named(PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True), "tekken"),
    **_named(PreTokenizer((_GPT4O,)), "gpt-4o llama4 kanana2 talkie minimax-m2"),
    **_named(PreTokenizer(_DEEPSEEK_LLM), "deepseek-llm"),
    **_named(PreTokenizer(_DEEPSEEK_CODER), "deepseek-coder"),
    **_named(PreTokenizer(_DEEPSEEK_V3), "deepseek-v3 hunyuan-dense joyai-llm hy_v4"),
    **_named(PreTokenizer(_FALCON), "falcon"),
}
