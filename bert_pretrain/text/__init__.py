"""Documents in, batches of masked sentence pairs out.

Text enters as files, as a data set or from inside the user's Python (`documents`, which asks
`file_search`, `text_files`, `data_sets` and `embedded`; `newlines` says what a newline is), is cut
into sentences and words (`sentences`, `words`) and prepared once (`preparation`, `prepared`;
`opening` finds or makes a corpus by its name). Each
epoch has new pairs (`windows`, then `pairs`, `order_pairs`, `google_pairs`), planned by blocks of
documents (`blocks`), and masks (`masking`). Batches leave by `collator`.
"""
