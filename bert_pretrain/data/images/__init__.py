"""Images to arrays of pixels: sources, decoding, the file of decoded images, the corpus."""
