"""Programs with planted mistakes, and what the checker should say about them."""
