"""Documents in, batches of masked sentence pairs out.

Text enters as files, as a data set or from inside the user's Python (`documents`, `embedded`) and
is prepared once (`preparation`, `prepared`; `opening` finds or makes a corpus by its name). Each
epoch has new pairs (`windows`, then `pairs`, `order_pairs`, `google_pairs`), planned by blocks of
documents (`blocks`), and masks (`masking`). Batches leave by `collator`.
"""
