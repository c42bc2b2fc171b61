"""What makes the documents: pages of commands, man pages, the site. Nothing of it is in the wheel."""
