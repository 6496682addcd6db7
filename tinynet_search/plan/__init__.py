"""What a search will train, written before anything runs, and what it will cost."""
