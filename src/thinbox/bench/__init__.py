"""thinbox's own speed: everything as medians of several runs, and as ratios within one sitting."""
