"""A disk that loses power, and a replica on it."""
