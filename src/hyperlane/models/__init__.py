"""What a model is: facts, files, tensors, tokenizer, chat template, catalogue. Knows no graph."""
