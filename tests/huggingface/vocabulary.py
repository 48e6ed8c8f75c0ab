"""The words that the tiny tokenizer knows, and the labels of the sentences made of them."""

LABELS = ("negative", "positive")
WORDS = ["good", "fine", "lovely", "bad", "poor", "awful", "film", "book", "play"]
