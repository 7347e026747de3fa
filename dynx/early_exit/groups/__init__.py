"""Early exit where several rows have one result: the documents of a query, or the candidate labels of a text."""
