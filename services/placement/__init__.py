"""Where documents go and which shards a query asks: pure decisions over cells, loads and time as values."""
