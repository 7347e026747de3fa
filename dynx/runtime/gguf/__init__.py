"""GGUF files, the format of llama.cpp: one file holds weights, configuration and tokenizer.

`header` reads what a file says about itself, `names` finds files by what a user typed, `describe` writes the configuration and
the tokenizer as a Hugging Face folder, and `tensors` reads the weights.
"""
