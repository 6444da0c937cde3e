"""An HTTP agent that hashes files, in one file without dependencies; law: it runs without the rest of this project."""
