"""The front door: words in, words out. Only here do we know Click and Rich."""
