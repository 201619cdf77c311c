"""The controller killed again and again, its servers and its network too, and an account of what came of the events."""
