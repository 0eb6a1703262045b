"""Raw text to batches: corpus, tokenizer, prepared corpus, sentence pairs, masks, collation."""
