"""A state machine over several databases: each user is in one of them."""
