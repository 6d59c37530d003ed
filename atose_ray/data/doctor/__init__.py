"""The doctor: what is wrong with a prepared data set. facts (numbers), checks and splits (findings), page and plots."""
