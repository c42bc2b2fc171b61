"""From recorded runs to a plan, and from a plan to what production runs: profiles, filters, comparisons."""
