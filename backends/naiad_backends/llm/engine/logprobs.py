"""How likely tokens are: log-softmax of the raw logits of one row, the best tokens, and ranks."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from naiad_backends.llm.engine.draws import Row, largest
from naiad_backends.llm.messages import Scored, Token


def score(row: Row, token: int, best: int, others: Sequence[int] = ()) -> Scored:
    """The token, and beside it the `best` most likely ones (-1 for all) and `others`, each once.

    A rank is 1 + the number of larger logits. Where a logit is not finite, nothing is known: the
    logprob is not a number, and nothing stands beside the token.
    """
    highest = row.max()
    if not np.isfinite(highest):
        return Scored(Token(token, math.nan, 1), [])
    shift = float(highest) + float(np.log(np.exp(row - highest).sum(dtype=np.float64)))

    def tokens(ids: npt.NDArray[np.intp], ranks: npt.NDArray[np.intp]) -> list[Token]:
        logprobs = row[ids].astype(np.float64) - shift
        return list(map(Token, ids.tolist(), logprobs.tolist(), ranks.tolist()))

    def single(token: int) -> Token:
        ranks = np.array([np.count_nonzero(row > row[token]) + 1])
        return tokens(np.array([token]), ranks)[0]

    count = len(row) if best < 0 else min(best, len(row))
    ids = largest(row, count) if count else np.empty(0, np.intp)
    # All larger logits are among them, so a rank is a place, the first one of equals.
    top = tokens(ids, np.searchsorted(-row[ids], -row[ids]) + 1)
    known = {one.id for one in top}
    more = [single(one) for one in dict.fromkeys(others) if one not in known and one < len(row)]
    return Scored(single(token), sorted(top + more, key=lambda one: one.rank))
