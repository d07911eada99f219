"""The doors: foreign APIs translated to the core and back. A door keeps nothing, and knows no other door."""
