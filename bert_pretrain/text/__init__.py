"""Documents in, batches of masked sentence pairs out.

Text enters as files, as a data set or from inside the user's Python (`documents`, which asks
`file_search`, `text_files`, `data_sets` and `embedded`; `newlines` says what a newline is), is cut
into sentences and words (`sentences`, `words`), and prepared once (`preparation`, `prepared`;
`opening` finds or makes a corpus by its name), cut by a tokenizer (`tokenizers`) to which it is
data (`literal_text`). Each epoch has new pairs (`windows`, then `pairs`, `exact_pairs`,
`order_pairs`, `google_pairs`), rows of what they leave (`unread`), planned by blocks of documents
(`blocks`), and masks (`masking`). Batches leave by `collator`, laid out as the tokenizer does it
(`layout`).

A tokenizer is trained (`tokenizer_training`) on counted words (`word_counts`), with defaults by
what their letters are (`scripts`), and judged by what it does not know of a text (`unknown`).
"""
