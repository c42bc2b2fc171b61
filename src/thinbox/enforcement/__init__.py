"""System call isolation from outside: watches a guest at its own instructions, asks `isolation`, and acts."""
