"""Early exit for models that label the tokens of a text: a text leaves when its entities are settled."""
