"""Texts and images as vectors in a file, and the nearest of them.

A model's folder or Hub id and rows of texts or images enter (`loading.load_embedder`,
`rows.open_text_rows`, `rows.open_image_rows`). What leaves is a table or a matrix that appears
whole (`writing.embed_to_file`), or an array (`Embedder.embed`); a file that was written is searched
by `search.nearest`.
"""
