"""How mead, the built-in model, and its draft model are made: corpus, tokenizer, training, export, score."""
