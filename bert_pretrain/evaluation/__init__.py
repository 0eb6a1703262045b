"""What a pretrained encoder has learnt: suites, pictures, intervals."""
