"""Whether a run learns: signs of each step, verdicts on them, and advice."""
