"""Pieces of speech from probabilities, by the rules of Silero VAD. Knows nothing of sound.

All times are numbers of samples.
"""

HYSTERESIS = 0.15
"""Speech that has begun lasts until the probability is that far below the threshold."""


def find(probabilities, window, length, threshold, min_speech, min_silence):
    """Begin and end [(int, int)] of each piece. probabilities: one for each `window` samples of
    `length` in all."""
    found = []
    begin = end = None  # Of the piece that is looked at; it has an end while that may be its last.
    for number, probability in enumerate(probabilities):
        time = number * window
        if probability >= threshold:
            begin, end = time if begin is None else begin, None
        elif begin is not None and probability < max(threshold - HYSTERESIS, 0.01):
            end = time if end is None else end
            if time - end >= min_silence:
                found.append((begin, end))
                begin = end = None
    if begin is not None:
        found.append((begin, length))
    return [(begin, end) for begin, end in found if end - begin > min_speech]


def grown(pieces, pad, length):
    """The pieces longer by `pad` on both sides; neighbours meet in the middle at the most."""
    begins = [begin for begin, _ in pieces]
    ends = [end for _, end in pieces]
    gaps = [begin - end for begin, end in zip(begins[1:], ends, strict=False)]
    shares = [pad if gap >= 2 * pad else gap // 2 for gap in gaps]
    return [
        (max(0, begin - before), min(length, end + after))
        for (begin, end), before, after in zip(pieces, [pad, *shares], [*shares, pad], strict=False)
    ]
